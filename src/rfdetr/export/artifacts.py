"""Artifacts: the network for other runtimes, each a file or two, with what reads it beside it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.errors import InputError
from rfdetr.export import onnx, openvino, program, rfdetr_decode
from rfdetr.export.card import Subject
from rfdetr.export.metadata import Input, Metadata, metadata_of
from rfdetr.files import digest_of, put

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

logger = logging.getLogger(__name__)

NAME = "inference_model"
SIDECAR = ".rfdetr.json"
_DECODER = Path(rfdetr_decode.__file__)
_ENDINGS = {"float32": "", "bfloat16": "-bf16", "int8": "-int8"}


class Options(NamedTuple):
    """How artifacts are written."""

    size: tuple[int, int]
    """Height and width of the input, pixels."""
    dtype: openvino.Dtype = "float32"
    """Arithmetic of the formats that have a choice; the others are float32."""
    input_dtype: program.InputDtype = "float32"
    batch: int | None = None
    """Images at a time; None: any number."""
    opset: int = onnx.DEFAULT_OPSET
    name: str = NAME
    """Of the files, without ending."""
    calibration: Sequence[NDArray[np.uint8]] | None = None
    """For int8: images (1, 3, *size) uint8."""
    overwrite: bool = False


class Work:
    """What the artifacts of one model share: each step is done when it is first needed, once."""

    def __init__(self, subject: Subject, options: Options) -> None:
        self.subject, self.options = subject, options
        height, width = options.size
        batch: Any = options.batch or "dynamic"
        input = Input(dtype=options.input_dtype, height=height, width=width, batch=batch)
        self.metadata = metadata_of(subject, input, options.opset)

    @cached_property
    def program(self) -> ExportedProgram:
        """The traced network."""
        logger.info("export: tracing the network")
        size, batch, kind = self.options.size, self.options.batch, self.options.input_dtype
        return program.exported(self.subject.detector, size, input_dtype=kind, batch=batch)

    @cached_property
    def onnx(self) -> ModelProto:
        """The network in ONNX's operators."""
        traced = self.program
        logger.info("export: to ONNX's operators, opset %d", self.options.opset)
        return onnx.onnx_model(traced, self.metadata, self.options.opset)


def _write_onnx(work: Work, path: Path) -> Metadata:
    onnx.save(work.onnx, path)
    return work.metadata


def _write_openvino(work: Work, path: Path) -> Metadata:
    dtype, images, source = work.options.dtype, work.options.calibration, work.onnx
    if dtype == "int8":
        logger.info("export: quantizing for int8 by %d images, some minutes", len(images or ()))
    model = openvino.openvino_model(source, work.metadata, dtype=dtype, calibration=images)
    openvino.save(model, path)
    return work.metadata.model_copy(update={"dtype": dtype})


def _write_pt2(work: Work, path: Path) -> Metadata:
    program.save(work.program, path, work.metadata)
    return work.metadata


class Format(NamedTuple):
    """A kind of artifact."""

    endings: tuple[str, ...]
    """Of its files; that of the one to open comes last."""
    write: Callable[[Work, Path], Metadata]
    stamp: Callable[[Path, Metadata, Path], object]
    """Copies an artifact, with other metadata inside."""
    require: Callable[[str], object] = str
    """Imports what writing a dtype takes, or says what to install."""
    dtypes: tuple[str, ...] = ("float32",)


ARTIFACTS: Mapping[str, Format] = {
    "onnx": Format((".onnx",), _write_onnx, onnx.stamp, onnx.require),
    "openvino": Format(
        (".bin", ".xml"),
        _write_openvino,
        openvino.stamp,
        openvino.require,
        ("float32", "bfloat16", "int8"),
    ),
    "pt2": Format((".pt2",), _write_pt2, program.stamp),
}


def artifacts_of(
    subject: Subject, folder: Path, formats: Sequence[str], options: Options
) -> Callable[[], list[Path]]:
    """What writes an artifact of each of `formats` into `folder`, and gives the files to open.

    Beside each lie its metadata and rfdetr_decode.py. Unless `options.overwrite`, an artifact that
    is there is an `InputError`, and so are these two where they are of another export or version.
    This, and packages that are missing, are told before anything is done.
    """
    work = Work(subject, options)
    planned = []
    for kind in (ARTIFACTS[format] for format in formats):
        dtype = options.dtype if options.dtype in kind.dtypes else "float32"
        files = _files(options.name + _ENDINGS[dtype], kind)
        if not options.overwrite:
            _refuse_others(folder, files, work.metadata.model_copy(update={"dtype": dtype}))
        kind.require(dtype)
        planned.append((kind, dtype, files))

    def write() -> list[Path]:
        for kind, dtype, files in planned:
            with _beside(folder) as place:
                metadata = kind.write(work, place / files[-1])
                (place / files[0]).write_text(metadata.to_json(), encoding="utf-8")
                shutil.copyfile(_DECODER, place / _DECODER.name)
                if not options.overwrite:  # another export may have ended meanwhile
                    _refuse_others(folder, files, work.metadata.model_copy(update={"dtype": dtype}))
                kept = () if options.overwrite else [n for n in files if (folder / n).exists()]
                for name in files:
                    if name not in kept:
                        put(place / name, folder / name, [digest_of(place / name)])
        return [folder / files[-1] for *_, files in planned]

    return write


def annotate(path: Path, metadata: Metadata) -> None:
    """Puts other `metadata` into the artifact `path` and beside it: once it is proven, say."""
    (kind,) = (kind for kind in ARTIFACTS.values() if kind.endings[-1] == path.suffix)
    sidecar, _, *files = _files(path.stem, kind)
    with _beside(path.parent) as place:
        kind.stamp(path, metadata, place / path.name)
        (place / sidecar).write_text(metadata.to_json(), encoding="utf-8")
        for name in (sidecar, *files):
            put(place / name, path.parent / name, [digest_of(place / name)])


def _files(stem: str, kind: Format) -> list[str]:
    """Names of what belongs to an artifact: metadata, decoder, its own files."""
    return [f"{stem}{SIDECAR}", _DECODER.name, *(f"{stem}{ending}" for ending in kind.endings)]


def _refuse_others(folder: Path, files: Sequence[str], metadata: Metadata) -> None:
    """`InputError` where an artifact is there, or what lies beside it is of another one."""
    sidecar, decoder, *own = (folder / name for name in files)
    found = [f"{path} exists" for path in own if path.exists()]
    if sidecar.exists():
        there = Metadata.from_json(sidecar.read_bytes(), str(sidecar))
        if there.model_copy(update={"certificate": None}) != metadata:
            found.append(f"{sidecar} is of another model, or exported otherwise")
    if decoder.exists() and decoder.read_bytes() != _DECODER.read_bytes():
        found.append(f"{decoder} is of another version")
    if found:
        raise InputError(
            f"{found[0]}: give another output_dir or output_name, or say overwrite (--overwrite)"
        )


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`: what is written there can be renamed into place."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as place:
            yield Path(place)
    except BaseException:
        if is_new:
            with suppress(OSError):  # something is in it
                folder.rmdir()
        raise
