"""The errors that are meant for the user: the command line shows their message alone, and a
traceback of all others.

A class below is raised in place of the built-in one that it is derived from, so that `except
ValueError` catches what it did. Of built-in ones, `OSError` (files, network), `FloatingPointError`
and `MemoryError` are shown in the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Something given to the package cannot be: the message names it, what was found, and what was
    expected.
    """


class InputTypeError(InputError, TypeError):
    """Something given to the package is of a wrong type."""


class InputExistsError(InputError, FileExistsError):
    """Something is where a new file or folder was to be: nothing is written over."""


class RunError(RuntimeError):
    """Work that was begun cannot go on or has failed, though all that was given was right."""


class MissingPackageError(ImportError):
    """An optional package is needed and not installed: the message says how to install it."""


class MovedError(ImportError):
    """A name of the published package is not here: the message says what is in its place."""


@contextlib.contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Says how to install a package that the block imports, for `what`, and does not find."""
    try:
        yield
    except ModuleNotFoundError as error:
        install = f"pip install 'rfdetr-finetune[{extra}]'"
        raise MissingPackageError(f"{what} needs {error.name or extra}: {install}") from error
