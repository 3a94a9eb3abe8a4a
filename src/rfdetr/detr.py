"""The classes of models under their published import path."""

from typing import TYPE_CHECKING, Any

from rfdetr.moved import missing
from rfdetr.published import ModelContext as ModelContext
from rfdetr.variants import *  # noqa: F403

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise missing(__name__, name)
