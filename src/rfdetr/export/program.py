"""The network as one program of tensors, from which every artifact is made."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD
from rfdetr.export.metadata import KEY, Metadata
from rfdetr.models.detector import Detector

if TYPE_CHECKING:
    from torch.export import ExportedProgram

InputDtype: TypeAlias = Literal["float32", "uint8"]

_QUIET = threading.RLock()
_TALKATIVE = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir", "nncf")


class Exportable(nn.Module):
    """A private copy of `detector` in float32 on the CPU, as other programs run it.

    For images of one `size` (height, width): position embeddings are resampled to it beforehand,
    which no other program's operators do. The detector itself is not changed.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, detector: Detector, size: tuple[int, int], input_dtype: InputDtype = "float32"
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(detector).float().cpu().eval().requires_grad_(False)
        self.normalizes = input_dtype == "uint8"
        constants = torch.tensor((IMAGENET_MEAN, IMAGENET_STD)).mul(255).view(2, 3, 1, 1)
        self.register_buffer("mean", constants[0], persistent=False)
        self.register_buffer("deviation", constants[1], persistent=False)
        encoder = self.network.encoder
        grid = encoder.grid_of(torch.empty(1, 3, *size, device="meta"))
        positions = encoder.positions(grid).detach()
        encoder.positions = lambda _: positions  # type: ignore[method-assign, assignment]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W), uint8 or normalised, to boxes (B, Q, 4) cxcywh relative to the
        image, logits (B, Q, K) and, with a segmentation head, mask logits (B, Q, h, w).
        """
        if self.normalizes:
            images = (images.float() - self.mean) / self.deviation
        return tuple(part for part in self.network(images).result() if part is not None)


def exported(
    detector: Detector,
    size: tuple[int, int],
    *,
    input_dtype: InputDtype = "float32",
    batch: int | None = None,
) -> ExportedProgram:
    """The program of `Exportable`: one input "images", for any number of images or exactly `batch`.

    It is traced with two images: one would be taken for a constant.
    """
    dtype = torch.uint8 if input_dtype == "uint8" else torch.float32
    images = torch.zeros(batch or 2, 3, *size, dtype=dtype)
    shapes = {"images": {0: torch.export.Dim("batch")}} if batch is None else None
    network = Exportable(detector, size, input_dtype).eval()
    with quiet(), torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=shapes, strict=False)


def save(program: ExportedProgram, path: Path, metadata: Metadata) -> None:
    """Writes a .pt2 file, which `torch.export.load` reads."""
    with quiet():
        torch.export.save(program, path, extra_files={KEY: metadata.to_json()})


def stamp(source: Path, metadata: Metadata, path: Path) -> None:
    """Copies a .pt2 file, with other metadata."""
    with quiet():
        program = torch.export.load(source)
    save(program, path, metadata)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what exporters print, warn and log below errors from the user: it tells them nothing
    that they could act on. One thread at a time: what is set aside belongs to the whole process.
    """
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    with _QUIET:
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            with (
                warnings.catch_warnings(),
                redirect_stdout(io.StringIO()),
                redirect_stderr(io.StringIO()),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
