"""Checks of plain arguments: an error is one line of what was found and what was expected."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from rfdetr.errors import InputError, InputExistsError, InputTypeError

MOST = 1_000_000  # of anything that is counted; more is a slip of the keyboard and fills the memory
LEAST_TILE = 32
"""Pixels of a tile's sides at least; a smaller one is a slip, and thousands of network calls."""
MOST_OVERLAP = 0.9
"""Of two neighbours: with more, every pixel would be in a hundred tiles."""
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 80, 80


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number (NumPy's too, no boolean) from `least` to `MOST`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        expected = f"a whole number of {least} or more"
        raise InputTypeError(f"{name} is {shown(value)}: expected {expected}")
    if value < least:
        raise InputError(f"{name} is {value}: expected {least} or more")
    if int(value) > MOST:
        raise InputError(f"{name} is {short(value)}: expected {MOST:,} or less")
    return int(value)


def check_share(name: str, value: Any, most: float = 1) -> float:
    """A number from 0 to `most`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputTypeError(f"{name} is {shown(value)}: expected a number from 0 to {most}")
    share = float(value)
    if not 0 <= share <= most:  # true for NaN
        raise InputError(f"{name} is {value}: expected a number from 0 to {most}")
    return share


def check_tile(name: str, value: Any) -> tuple[int, int]:
    """A side in pixels, or (height, width), as (height, width)."""
    pair = value if isinstance(value, Sequence) else (value, value)
    if isinstance(value, str) or len(pair) != 2:
        raise InputTypeError(f"{name} is {shown(value)}: expected pixels, or (height, width)")
    height, width = (check_count(name, side, LEAST_TILE) for side in pair)
    return height, width


def check_overlap(name: str, value: Any) -> float:
    """A share of a tile's side, from 0 to `MOST_OVERLAP`."""
    return check_share(name, value, MOST_OVERLAP)


def check_path(name: str, value: Any) -> Path:
    """A path as text or path object, which need not exist; `~` is the user's home."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise InputTypeError(f"{name} is {shown(value)}: expected a path, as text or pathlib.Path")
    return Path(os.path.expanduser(plain_path(name, path)))


def check_folder(name: str, value: Any) -> Path:
    """`check_path` of a folder, which need not exist: neither it nor what it is in is a file."""
    folder = check_path(name, value)
    there = next((place for place in (folder, *folder.parents) if place.exists()), None)
    if there and not there.is_dir():
        raise InputExistsError(f"{name} is {folder}: {there} is no folder; choose another")
    return folder


def check_new_folder(name: str, value: Any) -> Path:
    """`check_folder` that is not there, or empty: nothing is written over or mixed up."""
    folder = check_folder(name, value)
    if folder.exists() and any(folder.iterdir()):
        raise InputExistsError(
            f"{folder}: no empty folder; nothing is overwritten, choose another for {name}"
        )
    return folder


def plain_path(name: str, path: str) -> str:
    """The same text, unless no file can have that name."""
    if not path:
        raise InputError(f"{name} is empty: expected a path")
    if "\0" in path:
        raise InputError(f"{name} is {path!r}: a path holds no null character")
    return path


def check_kind(name: str, value: Any, *kinds: type) -> None:
    """An instance of one of the classes."""
    if not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise InputTypeError(f"{name} is {shown(value)}: expected {expected}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one resembles most; None where none resembles it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def shown(value: Any) -> str:
    """A value and its type, short enough for a message."""
    return f"{short(value)} ({type(value).__name__})"


def short(value: Any) -> str:
    """A value's repr in 80 characters. (The whole of nested YAML aliases fills the memory.)"""
    text = _REPR.repr(value)
    return text if len(text) <= _REPR.maxother else text[: _REPR.maxother - 3] + "..."
