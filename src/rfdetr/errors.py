"""The errors that are meant for the user: the command line shows their message alone, and a
traceback of all others.

A class below is raised in place of the built-in one that it is derived from, so that `except
ValueError` catches what it did. Of built-in ones, `OSError` (files, network), `FloatingPointError`
and `MemoryError` are shown in the same way.
"""

from __future__ import annotations


class InputError(ValueError):
    """Something given to the package cannot be: the message names it, what was found, and what was
    expected.
    """


class InputTypeError(InputError, TypeError):
    """Something given to the package is of a wrong type."""


class RunError(RuntimeError):
    """Work that was begun cannot go on or has failed, though all that was given was right."""


class MissingPackageError(ImportError):
    """An optional package is needed and not installed: the message says how to install it."""
