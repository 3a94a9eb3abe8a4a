"""What goes over the wire: options and answers, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import from_json

from rfdetr.config import ServeConfig
from rfdetr.config.fields import UnitInterval

EXAMPLE_IMAGE = b"GIF87a\1\0\1\0\x80\0\0\0\0\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
"""A whole file, so that the example can be sent: one black pixel."""

Milliseconds = Annotated[float, Field(ge=0)]


def _of_text(value: Any) -> Any:
    """The value that a text holds as JSON: fields of a form and a query are text."""
    return from_json(value) if isinstance(value, str) else value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Options(_Part):
    """What is wanted of an image: parameters of the address, fields of a form, or keys of JSON."""

    threshold: UnitInterval = 0.5
    """Lowest confidence that is reported."""
    thresholds: Annotated[dict[str, UnitInterval], BeforeValidator(_of_text)] = {}
    """Lowest confidence by class name; other classes have `threshold`."""
    masks: bool = False
    """Whether masks are wanted, of a model that has them."""


class JsonRequest(Options):
    """An image and what is wanted of it."""

    image: Annotated[str, Field(min_length=1, json_schema_extra={"contentEncoding": "base64"})]
    """The image file's bytes in base64; a data address is taken too."""


class Mask(_Part):
    """Pixels of an object: COCO's compressed run lengths, column by column."""

    size: tuple[int, int]
    """Height and width of the image."""
    counts: str


class Found(_Part):
    """An object."""

    class_id: int
    class_name: str
    confidence: UnitInterval
    box_xyxy: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the upright image."""
    mask_rle: Mask | None = None


class Times(_Part):
    """Milliseconds: of decoding and resizing, of waiting for the network, of the network (with the
    others of its batch), and from the arrival of the whole request to its answer.
    """

    decode: Milliseconds
    wait: Milliseconds
    network: Milliseconds
    total: Milliseconds


class Answer(_Part):
    """Objects of an image, the surest first; an image stored rotated (EXIF) is turned upright."""

    width: int
    height: int
    threshold: UnitInterval
    detections: list[Found]
    batch: Annotated[int, Field(ge=1)]
    """Images that the network saw together."""
    time_ms: Times


class Info(_Part):
    """What is served."""

    version: str
    """Of rfdetr."""
    variant: str | None
    """ "nano", "seg-mini", ...; null for a network of another design."""
    task: Literal["detect", "segment"]
    classes: dict[int, str]
    """Names by class_id."""
    resolution: tuple[int, int]
    """Height and width that an image is resized to."""
    engine: str
    dtype: str
    device: str
    weights_sha256: str
    """Over the tensors' names and values: that of the certificate of an export of the same
    weights.
    """
    limits: ServeConfig


class Health(_Part):
    """Whether a request would be taken now."""

    status: Literal["ready", "overloaded", "stopping"]
    in_hand: int
    """Requests that are not answered yet."""


class Fault(_Part):
    """Why a request was not answered: what was found, and what was expected."""

    detail: str
