"""`rfdetr evaluate`: the metrics of a checkpoint on a labelled split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from rfdetr.checks import check_new_folder
from rfdetr.cli.options import (
    WHOLE_IMAGES,
    AsJson,
    BatchSize,
    Dataset,
    DatasetFile,
    Device,
    Predicting,
    TileOptions,
    open_model,
)
from rfdetr.config.fields import squared


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
    classes: str | None = None,
    tiles: TileOptions = WHOLE_IMAGES,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint on a labelled split: mAP, precision, recall and F1, overall and by
    class.

    Args:
        split: "train", "valid" or "test".
        class_names: Names by which the model knows the data's classes, in their order: cat,dog.
        classes: Of the data, those to judge, as in training: cat,vehicle=car+truck; default: those
            that the checkpoint was trained with.
        out: New or empty folder for results.json, report.html and label hints.
        as_json: Print one JSON object instead of the table.
    """
    from rich.console import Console

    from rfdetr.evaluation.metrics import as_record, metrics_table, write_results

    if out is not None:
        check_new_folder("--out", out)
    detector = open_model(checkpoint, device)
    names = class_names.split(",") if class_names else None
    how: dict[str, Any] = {"class_names": names, "classes": classes, **tiles.keywords()}
    metrics = detector.evaluate(dataset, split, batch_size, dataset_file=dataset_file, **how)
    if out is not None:
        from rfdetr.report.build import Facts
        from rfdetr.report.write import write_report

        folders, kind = detector.folders(dataset, dataset_file, classes), detector.kind
        shown = {
            name: folders.index(name, masks=kind.has_masks and name == split)
            for name in {"train", split} & {*folders.splits}
        }
        known = tuple(row["name"] for row in metrics.per_class)
        model = kind.variant or "custom model"
        size = squared(detector.model.size)
        facts = Facts(model, Path(checkpoint).name, size, str(dataset))
        write_results(out / "results.json", {split: metrics}, facts.weights)
        indexes = {name: replace(index, class_names=known) for name, index in shown.items()}
        write_report(out, {split: metrics}, indexes, facts)
    if as_json:
        print(json.dumps({"checkpoint": checkpoint, "split": split, **as_record(metrics)}))
    else:
        Console().print(metrics_table(metrics, f"{checkpoint} on {split}"))
