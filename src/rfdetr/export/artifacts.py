"""Artifacts: the network for other runtimes, each a file (or two), with what reads it beside it."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.errors import InputError
from rfdetr.export import rfdetr_decode
from rfdetr.export.card import Subject
from rfdetr.export.metadata import KEY, Input, Metadata, metadata_of
from rfdetr.export.onnx import DEFAULT_OPSET, onnx_model
from rfdetr.export.openvino import Dtype, openvino_model
from rfdetr.export.program import InputDtype, exported

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

logger = logging.getLogger(__name__)

NAME = "inference_model"
_ENDINGS = {"float32": "", "bfloat16": "-bf16", "int8": "-int8"}


class Options(NamedTuple):
    """How artifacts are written."""

    size: tuple[int, int]
    """Height and width of the input, pixels."""
    dtype: Dtype = "float32"
    """Arithmetic of those formats that have a choice; the others are float32."""
    input_dtype: InputDtype = "float32"
    batch: int | None = None
    """Images at a time; None: any number."""
    opset: int = DEFAULT_OPSET
    name: str = NAME
    """Of the files, without an ending."""
    calibration: Iterable[NDArray[np.uint8]] | None = None
    """For int8: images (1, 3, *size) uint8."""
    overwrite: bool = False


class Work:
    """What the artifacts of one model share: each step is done once, when it is first needed."""

    def __init__(self, subject: Subject, options: Options) -> None:
        self.subject, self.options = subject, options
        height, width = options.size
        batch = options.batch or "dynamic"
        input = Input(dtype=options.input_dtype, height=height, width=width, batch=batch)
        self.metadata = metadata_of(subject, input).model_copy(update={"opset": options.opset})

    @cached_property
    def program(self) -> ExportedProgram:
        """The traced network."""
        logger.info("tracing the network ...")
        options = self.options
        kind = {"input_dtype": options.input_dtype, "batch": options.batch}
        return exported(self.subject.detector, options.size, **kind)  # type: ignore[arg-type]

    @cached_property
    def onnx(self) -> ModelProto:
        """The network in ONNX's operators."""
        program = self.program
        logger.info("writing it in ONNX's operators: some 20 seconds ...")
        return onnx_model(program, self.metadata, self.options.opset)


def _write_onnx(work: Work, path: Path) -> Metadata:
    path.write_bytes(work.onnx.SerializeToString())
    return work.metadata


def _write_openvino(work: Work, path: Path) -> Metadata:
    dtype, onnx = work.options.dtype, work.onnx
    if dtype == "int8":
        logger.info("quantizing for int8: some minutes ...")
    import openvino

    how = {"dtype": dtype, "calibration": work.options.calibration}
    model = openvino_model(onnx, work.metadata, **how)  # type: ignore[arg-type]
    openvino.save_model(model, path, compress_to_fp16=False)
    return work.metadata.model_copy(update={"dtype": dtype})


def _write_pt2(work: Work, path: Path) -> Metadata:
    import torch

    torch.export.save(work.program, path, extra_files={KEY: work.metadata.to_json()})
    return work.metadata


class Format(NamedTuple):
    """A kind of artifact."""

    endings: tuple[str, ...]
    """Of its files, that of the one to open last."""
    write: Callable[[Work, Path], Metadata]
    dtypes: tuple[str, ...] = ("float32",)


ARTIFACTS: Mapping[str, Format] = {
    "onnx": Format((".onnx",), _write_onnx),
    "openvino": Format((".bin", ".xml"), _write_openvino, ("float32", "bfloat16", "int8")),
    "pt2": Format((".pt2",), _write_pt2),
}


def write_artifacts(
    subject: Subject, folder: Path, formats: Sequence[str], options: Options
) -> list[Path]:
    """Writes an artifact for each of `formats` into `folder`, and gives the files to open.

    Beside each lie its metadata and rfdetr_decode.py. What is there already is an `InputError`
    unless `options.overwrite`.
    """
    work = Work(subject, options)
    written = []
    for format in formats:
        kind = ARTIFACTS[format]
        dtype = options.dtype if options.dtype in kind.dtypes else "float32"
        stem = options.name + _ENDINGS[dtype]
        if not options.overwrite:
            refuse_existing(folder / f"{stem}{ending}" for ending in kind.endings)
    for format in formats:
        kind = ARTIFACTS[format]
        dtype = options.dtype if options.dtype in kind.dtypes else "float32"
        stem = options.name + _ENDINGS[dtype]
        with beside(folder) as place:
            metadata = kind.write(work, place / f"{stem}{kind.endings[-1]}")
            (place / f"{stem}.rfdetr.json").write_text(metadata.to_json())
            shutil.copy(rfdetr_decode.__file__, place / "rfdetr_decode.py")
            for name in [*(f"{stem}{ending}" for ending in kind.endings)]:
                os.replace(place / name, folder / name)
            for name in (f"{stem}.rfdetr.json", "rfdetr_decode.py"):
                os.replace(place / name, folder / name)
        written.append(folder / f"{stem}{kind.endings[-1]}")
    return written


def refuse_existing(paths: Iterable[Path]) -> None:
    """`InputError` for the first that exists."""
    for path in paths:
        if path.exists():
            raise InputError(f"{path} exists: give another output_dir, or overwrite=True")


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`, so that what is written there can be renamed into place."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as place:
        yield Path(place)
