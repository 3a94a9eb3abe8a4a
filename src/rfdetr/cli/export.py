"""`rfdetr export`: a checkpoint for other programs. Every field of `ExportConfig` is an option."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Group, Parameter
from pydantic import BaseModel

from rfdetr.cli.options import Checkpoint, options_of
from rfdetr.config import ExportConfig
from rfdetr.errors import InputError

if TYPE_CHECKING:
    ExportOptions: TypeAlias = BaseModel | None
else:
    ExportOptions = options_of(ExportConfig, Group("Artifacts (not of hf)", sort_key=1))


def export(
    checkpoint: Checkpoint,
    /,
    *,
    format: str = "onnx",
    resolution: str | None = None,
    out: Annotated[Path | None, Parameter(name=["--out", "--output-dir"])] = None,
    no_verify: Annotated[bool, Parameter(negative="")] = False,
    options: ExportOptions = None,
) -> None:
    """Write a checkpoint for other programs, into a new folder.

    Args:
        format: "onnx", "openvino", "pt2" (torch.export), "hf" (a folder that `transformers` reads
            as `rf_detr`), or several: onnx,openvino.
        resolution: Side of the network's input in pixels, or height and width (320x480), in place
            of the file's.
        out: The folder: CHECKPOINT without its ending, and "-onnx" (the format), by default.
        no_verify: Do not compare the artifacts with the checkpoint.
    """
    from rfdetr.variants import RFDETR

    folder = out or Path(f"{Path(checkpoint).with_suffix('')}-{format.replace(',', '-')}")
    chosen: dict[str, Any] = {} if resolution is None else {"resolution": resolution}
    detector = RFDETR.from_checkpoint(checkpoint, device="cpu", **chosen)
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: name a folder")
    settings = {} if options is None else options.model_dump(exclude_unset=True)
    if no_verify and "verify" in settings:
        raise InputError("--verify and --no-verify: give one of them")
    settings |= {"verify": False} if no_verify else {}
    written = detector.export(folder, format=format, **settings)
    for path in written if isinstance(written, list) else [written]:
        print(path)
