"""`rfdetr export`: a checkpoint for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from rfdetr.cli.options import Checkpoint


def export(
    checkpoint: Checkpoint,
    /,
    *,
    format: str = "hf",
    resolution: int | None = None,
    out: Annotated[Path | None, Parameter(name=["--out", "--output-dir"])] = None,
) -> None:
    """Write a checkpoint in the files of another program, into a new folder.

    Args:
        format: "hf": config.json, model.safetensors, preprocessor_config.json and README.md, which
            `transformers` reads as `rf_detr`.
        resolution: Side of the network's input in pixels, in place of the file's.
        out: The folder: CHECKPOINT without its ending, and "-hf", by default.
    """
    from rfdetr.variants import RFDETR

    folder = out or Path(f"{Path(checkpoint).with_suffix('')}-{format}")
    chosen: dict[str, Any] = {} if resolution is None else {"resolution": resolution}
    detector = RFDETR.from_checkpoint(checkpoint, device="cpu", **chosen)
    written = detector.export(folder, format=format)
    print(f"{written}: {', '.join(sorted(path.name for path in written.iterdir()))}")
