"""`supervision`, the library that holds detections for users, imported when first needed."""

from __future__ import annotations

import functools
import threading
import warnings
from types import ModuleType

_FIRST_USE = threading.Lock()


@functools.cache
def import_supervision() -> ModuleType:
    """The module, without its warning that OpenCV is absent, which no part used here needs."""
    # Warning filters belong to the process: two threads that change them must not interleave.
    with _FIRST_USE, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OpenCV")
        import supervision
    return supervision
