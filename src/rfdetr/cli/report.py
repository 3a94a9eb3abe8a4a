"""`rfdetr report`: the page of a run, made anew from its weights and its data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rfdetr.cli.options import BatchSize, Device
from rfdetr.errors import InputError


def report(
    run: Path,
    /,
    *,
    train: Annotated[bool, Parameter(negative="")] = False,
    batch_size: BatchSize = 4,
    device: Device = None,
) -> None:
    """Write report.html, report.json and label_hints.json of a finished run into its folder.

    The figures are those of its results.json.

    Args:
        run: Folder of the run.
        train: Look for label faults in train, too; what was learned hides some of them.
    """
    from rfdetr.report import PAGE
    from rfdetr.report.write import write_report
    from rfdetr.training.facts import facts_of
    from rfdetr.training.run_folder import RunFolder
    from rfdetr.variants import RFDETR

    folder = RunFolder(run)
    needed = folder.results, folder.config, folder.best("total")
    if missing := [path.name for path in needed if not path.is_file()]:
        raise InputError(f"{run} is not the folder of a finished run: no {', '.join(missing)}")
    facts = facts_of(folder)
    settings = facts.config["train"]
    records = json.loads(folder.results.read_text(encoding="utf-8"))["splits"]
    detector = RFDETR.from_checkpoint(str(folder.best("total")), device=device)
    folders = detector.folders(settings["dataset_dir"], settings["dataset_file"])
    names, results, indexes = settings.get("class_names"), {}, {}
    masks = detector.model_config.segmentation_head
    for split in dict.fromkeys([*["train"] * train, *records]):
        results[split] = detector.evaluate(
            settings["dataset_dir"], split, batch_size, class_names=names,
            dataset_file=settings["dataset_file"], max_dets=settings["eval_max_dets"],
        )  # fmt: skip
    for split in {"train": None} | results:
        index = folders.index(split, masks=masks and split in results)
        known = tuple(row["name"] for row in results[next(iter(records))].per_class)
        indexes[split] = replace(index, class_names=known)
    write_report(run, results, indexes, replace(facts, records=records))
    print(run / PAGE)
