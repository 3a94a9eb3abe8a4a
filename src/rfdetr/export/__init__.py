"""A trained detector for other programs. `FORMATS` says which: a new one is an entry there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from rfdetr.checks import short
from rfdetr.errors import InputError
from rfdetr.export.card import Subject
from rfdetr.export.hf import write_hf

__all__ = ["FORMATS", "Subject", "new_folder", "writer_of"]

Writer: TypeAlias = Callable[[Subject, Path], None]
FORMATS: dict[str, Writer] = {"hf": write_hf}
"""What writes each format into a folder that is empty or not there yet."""


def writer_of(format: Any) -> Writer:
    """What writes `format`; `InputError` with the formats there are for another."""
    if isinstance(format, str) and format in FORMATS:
        return FORMATS[format]
    there = ", ".join(map(repr, FORMATS))
    raise InputError(f"format is {short(format)}: the formats written so far are {there}")


def new_folder(folder: Path) -> Path:
    """The same folder, unless something is there: nothing is written over or mixed up."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no empty folder: give another one")
    return folder
