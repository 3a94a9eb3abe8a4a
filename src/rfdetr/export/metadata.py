"""What an artifact says of itself, so that whoever runs it need not know the model it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)
from torch import Tensor

from rfdetr._version import __version__
from rfdetr.config import variant_name
from rfdetr.config.fields import Json, fault_lines
from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD
from rfdetr.errors import InputError
from rfdetr.export.card import Subject

SCHEMA = 1
KEY = "rfdetr"
"""Under which an artifact holds the JSON: in ONNX's metadata_props, OpenVINO's rt_info, ..."""
INPUT, BOXES, LOGITS, MASKS = "input", "dets", "labels", "masks"
"""Names of input and outputs, which are those of the published package's artifacts."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(_Part):
    """The one input: images of one size, uint8 or normalised by `mean` and `std` (of [0, 1])."""

    name: str = INPUT
    dtype: Literal["float32", "uint8"]
    layout: Literal["NCHW"] = "NCHW"
    channels: Literal["RGB"] = "RGB"
    height: PositiveInt
    width: PositiveInt
    mean: list[float] = list(IMAGENET_MEAN)
    std: list[float] = list(IMAGENET_STD)
    batch: Literal["dynamic"] | PositiveInt = "dynamic"


class Resize(_Part):
    """How an image gets the input's size."""

    policy: Literal["stretch"] = "stretch"
    filter: Literal["bilinear"] = "bilinear"
    antialias: Literal[True] = True


class Outputs(_Part):
    """Names of the outputs: boxes (B, Q, 4) cxcywh relative to the image, logits (B, Q, K), and
    mask logits (B, Q, h, w).
    """

    boxes: str = BOXES
    logits: str = LOGITS
    masks: str | None


class Metadata(_Part):
    """Everything that running an artifact takes; the same text is inside it and beside it."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    program: Literal["rfdetr"] = "rfdetr"
    version: str = __version__
    variant: str | None
    task: Literal["detect", "segment"]
    classes: dict[int, str]
    """Name of each logit that stands for a class; the others, `background`, are not reported."""
    background: list[int]
    num_logits: PositiveInt
    num_queries: PositiveInt
    num_select: PositiveInt
    patch_size: PositiveInt
    input: Input
    resize: Resize = Resize()
    outputs: Outputs
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """Arithmetic: what an engine must be told where the file alone does not decide it."""
    opset: PositiveInt | None = None
    weights_sha256: str
    certificate: dict[str, Any] | None = None
    notes: Json = None

    @model_validator(mode="after")
    def _names_what_is_there(self) -> Metadata:
        if self.num_select > (most := self.num_queries * self.num_logits):
            raise InputError(f"num_select is {self.num_select}: expected at most {most}")
        if not {*self.classes} or not {*self.classes} <= {*range(self.num_logits)}:
            told = f"classes have the logits {sorted(self.classes)}"
            raise InputError(f"{told}: expected some of 0 to {self.num_logits - 1}")
        if (self.task == "segment") != (self.outputs.masks is not None):
            told = f'task is "{self.task}", and the output of masks {self.outputs.masks}'
            raise InputError(f"{told}: a segmentation model has one, a detector has none")
        return self

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By name, what belongs to one image: its pixels, boxes and logits."""
        return {
            self.input.name: (3, self.input.height, self.input.width),
            self.outputs.boxes: (self.num_queries, 4),
            self.outputs.logits: (self.num_queries, self.num_logits),
        }

    def to_json(self) -> str:
        """One object, indented."""
        return self.model_dump_json(by_alias=True, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Metadata:
        """The metadata of the artifact `source`; `InputError` where it is another program's, or of
        another schema.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            expected = f"expected that of rfdetr, schema {SCHEMA}"
            raise InputError(f"{source}: metadata: {expected}; {fault_lines(error)[0]}") from error


def metadata_of(subject: Subject, input: Input, opset: int | None = None) -> Metadata:
    """What the artifacts of `subject` say; `dtype` and `certificate` are told later."""
    config, labels = subject.config, dict(subject.labels)
    variant = variant_name(config)
    num_logits = config.num_classes + 1
    return Metadata(
        variant=variant and f"rfdetr-{variant}",
        task="segment" if config.segmentation_head else "detect",
        classes=labels,
        background=[logit for logit in range(num_logits) if logit not in labels],
        num_logits=num_logits,
        num_queries=config.num_queries,
        num_select=config.num_select,
        patch_size=config.patch_size,
        input=input,
        outputs=Outputs(masks=MASKS if config.segmentation_head else None),
        opset=opset,
        weights_sha256=digest_of_tensors(subject.state),
        notes=subject.notes,
    )


def digest_of_tensors(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors' names and float32 bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        values = state[name].detach().float().cpu().contiguous().numpy()
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
