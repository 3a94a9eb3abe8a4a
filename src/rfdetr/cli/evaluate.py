"""`rfdetr evaluate`: the metrics of a checkpoint on a labelled split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from rfdetr.cli.options import (
    AsJson,
    BatchSize,
    Dataset,
    DatasetFile,
    Device,
    Predicting,
    open_model,
)


def evaluate(  # noqa: PLR0913 (each is an option)
    checkpoint: Predicting,
    dataset: Annotated[Path, Dataset],
    /,
    *,
    split: str = "test",
    dataset_file: DatasetFile = "roboflow",
    batch_size: BatchSize = 4,
    device: Device = None,
    class_names: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint on a labelled split: mAP, precision, recall and F1, overall and by
    class.

    Args:
        split: "train", "valid" or "test".
        class_names: Names by which the model knows the data's classes, in their order: cat,dog.
        as_json: Print one JSON object instead of the table.
    """
    from rich.console import Console

    from rfdetr.evaluation.metrics import as_record, metrics_table

    detector = open_model(checkpoint, device)
    names = class_names.split(",") if class_names else None
    metrics = detector.evaluate(
        dataset, split, batch_size, dataset_file=dataset_file, class_names=names
    )
    if as_json:
        print(json.dumps({"checkpoint": checkpoint, "split": split, **as_record(metrics)}))
    else:
        Console().print(metrics_table(metrics, f"{checkpoint} on {split}"))
