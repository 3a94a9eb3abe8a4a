"""A trained detector for other programs: `ARTIFACTS`, which a runtime runs, and the folder that
transformers reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rfdetr.checks import nearest, short
from rfdetr.errors import InputError
from rfdetr.export.artifacts import ARTIFACTS, Options, write_artifacts
from rfdetr.export.card import Subject
from rfdetr.export.hf import write_hf

__all__ = ["FORMATS", "Options", "Subject", "formats_in", "new_folder", "write"]

FORMATS = (*ARTIFACTS, "hf")


def formats_in(format: Any) -> list[str]:
    """The formats of "onnx,openvino" or of a list, each once; `InputError` for an unknown one."""
    parts = format.split(",") if isinstance(format, str) else format
    named = isinstance(parts, Sequence) and all(isinstance(part, str) for part in parts)
    formats = list(dict.fromkeys(part.strip() for part in parts)) if named else []
    if not formats or any(one not in FORMATS for one in formats):
        unknown = next((one for one in formats if one not in FORMATS), format)
        near = nearest(unknown, FORMATS) if isinstance(unknown, str) else None
        hint = f"; did you mean {near!r}?" if near else ""
        there = ", ".join(map(repr, FORMATS))
        raise InputError(f"format is {short(unknown)}{hint} The formats are {there}")
    return formats


def write(subject: Subject, folder: Path, formats: Sequence[str], options: Options) -> list[Path]:
    """Writes `subject` in each of `formats` and gives what to open: a file, or the folder of "hf",
    which is `folder` itself where it is the only format.
    """
    artifacts = [one for one in formats if one in ARTIFACTS]
    hf = new_folder(folder / "hf" if artifacts else folder) if "hf" in formats else None
    written = write_artifacts(subject, folder, artifacts, options) if artifacts else []
    if hf is not None:
        write_hf(subject, hf)
        written.append(hf)
    return written


def new_folder(folder: Path) -> Path:
    """The same folder, unless something is there: nothing is written over or mixed up."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no empty folder: give another one")
    return folder
