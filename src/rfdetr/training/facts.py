"""What a report tells of a run, from the run's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from rfdetr.report.build import Facts
from rfdetr.training.progress import RunProgress
from rfdetr.training.records import RunRecord
from rfdetr.training.run_folder import RunFolder


def facts_of(folder: RunFolder, best: Mapping[str, Any] | None = None) -> Facts:
    """What a report tells of the run in a folder, from its files; `best` says which epoch's weights
    it left ({"kind": "ema" or "regular", "epoch": from 0}), else the highest mAP does.
    """
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    history, progress = RunRecord(folder.path).read()[1], RunProgress(folder.path)
    progress.update()
    if best is None:
        scores = {
            (kind, row["epoch"]): row[key]
            for row in history
            for kind, prefix in (("regular", "val/"), ("ema", "val/ema_"))
            for key in (f"{prefix}segm_mAP_50_95", f"{prefix}mAP_50_95")
            if isinstance(row.get(key), float)
        }
        if scores:
            kind, epoch = max(scores, key=lambda place: scores[place])
            best = {"kind": kind, "epoch": epoch}
    folders = config["train"]["dataset_dir"]
    return Facts(
        model=config["variant"] or "custom model",
        weights=folder.best("total").name,
        resolution=config["model"]["resolution"],
        dataset=folders if isinstance(folders, str) else ", ".join(folders),
        best=best,
        history=history,
        config=config,
        forecast=progress.forecast,
    )
