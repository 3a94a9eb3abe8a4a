"""ONNX, which every runtime reads: dynamic batch, named outputs, the metadata inside."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from rfdetr.errors import needs_extra
from rfdetr.export.metadata import KEY, Metadata
from rfdetr.export.program import quiet

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from torch.export import ExportedProgram

OPSETS = range(18, 24)
"""Versions of ONNX's operators that torch's exporter writes by itself."""
DEFAULT_OPSET = 20
_SCOPES = "pkg.torch.onnx.name_scopes"


def require(_dtype: str = "float32") -> None:
    """Imports what writing ONNX takes and what runs it, to prove it; says what to install."""
    with needs_extra("export", "ONNX"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def onnx_model(
    program: ExportedProgram, metadata: Metadata, opset: int = DEFAULT_OPSET
) -> ModelProto:
    """The program as an ONNX model of one file.

    Its nodes are named after the modules they come from ("network.decoder.layers.0/node_linear_3"),
    which says what to leave out of a conversion to fewer bits.
    """
    require()
    import torch

    outputs = [name for name in metadata.outputs.model_dump().values() if name]
    with quiet():
        made = torch.onnx.export(
            program,
            input_names=[metadata.input.name],
            output_names=outputs,
            opset_version=opset,
            optimize=True,
            external_data=False,
            verbose=False,
        )
    if made is None:
        raise AssertionError("torch.onnx.export gives no program only when it is given a file")
    model: ModelProto = made.model_proto
    for node in model.graph.node:
        node.name = f"{scope_of(node)}/{node.name}"
    model.producer_name, model.producer_version = metadata.program, metadata.version
    return _with(metadata, model)


def _with(metadata: Metadata, model: ModelProto) -> ModelProto:
    from onnx import helper

    helper.set_model_props(model, {KEY: metadata.to_json()})
    return model


def save(model: ModelProto, path: Path) -> None:
    """Writes one file."""
    path.write_bytes(model.SerializeToString())


def stamp(source: Path, metadata: Metadata, path: Path) -> None:
    """Copies a .onnx file, with other metadata."""
    import onnx

    save(_with(metadata, onnx.load(source)), path)


def scope_of(node: NodeProto) -> str:
    """The module a node comes from, as its parent calls it: "network.encoder.blocks.0"."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            modules = [name for name in ast.literal_eval(entry.value)[:-1] if name]
            return str(modules[-1]) if modules else ""
    return ""
