"""Import paths of the published package."""

from typing import TYPE_CHECKING, Any

from rfdetr.moved import missing

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise missing(__name__, name)
