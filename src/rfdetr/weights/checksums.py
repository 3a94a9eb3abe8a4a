"""A checksum beside each checkpoint (`last.ckpt.sha256`, as `sha256sum -c` reads it), and what it says of the file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_SUFFIX = ".sha256"
_BLOCK = 1 << 20


def sidecar(path: str | os.PathLike[str]) -> Path:
    """Where the checksum of a file is kept."""
    path = Path(path)
    return path.with_name(path.name + _SUFFIX)


def sidecar_text(path: Path, digests: list[str]) -> str:
    """The content of a sidecar; the digests are those the file may have."""
    return "".join(f"{digest}  {path.name}\n" for digest in dict.fromkeys(digests))


def recorded_digests(path: str | os.PathLike[str]) -> list[str]:
    """The digests that a file may have: two while it is being replaced, none where nobody noted any."""
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
