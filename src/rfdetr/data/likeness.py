"""What image files turn out to be, each decoded once, and which are nearly the same picture."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rfdetr.data.files import IMAGE_FORMATS
from rfdetr.data.findings import DatasetError
from rfdetr.data.images import ImageError, decode_image, is_deep, lacks_end_marker
from rfdetr.data.loaders import worker_context
from rfdetr.data.packs import PackedFile

LARGE_PIXELS = 50_000_000
_PRINT = 16  # side of a picture's fingerprint
_FLAT = 2.0  # deviation of a fingerprint without content, in gray levels
_ALIKE = 0.99  # correlation of the fingerprints of nearly the same picture
_BLOCK = 2048  # fingerprints compared at once
_FEW = 64  # files for which starting processes does not pay


class ImageFacts(NamedTuple):
    """What one image file turned out to be."""

    faults: Mapping[str, str] = {}  # what was found, by the rule that the file breaks
    digest: bytes = b""  # of the decoded pixels; empty where they could not be decoded
    fingerprint: bytes = b""  # the picture as 16 x 16 gray pixels


def read_facts(path: Path | PackedFile) -> ImageFacts:
    """Decode a file, and look for what is odd of it."""
    try:
        data = path.read_bytes()
        pixels = decode_image(data, str(path))
        with Image.open(io.BytesIO(data)) as image:
            form, mode, frames = image.format or "", image.mode, getattr(image, "n_frames", 1)
    except (ImageError, DatasetError, OSError) as error:
        return ImageFacts({"image-truncated": str(error)})
    size, suffix = pixels.shape[0] * pixels.shape[1], os.path.splitext(str(path))[1].lower()
    misnamed = suffix not in IMAGE_FORMATS.get(form, (suffix,))
    rules = (
        ("image-extension", misnamed, f"the file is {form}"),
        ("image-end-missing", lacks_end_marker(data), "no end marker"),
        ("image-mode", mode not in ("RGB", "L") and not is_deep(mode), f"mode {mode}"),
        ("image-animated", frames > 1 and form != "MPO", f"{frames} frames"),
        ("image-large", size > LARGE_PIXELS, f"{size / 1e6:.0f} million pixels"),
    )
    faults = {rule: found for rule, broken, found in rules if broken}
    digest = hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16).digest()
    small = Image.fromarray(pixels).convert("L").resize((_PRINT, _PRINT), Image.Resampling.BOX)
    return ImageFacts(faults, digest, small.tobytes())


def read_all_facts(paths: Sequence[Path | PackedFile], processes: int) -> Iterator[ImageFacts]:
    """Decode files, in several processes where there are many."""
    if processes <= 1 or len(paths) < _FEW:
        yield from map(read_facts, paths)
        return
    with ProcessPoolExecutor(processes, worker_context()) as pool:
        yield from pool.map(read_facts, paths, chunksize=16)


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
