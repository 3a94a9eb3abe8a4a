"""Runs on parts of the data: classes, a valid split that is kept back, several folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.data.test_annotated import to_voc
from tests.tiny import TINY

from rfdetr import RFDETR, RFDETRMini
from rfdetr.cli import main
from rfdetr.data.layout import find_splits, load_index
from rfdetr.training.plan import training_plan
from rfdetr.weights.reading import CheckpointError

SHORT: dict[str, Any] = {
    "epochs": 1, "batch_size": 2, "grad_accum_steps": 1, "num_workers": 0, "seed": 1,
    "multi_scale": False, "progress_bar": False,
}  # fmt: skip


def test_a_run_on_voc_keeps_a_part_back_and_its_classes_for_evaluation_and_report(
    make_tiny_coco: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    coco = make_tiny_coco({"train": 12})
    data, output = tmp_path / "voc", tmp_path / "run"
    to_voc(data, "Annotations", load_index(find_splits(coco), "train"))
    detector = RFDETRMini(**TINY)
    classes = {"warm": ["red"], "cold": ["blue"]}
    detector.train(dataset_dir=data, output_dir=output, classes=classes, **SHORT)
    plan = " ".join(capsys.readouterr().out.split())
    assert "valid kept back" in plan and "left out of train" in plan
    assert detector.class_names == ["warm", "cold"]
    record = json.loads((output / "split.json").read_text())["folders"][str(data)]["valid"]
    found = RFDETR.from_checkpoint(output / "checkpoint_best_total.pth")
    assert found.trained_classes == classes
    assert {*found.folders(data).index("valid").labels.tolist()} <= {0, 1}
    metrics = found.evaluate(data, "valid", num_workers=0)
    told = json.loads((output / "results.json").read_text())["splits"]["valid"]
    assert metrics["val/mAP_50_95"] == pytest.approx(told["overall"]["mAP_50_95"])
    assert (metrics.num_images, metrics.num_boxes) == (told["images"], told["boxes"])
    assert [row["name"] for row in metrics.per_class] == ["warm", "cold"]
    # What the run has kept back counts, not what would be now.
    changed = json.loads((output / "split.json").read_text())
    changed["folders"][str(data)]["valid"] = record[:1]
    (output / "split.json").write_text(json.dumps(changed))
    assert len(found.folders(data).index("valid")) == 1
    assert main(["report", str(output)]) == 0
    checkpoint = str(output / "checkpoint_best_total.pth")
    assert main(["evaluate", checkpoint, str(data), "--split", "train", "--json"]) == 0
    assert main(["evaluate", checkpoint, str(data), "--split=train", "--classes", "warm=red"]) == 0


def test_a_resumed_run_keeps_its_split_and_refuses_other_classes(
    make_tiny_coco: Callable[..., Path], make_run: Callable[..., Any]
) -> None:
    settings: dict[str, Any] = {"dataset_dir": make_tiny_coco({"train": 12}, name="whole")}
    settings |= {"classes": {"a": ["red"], "b": ["blue"]}, "run_test": False, "epochs": 1}
    run = make_run(**settings).fit()
    held = {*map(str, json.loads((run.output / "split.json").read_text())["folders"])}
    assert held == {str(settings["dataset_dir"])}
    again = make_run(**settings | {"resume": "last", "epochs": 2})
    first = run.datamodule.index("valid").fingerprint()
    assert again.datamodule.folders.divisions == run.datamodule.folders.divisions
    again.fit(ckpt_path=run.output / "last.ckpt")
    assert again.datamodule.index("valid").fingerprint() == first
    assert again.trainer.global_step == 2 * run.trainer.global_step
    merged = {"a": ["red", "green"], "b": ["blue"]}
    other = make_run(**settings | {"resume": "last", "epochs": 3, "classes": merged})
    with pytest.raises(CheckpointError, match=r"trained on other data .* boxes of a \(was"):
        other.fit(ckpt_path=run.output / "last.ckpt")


def test_a_share_of_an_old_folder_is_replayed(
    make_tiny_coco: Callable[..., Path], make_run: Callable[..., Any]
) -> None:
    new = make_tiny_coco({"train": 4, "valid": 3}, name="new")
    old = make_tiny_coco({"train": 8, "valid": 4}, name="old")
    run = make_run(dataset_dir=[new, f"{old}@0.25"], epochs=2, run_test=False)
    plan = dict(training_plan(run.module, run.datamodule, run.trainer))
    assert plan["data"] == f"{new} (COCO), {old} (COCO) at 0.25: 12 train, 7 valid images"
    assert plan["an epoch takes"] == "6 of the training images"
    run.fit()
    assert run.trainer.global_step == 4
    config = (run.output / "config.yaml").read_text()
    assert f"{old}: 0.25" in config and f"{new}: 1.0" in config
