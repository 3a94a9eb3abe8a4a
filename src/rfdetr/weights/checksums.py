"""The SHA-256 of a folder's checkpoints, in its `checksums.json`, and what they say of the files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

CHECKSUMS_FILE = "checksums.json"
_BLOCK = 1 << 20


def read_checksums(folder: Path) -> dict[str, Any] | None:
    """What a folder's checksums.json says, by file name; None where that is another program's file."""
    try:
        content = json.loads((folder / CHECKSUMS_FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def sidecar(path: str | os.PathLike[str]) -> Path:
    """Where earlier versions kept the checksum of a file: beside it, as `sha256sum -c` reads it."""
    return Path(f"{os.fspath(path)}.sha256")


def recorded_digests(path: str | os.PathLike[str]) -> list[str]:
    """The digests that a file may have: two while it is being replaced, none where nobody noted any."""
    path = Path(path)
    if isinstance(text := (read_checksums(path.parent) or {}).get(path.name), str):
        return text.split()
    try:
        lines = sidecar(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    return [line.split()[0] for line in lines if line.strip()]


def digest_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_damaged(path: str | os.PathLike[str]) -> bool:
    """Whether the file differs from what its checksum says; a file without one is taken as it is."""
    digests = recorded_digests(path)
    return bool(digests) and digest_of(path) not in digests


def newest_good(path: str | os.PathLike[str]) -> Path | None:
    """The newest other checkpoint beside a file that its checksum proves whole; `.ckpt` only beside a `.ckpt`."""
    path = Path(path)
    kinds = (".ckpt",) if path.suffix == ".ckpt" else (".pth", ".pt", ".safetensors", ".ckpt")
    others = [other for kind in kinds for other in path.parent.glob(f"*{kind}") if other != path]
    others.sort(key=lambda other: other.stat().st_mtime_ns, reverse=True)
    return next((other for other in others if recorded_digests(other) and not is_damaged(other)), None)


def advice(path: str | os.PathLike[str]) -> str:
    """What to use in place of a damaged file, as the end of a message."""
    other = newest_good(path)
    return f"; the newest good checkpoint beside it is {other}" if other else "; there is no good checkpoint beside it"
