"""`rfdetr evaluate`: the metrics of a checkpoint on a labelled split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from rfdetr.cli.options import Dataset


def evaluate(  # noqa: PLR0913 (each is an option)
    checkpoint: str,
    dataset: Annotated[Path, Dataset],
    /,
    *,
    split: str = "test",
    dataset_file: Literal["roboflow", "coco", "yolo"] = "roboflow",
    batch_size: int = 4,
    device: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measure a checkpoint on a labelled split: mAP, precision, recall and F1, overall and by
    class.

    Parameters
    ----------
    checkpoint
        File of weights, or the name of a published one.
    dataset
        Folder with the labelled images (COCO or YOLO layout).
    split
        "train", "valid" or "test".
    dataset_file
        Layout: "roboflow" detects COCO and YOLO exports, "coco" is the original COCO layout.
    batch_size
        Images at a time.
    device
        "cpu", "cuda", "mps"; the best there is by default.
    as_json
        Print one JSON object instead of the table.
    """
    from rich.console import Console

    from rfdetr.evaluation.metrics import as_record, metrics_table
    from rfdetr.variants import RFDETR

    detector = RFDETR.from_checkpoint(checkpoint, device=device)
    metrics = detector.evaluate(dataset, split, batch_size, dataset_file=dataset_file)
    if as_json:
        print(json.dumps({"checkpoint": checkpoint, "split": split, **as_record(metrics)}))
    else:
        Console().print(metrics_table(metrics, f"{checkpoint} on {split}"))
