"""The library that holds detections for users, `supervision`, imported when it is first needed."""

from __future__ import annotations

import functools
import threading
import warnings
from types import ModuleType

_FIRST_USE = threading.Lock()


@functools.cache
def import_supervision() -> ModuleType:
    """The module `supervision`. Importing it takes half a second, so nobody does before it is used.

    It warns that OpenCV is absent, which none of its parts that are used here needs.
    """
    # Warning filters belong to the process: two threads that change them must not interleave.
    with _FIRST_USE, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OpenCV")
        import supervision
    return supervision
