"""Rules about image files: every file decoded once, in several processes, and pictures that occur
twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rfdetr.data.files import IMAGE_FORMATS, is_image, walk
from rfdetr.data.findings import Findings
from rfdetr.data.images import ImageError, decode_image, is_deep, lacks_end_marker
from rfdetr.data.records import SplitRecords
from rfdetr.data.workers import worker_context

LARGE_PIXELS = 50_000_000
_USUAL_MODES = frozenset({"RGB", "L"})
_PRINT = 16  # side of a picture's fingerprint
_FLAT = 2.0  # deviation of a fingerprint without content, in gray levels
_ALIKE = 0.99  # correlation of the fingerprints of nearly the same picture
_BLOCK = 2048  # fingerprints compared at once
_FEW = 64  # files for which starting processes does not pay


Seen: TypeAlias = "tuple[SplitRecords, Sequence[int], Sequence[Look]]"  # a split, its readable images, their looks


class Look(NamedTuple):
    """What one image file turned out to be; `fault` says why it cannot be decoded."""

    fault: str = ""
    format: str = ""
    mode: str = ""
    frames: int = 1
    pixels: int = 0
    digest: bytes = b""  # of the decoded pixels
    fingerprint: bytes = b""  # 16 x 16 gray
    unended: bool = False  # a JPEG without its end marker


def look_at(path: Path) -> Look:
    """Decode a file."""
    try:
        data = path.read_bytes()
        pixels = decode_image(data, str(path))
        with Image.open(path) as image:
            form, mode, frames = image.format or "", image.mode, getattr(image, "n_frames", 1)
    except (ImageError, OSError) as error:
        return Look(fault=str(error))
    small = Image.fromarray(pixels).convert("L").resize((_PRINT, _PRINT), Image.Resampling.BOX)
    digest = hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16).digest()
    return Look(
        "",
        form,
        mode,
        frames,
        pixels.shape[0] * pixels.shape[1],
        digest,
        small.tobytes(),
        lacks_end_marker(data),
    )


def look_at_all(paths: Sequence[Path], processes: int) -> Iterator[Look]:
    """Decode files, in several processes where there are many."""
    if processes <= 1 or len(paths) < _FEW:
        yield from map(look_at, paths)
        return
    with ProcessPoolExecutor(processes, worker_context()) as pool:
        yield from pool.map(look_at, paths, chunksize=16)


def check_looks(
    records: SplitRecords, images: Iterable[int], looks: Iterable[Look], findings: Findings
) -> None:
    """Findings on single files."""
    for image, look in zip(images, looks, strict=True):
        suffixes = IMAGE_FORMATS.get(look.format, frozenset())
        faults = {
            "image-truncated": look.fault,
            "image-extension": suffixes
            and Path(records.names[image]).suffix.lower() not in suffixes
            and f"the file is {look.format}",
            "image-end-missing": look.unended and "no end marker",
            "image-mode": look.mode not in ("", *_USUAL_MODES)
            and not is_deep(look.mode)
            and f"mode {look.mode}",
            "image-animated": look.frames > 1 and look.format != "MPO" and f"{look.frames} frames",
            "image-large": look.pixels > LARGE_PIXELS and f"{look.pixels / 1e6:.0f} million pixels",
        }
        for rule, found in faults.items():
            if found:
                findings.add(rule, *records.describe_image(image, str(found)))


def check_copies(splits: dict[str, Seen], findings: Findings) -> None:
    """Pictures that occur twice in a split, or in two: then the one in train is the finding, for
    the others measure.
    """
    seen: dict[bytes, tuple[str, int]] = {}
    for split in reversed(splits):
        records, images, looks = splits[split]
        for image, look in zip(images, looks, strict=True):
            if look.digest in seen:
                other, twin = seen[look.digest]
                name = splits[other][0].names[twin]
                rule = "image-copy" if other == split else "split-leak"
                findings.add(
                    rule, *records.describe_image(image, f"the same pixels as {other}'s {name}")
                )
            elif look.digest:
                seen[look.digest] = split, image
    names = list(splits)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            _check_near(first, second, splits, findings)


def _check_near(
    first: str,
    second: str,
    splits: dict[str, Seen],
    findings: Findings,
) -> None:
    (records, images, looks), (others, other_images, other_looks) = splits[first], splits[second]
    for a, b in near_pairs(looks, other_looks):
        found = f"{second}'s {others.names[other_images[b]]} is nearly the same"
        findings.add("split-leak-near", *records.describe_image(images[a], found))


def near_pairs(looks: Sequence[Look], others: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Positions of pictures whose fingerprints correlate, whatever their brightness; equal and flat
    ones apart.
    """
    ours, theirs = _fingerprints(looks), _fingerprints(others)
    for start in range(0, len(ours), _BLOCK):
        alike = ours[start : start + _BLOCK] @ theirs.T > _ALIKE
        for a, b in np.argwhere(alike).tolist():
            if looks[start + a].digest != others[b].digest:
                yield start + a, b


def _fingerprints(looks: Sequence[Look]) -> NDArray[np.float32]:
    """Fingerprints (N, 256) of mean 0 and length 1; 0 where a picture has no content or could not
    be read.
    """
    empty = bytes(_PRINT**2)
    raw = np.frombuffer(b"".join(look.fingerprint or empty for look in looks), np.uint8).reshape(
        -1, _PRINT**2
    )
    centred = raw - raw.mean(1, keepdims=True, dtype=np.float32)
    deviation = centred.std(1, keepdims=True)
    return np.where(deviation > _FLAT, centred / np.maximum(deviation, 1) / _PRINT, 0).astype(
        np.float32
    )


def image_files(folder: Path) -> set[Path]:
    """Image files in a folder and below it."""
    return set(filter(is_image, walk(folder))) if folder.is_dir() else set()
