"""`ExportConfig`: how a model is written for other programs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rfdetr import compat
from rfdetr.config import fields
from rfdetr.config.fields import NonNegativeFloat, PositiveInt, Side
from rfdetr.errors import InputError

__all__ = ["ExportConfig"]

_DTYPES = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16"}


def _dtype_name(value: Any) -> Any:
    """The name of a torch.dtype, or what a short one stands for; anything else as it is."""
    text = str(value).removeprefix("torch.")
    return _DTYPES.get(text, text if type(value).__name__ == "dtype" else value)


def _file_stem(value: str) -> str:
    if (
        not value.strip()
        or value.startswith(".")
        or not value.isprintable()
        or {*"/\\:"} & {*value}
    ):
        raise InputError("expected the name of a file, without a folder")
    return value


class ExportConfig(fields.StrictConfig):
    """How a model is written for other programs. A folder for transformers needs none of it."""

    PLACE = "export({setting})"
    PUBLISHED = compat.EXPORT

    dtype: Annotated[Literal["float32", "bfloat16", "int8"], BeforeValidator(_dtype_name)] = (
        "float32"
    )
    """Arithmetic of OpenVINO's network; the other formats are float32."""
    input_dtype: Annotated[Literal["float32", "uint8"], BeforeValidator(_dtype_name)] = "float32"
    """Of the images: "float32" normalised by mean and deviation, "uint8" as they are."""
    opset_version: Annotated[int, Field(ge=17, le=23)] = 20
    """Version of ONNX's operators, 18 to 23; of 17, the published default, 18 is made."""
    batch_size: PositiveInt | None = None
    """Images at a time, exactly; None: any number."""
    dynamic_batch: bool | None = None
    """True: any number of images at a time, whatever batch_size says."""
    shape: tuple[Side, Side] | None = None
    """Height and width of the input, pixels; None: the model's resolution."""
    calibration_data: Any = None
    """Images for int8: a data set's folder, or what `predict` takes; None: the run's data set."""
    max_images: PositiveInt = 200
    """Images of calibration_data that are used, spread evenly."""
    output_name: Annotated[str, AfterValidator(_file_stem)] | None = None
    """Name of the files, without ending; None: inference_model."""
    notes: fields.Json = None
    """The user's own, kept with the artifact."""
    overwrite: bool = False
    """Write over an artifact of the same name."""
    verify: Any = None
    """Labelled data set on which artifacts are compared with the model; None: that of the run that
    left the weights, where it is at hand; True: that one, or an error; False: none.
    """
    max_loss: NonNegativeFloat = 0.5
    """Points of mAP 50:95 that an artifact may lose on it; more is an error."""
