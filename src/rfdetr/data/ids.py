"""Ids of annotation files: whole numbers, or what tools write for them (`"7"`, `7.0`, UUIDs)."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rfdetr.errors import InputError

Key: TypeAlias = "int | str"

NO_ID = -1  # in arrays, where a record has none
_EXACT = 2**53  # metrics compare ids as float64, which holds whole numbers below this one
_LONGEST = 1000  # digits; Python refuses to read thousands
_FIRST_CODE = -(2**63)
_LAST_CODE = -(2**62)


def id_key(value: Any) -> Key | None:
    """The id that a JSON value means: `7`, `7.0` and `"7"` are 7, other text stands for itself;
    None for a value that is no id.
    """
    if isinstance(value, str):
        is_number = value.removeprefix("-").isdecimal() and len(value) <= _LONGEST
        return int(value) if is_number else value or None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None


def are_exact(codes: NDArray[np.int64]) -> bool:
    """Whether all codes are the file's own numbers, and small enough for every later use."""
    return bool(((codes > -_EXACT) & (codes < _EXACT)).all())


class IdCodes:
    """64-bit numbers for the ids of one file: 7 stands for itself, the first UUID gets -2**63, the
    next one -2**63 + 1.
    """

    def __init__(self) -> None:
        self.odd = 0
        """How many ids were not written as whole numbers; `example` is the first."""
        self.example: Any = None
        self._codes: dict[Key, int] = {}
        self._keys: list[Key] = []  # the same in order

    def code(self, value: Any) -> int:
        """The number of an id; an `InputError` if the value can be none."""
        key = id_key(value)
        if key is None:
            raise InputError("no id")
        if not isinstance(value, int):
            self.example = self.example if self.odd else value
            self.odd += 1
        if isinstance(key, int) and _LAST_CODE < key < -_FIRST_CODE:
            return key
        if key not in self._codes:
            self._codes[key] = _FIRST_CODE + len(self._keys)
            self._keys.append(key)
        return self._codes[key]

    def key(self, code: int) -> Key:
        """The id that a number stands for."""
        place = code - _FIRST_CODE
        return self._keys[place] if place < len(self._keys) else code
