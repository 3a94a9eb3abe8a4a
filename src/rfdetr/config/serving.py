"""`ServeConfig`: what a server takes, and how long it works on it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rfdetr.config import fields
from rfdetr.config.fields import PositiveFloat, PositiveInt

__all__ = ["ServeConfig"]


class ServeConfig(fields.StrictConfig):
    """What `rfdetr serve` takes: requests beyond it are answered with what was expected."""

    PLACE = "rfdetr serve --{setting}"

    batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    """Images that the network sees at once, of those that have come while it was busy."""
    queue: PositiveInt = 100
    """Requests in hand; more are answered with 503."""
    max_bytes: Annotated[int, Field(ge=1024, le=2**30)] = 20 * 2**20
    """Bytes of a request's body."""
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 64_000_000
    """Pixels of an image, by its header: it is not decoded before."""
    timeout: PositiveFloat = 30.0
    """Seconds for a request to arrive, and again for its answer."""
    stop_timeout: PositiveFloat = 10.0
    """Seconds that a stopping server has for what is in hand."""
