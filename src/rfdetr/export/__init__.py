"""A trained detector for other programs: `ARTIFACTS`, which a runtime runs, and the folder that
transformers reads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rfdetr.checks import check_new_folder, nearest, short
from rfdetr.config import ExportConfig
from rfdetr.errors import InputError
from rfdetr.export.artifacts import ARTIFACTS, NAME, Options, artifacts_of
from rfdetr.export.calibration import calibration_images, data_of_run
from rfdetr.export.card import Subject
from rfdetr.export.hf import write_hf
from rfdetr.export.onnx import OPSETS

__all__ = ["FORMATS", "Options", "Subject", "formats_in", "options_of", "writer_of"]

FORMATS = (*ARTIFACTS, "hf")


def formats_in(format: Any) -> list[str]:
    """The formats of "onnx,openvino" or of a list, each once; `InputError` for an unknown one."""
    parts = format.split(",") if isinstance(format, str) else format
    named = isinstance(parts, Sequence) and all(isinstance(part, str) for part in parts)
    formats = list(dict.fromkeys(part.strip() for part in parts)) if named else []
    if not formats or any(one not in FORMATS for one in formats):
        unknown = next((one for one in formats if one not in FORMATS), format)
        near = nearest(unknown, FORMATS) if isinstance(unknown, str) else None
        hint = f"; did you mean {near!r}?" if near else ""
        there = ", ".join(map(repr, FORMATS))
        raise InputError(f"format is {short(unknown)}{hint}: the formats are {there}")
    return formats


def options_of(config: ExportConfig, formats: Sequence[str], subject: Subject) -> Options:
    """How `subject` is written. Raises `InputError` for a `dtype` or `shape` that `formats` cannot
    have; what else has no effect on them, a warning tells.
    """
    size = config.shape or subject.config.input_size
    kinds = [ARTIFACTS[one] for one in formats if one in ARTIFACTS]
    if "hf" in formats and config.shape not in (None, subject.config.input_size):
        raise InputError(f'shape={size} is not of "hf": load the model with another resolution=')
    if kinds and not any(config.dtype in kind.dtypes for kind in kinds):
        told = f'dtype="{config.dtype}" is of OpenVINO, and {", ".join(formats)} is of float32'
        raise InputError(f'{told}: give format="openvino"')
    subject.detector.encoder.grid_of(torch.empty(1, 3, *size, device="meta"))
    unused = []
    if kinds and config.opset_version < OPSETS[0]:
        unused.append(f"opset_version={config.opset_version} ({OPSETS[0]} is the lowest written)")
    if kinds and config.dtype != "int8" and config.calibration_data is not None:
        unused.append('calibration_data (it is of dtype="int8")')
    if unused:
        warnings.warn(f"without effect here: {'; '.join(unused)}", stacklevel=4)
    return Options(
        size=size,
        dtype=config.dtype,
        input_dtype=config.input_dtype,
        batch=None if config.dynamic_batch else config.batch_size,
        opset=max(config.opset_version, OPSETS[0]),
        name=config.output_name or NAME,
        calibration=_calibration(config, size, subject.weights) if config.dtype == "int8" else None,
        overwrite=config.overwrite,
    )


def _calibration(
    config: ExportConfig, size: tuple[int, int], weights: Path | None
) -> list[NDArray[np.uint8]]:
    """The images that int8 is measured on: those given, else of the run that left `weights`."""
    source, layout = config.calibration_data, "roboflow"
    if source is None:
        try:
            data = data_of_run(weights)
        except InputError as error:
            wanted = "calibration_data: a data set's folder or images like those to come"
            raise InputError(f"int8 needs {wanted} ({error})") from error
        source, layout = Path(data["dataset_dir"]), data["dataset_file"]
    return calibration_images(source, size, config.max_images, layout)


def writer_of(
    subject: Subject, folder: Path, formats: Sequence[str], options: Options
) -> Callable[[], list[Path]]:
    """What writes `subject` in each of `formats` and gives what to open: files, and the folder of
    "hf", which is `folder` itself where it is the only format.

    What is in the way is told here, before anything is done.
    """
    artifacts = [one for one in formats if one in ARTIFACTS]
    own = folder / "hf" if artifacts else folder
    hf = check_new_folder("output_dir", own) if "hf" in formats else None
    write_artifacts = artifacts_of(subject, folder, artifacts, options) if artifacts else list

    def write() -> list[Path]:
        written = write_artifacts()
        if hf is not None:
            write_hf(subject, hf)
            written.append(hf)
        return written

    return write
