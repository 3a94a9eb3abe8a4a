"""The main job through the short face: pictures in, a detector that has learned out, and going on
from there.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import TINY

import rfdetr
from rfdetr import RFDETR, RFDETRMini
from rfdetr.losses.criterion import Criterion
from rfdetr.training import memory


@pytest.mark.slow
def test_a_detector_learns_and_goes_on_learning(
    make_tiny_coco: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = make_tiny_coco({"train": 16, "valid": 6, "test": 6})
    settings: dict[str, Any] = {
        "dataset_dir": dataset,
        "output_dir": tmp_path / "out",
        "batch_size": 4,
        "grad_accum_steps": 1,
        "lr": 2e-3,
        "lr_encoder": 1e-3,
        "clip_max_norm": 1.0,
        "multi_scale": False,
        "num_workers": 0,
        "seed": 0,
        "eval_interval": 5,
    }
    model = RFDETRMini(**TINY)
    model.train(epochs=10, **settings)
    records = read_log(tmp_path / "out")
    assert records[-1]["train/loss"] < 0.8 * records[0]["train/loss"]
    printed = capsys.readouterr().out
    assert "3: blue, green, red" in printed and "16 train, 6 valid, 6 test" in printed
    assert printed.index("Training plan") < printed.index("effective batch")
    assert printed.index("effective batch") < printed.index("Training finished")
    assert printed.index("Training finished") < printed.index("best mAP")

    # The model, the best file and results.json tell the same.
    splits = json.loads((tmp_path / "out" / "results.json").read_text())["splits"]
    best = RFDETR.from_checkpoint(tmp_path / "out" / "checkpoint_best_total.pth")
    for detector in (model, best):
        assert detector.class_names == ["blue", "green", "red"]
        assert detector.model_config.num_classes == 3
        for split, written in splits.items():
            again = detector.evaluate(dataset, split=split, batch_size=4, num_workers=0)
            assert again.overall["mAP_50_95"] == written["overall"]["mAP_50_95"]
            known = {name for name, value in again.overall.items() if value == value}  # no nan
            figures = {name: again.overall[name] for name in known}
            assert figures == pytest.approx({name: written["overall"][name] for name in known})
            assert [row["name"] for row in again.per_class] == detector.class_names
    for name, tensor in best.model.model.state_dict().items():
        assert torch.equal(tensor, model.model.model.state_dict()[name]), name

    RFDETRMini(**TINY).train(epochs=12, resume="last", **{**settings, "eval_interval": 12})
    assert [record["epoch"] for record in read_log(tmp_path / "out")] == list(range(12))
    # The plan names where it goes on.
    assert "last.ckpt" in capsys.readouterr().out.partition("trained")[0]

    times = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out", *(tmp_path / "out").iterdir())
    }
    caplog.clear()
    RFDETRMini(**TINY).train(epochs=12, resume="last", **settings)
    assert re.search("nothing is left to train of .*last.ckpt.*raise epochs to go on", caplog.text)
    assert times == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out", *(tmp_path / "out").iterdir())
    }
    assert "Training" not in capsys.readouterr().out


def test_four_functions_of_ours_lead_from_train_to_the_criterion(
    tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, seen = Criterion.forward, []
    package = str(Path(rfdetr.__file__).parent)

    def watched(*args: Any, **kwargs: Any) -> Any:
        stack = traceback.extract_stack()
        seen.append([frame.name for frame in stack if frame.filename.startswith(package)])
        return forward(*args, **kwargs)

    monkeypatch.setattr(Criterion, "forward", watched)
    RFDETRMini(**TINY).train(
        dataset_dir=tiny_coco,
        output_dir=tmp_path / "out",
        epochs=1,
        num_workers=0,
        compute_val_loss=False,
        run_test=False,
    )
    assert seen and {*map(tuple, seen)} == {("train", "fit", "training_step", "compute_losses")}


@pytest.mark.scheduled
def test_the_plan_names_the_batch_size_that_was_found(
    tiny_coco: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 2**20)
    settings: dict[str, Any] = {"epochs": 1, "num_workers": 0, "run_test": False}
    RFDETRMini(**TINY).train(
        dataset_dir=tiny_coco, output_dir=tmp_path / "out", batch_size="auto", **settings
    )
    plan = capsys.readouterr().out.partition("Training finished")[0]
    assert "16 = 1 images x 16 batches x 1 process" in plan


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
