"""`rfdetr export`: a checkpoint for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def export(
    checkpoint: str,
    /,
    *,
    format: str = "hf",
    out: Annotated[Path | None, Parameter(name=["--out", "--output-dir"])] = None,
) -> None:
    """Write a checkpoint in the files of another program, into a new folder.

    Parameters
    ----------
    checkpoint
        File of weights, or the name of a published one.
    format
        "hf": config.json, model.safetensors, preprocessor_config.json and README.md, which
        `transformers` reads as `rf_detr`.
    out
        The folder: CHECKPOINT without its ending, and "-hf", by default.
    """
    from rfdetr.variants import RFDETR

    folder = out or Path(f"{Path(checkpoint).with_suffix('')}-{format}")
    written = RFDETR.from_checkpoint(checkpoint, device="cpu").export(folder, format=format)
    print(f"{written}: {', '.join(sorted(path.name for path in written.iterdir()))}")
