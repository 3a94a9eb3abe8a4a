"""Rules about image files: each decoded once, in several processes; and pictures that recur."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rfdetr.data.files import IMAGE_FORMATS
from rfdetr.data.findings import Findings
from rfdetr.data.images import ImageError, decode_image, is_deep, lacks_end_marker
from rfdetr.data.index import SplitRecords
from rfdetr.data.workers import worker_context

LARGE_PIXELS = 50_000_000
_PRINT = 16  # side of a picture's fingerprint
_FLAT = 2.0  # deviation of a fingerprint without content, in gray levels
_ALIKE = 0.99  # correlation of the fingerprints of nearly the same picture
_BLOCK = 2048  # fingerprints compared at once
_FEW = 64  # files for which starting processes does not pay


class ImageFacts(NamedTuple):
    """What one image file turned out to be; `fault` says why it cannot be decoded."""

    fault: str = ""
    format: str = ""
    mode: str = ""
    frames: int = 1
    pixels: int = 0
    digest: bytes = b""  # of the decoded pixels
    fingerprint: bytes = b""  # 16 x 16 gray
    unended: bool = False  # a JPEG without its end marker


def read_facts(path: Path) -> ImageFacts:
    """Decode a file."""
    try:
        data = path.read_bytes()
        pixels = decode_image(data, str(path))
        with Image.open(path) as image:
            form, mode, frames = image.format or "", image.mode, getattr(image, "n_frames", 1)
    except (ImageError, OSError) as error:
        return ImageFacts(fault=str(error))
    small = Image.fromarray(pixels).convert("L").resize((_PRINT, _PRINT), Image.Resampling.BOX)
    digest = hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16).digest()
    size, unended = pixels.shape[0] * pixels.shape[1], lacks_end_marker(data)
    return ImageFacts("", form, mode, frames, size, digest, small.tobytes(), unended)


def read_all_facts(paths: Sequence[Path], processes: int) -> Iterator[ImageFacts]:
    """Decode files, in several processes where there are many."""
    if processes <= 1 or len(paths) < _FEW:
        yield from map(read_facts, paths)
        return
    with ProcessPoolExecutor(processes, worker_context()) as pool:
        yield from pool.map(read_facts, paths, chunksize=16)


def check_images(
    records: SplitRecords, facts: Mapping[int, ImageFacts], findings: Findings
) -> None:
    """Find what is odd of single files; `facts` by the image's number in the records."""
    for image, file in facts.items():
        suffixes = IMAGE_FORMATS.get(file.format)
        other_format = suffixes and Path(records.names[image]).suffix.lower() not in suffixes
        odd_mode = file.mode not in ("", "RGB", "L") and not is_deep(file.mode)
        several = file.frames > 1 and file.format != "MPO"
        faults = {
            "image-truncated": file.fault,
            "image-extension": other_format and f"the file is {file.format}",
            "image-end-missing": file.unended and "no end marker",
            "image-mode": odd_mode and f"mode {file.mode}",
            "image-animated": several and f"{file.frames} frames",
            "image-large": file.pixels > LARGE_PIXELS and f"{file.pixels / 1e6:.0f} million pixels",
        }
        for rule, found in faults.items():
            if found:
                findings.add(rule, *records.describe_image(image, str(found)))


def check_copies(
    records: Mapping[str, SplitRecords],
    facts: Mapping[str, Mapping[int, ImageFacts]],
    findings: Findings,
) -> None:
    """Find pictures that are twice in a split, or in two; `facts` by split and image.

    Of two splits the finding is in the earlier one (train), for the others measure.
    """
    seen: dict[bytes, tuple[str, int]] = {}
    for split in reversed(list(facts)):
        for image, file in facts[split].items():
            if file.digest in seen:
                other, twin = seen[file.digest]
                rule = "image-copy" if other == split else "split-leak"
                found = f"the same pixels as {other}'s {records[other].names[twin]}"
                findings.add(rule, *records[split].describe_image(image, found))
            elif file.digest:
                seen[file.digest] = split, image
    for first, second in itertools.combinations(facts, 2):
        ours, theirs = (list(facts[split].items()) for split in (first, second))
        for a, b in near_pairs([file for _, file in ours], [file for _, file in theirs]):
            found = f"{second}'s {records[second].names[theirs[b][0]]} is nearly the same"
            findings.add("split-leak-near", *records[first].describe_image(ours[a][0], found))


def near_pairs(
    ours: Sequence[ImageFacts], theirs: Sequence[ImageFacts]
) -> Iterator[tuple[int, int]]:
    """Positions of pictures that are nearly the same, whatever their brightness.

    Their fingerprints correlate. Equal pictures, and those without content, are no such pair.
    """
    prints, others = _fingerprints(ours), _fingerprints(theirs)
    for start in range(0, len(prints), _BLOCK):
        alike = prints[start : start + _BLOCK] @ others.T > _ALIKE
        for a, b in np.argwhere(alike).tolist():
            if ours[start + a].digest != theirs[b].digest:
                yield start + a, b


def _fingerprints(facts: Sequence[ImageFacts]) -> NDArray[np.float32]:
    """Fingerprints (n, 256) of mean 0 and length 1; 0 for one without content or not read."""
    empty = bytes(_PRINT**2)
    prints = b"".join(file.fingerprint or empty for file in facts)
    raw = np.frombuffer(prints, np.uint8).reshape(-1, _PRINT**2)
    centred = raw - raw.mean(1, keepdims=True, dtype=np.float32)
    deviation = centred.std(1, keepdims=True)
    unit = centred / np.maximum(deviation, 1) / _PRINT
    return np.where(deviation > _FLAT, unit, 0).astype(np.float32)
