"""Helpers under their published import path: what of them is here."""

from typing import TYPE_CHECKING, Any

from rfdetr.data.dataset import NestedTensor as NestedTensor
from rfdetr.data.dataset import collate as collate_fn
from rfdetr.moved import missing

__all__ = ["NestedTensor", "collate_fn"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise missing(__name__, name)
