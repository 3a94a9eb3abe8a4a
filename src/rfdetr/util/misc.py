"""`rfdetr.utilities` under the name it had before 1.9."""

from typing import TYPE_CHECKING, Any

from rfdetr import utilities
from rfdetr.utilities import *  # noqa: F403

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        return getattr(utilities, name)
