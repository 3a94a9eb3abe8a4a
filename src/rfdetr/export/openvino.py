"""OpenVINO: the fastest on processors, in float32, bfloat16 or int8."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rfdetr.errors import InputError, needs_extra
from rfdetr.export.metadata import KEY, Metadata
from rfdetr.export.onnx import onnx_model
from rfdetr.export.onnx import require as require_onnx
from rfdetr.export.program import quiet

if TYPE_CHECKING:
    from onnx import ModelProto
    from openvino import Core, Model
    from torch.export import ExportedProgram

Dtype: TypeAlias = Literal["float32", "bfloat16", "int8"]
PRECISIONS: dict[str, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
"""What INFERENCE_PRECISION_HINT must be for an artifact of each dtype. Without it, OpenVINO chooses
by the processor; int8 layers are int8 whatever it says, what is between them bfloat16, or float32
on processors without it.
"""
HINT = ["runtime_options", "INFERENCE_PRECISION_HINT"]
"""Where an artifact's rt_info says so. Whoever compiles it sets the property by it."""
QUANTIZED = ("network.encoder", "network.projector")
"""Modules computed in int8. Proposals, decoder and heads choose among queries that are nearly
equal: what is lost there changes which objects are found.
"""


SENSITIVE, FIRST_BLOCK = ("rfdetr-mini", "rfdetr-seg-mini"), "network.encoder.blocks.0."
"""Variants whose first block bfloat16 rounds too far, for which it goes `in_two_parts`. On three
sets of drawn scenes bfloat16 cost RFDETRMini 0.32 points of mAP 50:95, and with this 0.14, for 4 %
of the time; RFDETRNano would pay 5 %.
"""


@cache
def core() -> Core:
    """OpenVINO's entrance, one for the whole process, which it outlives.

    Each one's CPU plugin gives its thread a stack for signal handlers and frees it when it goes.
    Where two of them overlap, or the last goes in another thread, the freed stack stays in use, and
    the next signal with a handler (a loader's worker that ends, say) ends the process.
    """
    import openvino

    return openvino.Core()


def require(dtype: str) -> None:
    """Imports what writing `dtype` takes; says what to install."""
    require_onnx()
    with needs_extra("export", "OpenVINO"):
        import openvino  # noqa: F401
    if dtype == "int8":
        with needs_extra("int8", "int8"), _no_telemetry(), quiet():
            import nncf  # noqa: F401


def openvino_model(
    source: ExportedProgram | ModelProto,
    metadata: Metadata,
    *,
    dtype: Dtype = "float32",
    calibration: Iterable[NDArray[np.uint8]] | None = None,
) -> Model:
    """The program, or the ONNX model made of it, for OpenVINO.

    Execution is in `dtype`; weights of all but int8 stay float32. int8 needs `calibration`: images
    (1, 3, H, W) uint8 like those it will see, some hundreds.
    """
    require(dtype)
    from torch.export import ExportedProgram

    metadata = metadata.model_copy(update={"dtype": dtype})
    onnx = onnx_model(source, metadata) if isinstance(source, ExportedProgram) else source
    model = core().read_model(io.BytesIO(onnx.SerializeToString()))
    if dtype == "int8":
        model = quantized(model, metadata, calibration)
    if dtype == "bfloat16" and metadata.variant in SENSITIVE:
        in_two_parts(model, FIRST_BLOCK)
    model.set_rt_info(PRECISIONS[dtype], HINT)
    model.set_rt_info(metadata.to_json(), KEY)
    return model


def save(model: Model, path: Path) -> None:
    """Writes two files, `path` and its weights (.bin), as they are: in float32."""
    import openvino

    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # of a stream: its reason is lost
        free = shutil.disk_usage(path.parent).free / 1e6
        told = f"{path.name} could not be written to {path.parent}: {free:,.1f} MB are free there"
        raise OSError(told) from error


def stamp(source: Path, metadata: Metadata, path: Path) -> None:
    """Copies an .xml file and its .bin, with other metadata."""
    model = core().read_model(source)
    model.set_rt_info(metadata.to_json(), KEY)
    save(model, path)


def in_two_parts(model: Model, module: str) -> None:
    """Has `module` multiply by its weights rounded to bfloat16 and by what rounding has taken, each
    in a product of its own, whose sum the network goes on with.
    """
    from openvino import opset8 as operators

    inside = (o for o in model.get_ordered_ops() if o.get_friendly_name().startswith(module))
    for product in [one for one in inside if one.get_type_name() == "MatMul"]:
        weights = product.input_value(1).get_node()
        if weights.get_type_name() != "Constant":  # a product of attention
            continue
        whole = torch.from_numpy(weights.data.copy())
        rounded = whole.bfloat16().float()
        turned = product.get_attributes()
        parts = [
            operators.matmul(
                product.input_value(0),
                operators.constant(part.numpy()),
                turned["transpose_a"],
                turned["transpose_b"],
            )
            for part in (rounded, whole - rounded)
        ]
        product.output(0).replace(operators.add(*parts).output(0))


def quantized(
    model: Model, metadata: Metadata, calibration: Iterable[NDArray[np.uint8]] | None
) -> Model:
    """`model` with the matrix products of encoder and projector in int8, the rest as floats."""
    if calibration is None:
        raise InputError("int8 needs calibration: images like those that the model will see")
    require("int8")
    import nncf

    settings: dict[str, Any] = {}
    if metadata.outputs.masks:  # nncf smooths what it is told to ignore, and fails at the mask head
        never = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
        advanced = nncf.AdvancedQuantizationParameters(smooth_quant_alphas=never)
        settings = {"advanced_parameters": advanced}
    with quiet():
        images = [as_input(image, metadata) for image in calibration]
        quantized: Model = nncf.quantize(
            model,
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=float_operations(model), validate=False),
            **settings,
        )
    return quantized


def float_operations(model: Model) -> list[str]:
    """Names of the operations that neither are in `QUANTIZED` modules nor lead to one there.

    The second: what the reader of ONNX makes of one node has names of its own but for the last.
    """
    inside: set[str] = set()
    for operation in reversed(model.get_ordered_ops()):
        name = operation.get_friendly_name()
        if name in inside or name.startswith(QUANTIZED):
            inside.add(name)
            sources = (value.get_source_output().get_node() for value in operation.inputs())
            inside.update(node.get_friendly_name() for node in sources)
    names = (operation.get_friendly_name() for operation in model.get_ordered_ops())
    return [name for name in names if name not in inside]


def as_input(image: NDArray[np.uint8], metadata: Metadata) -> NDArray[Any]:
    """(1, 3, H, W) uint8 as the artifact's input takes it."""
    if metadata.input.dtype == "uint8":
        return image
    constants = np.array([metadata.input.mean, metadata.input.std], np.float32)
    mean, std = constants.reshape(2, 3, 1, 1)
    return (image / np.float32(255) - mean) / std


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """Has nncf, imported inside, send nothing: it reports its use unless told that it is tested."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
