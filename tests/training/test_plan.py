"""What a run says it will do, and what it says it did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rfdetr.training.plan import run_summary, training_plan


def test_the_plan_counts_what_fit_will_do(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=3)
    plan = dict(training_plan(run.module, run.datamodule, run.trainer))
    assert plan["model"].startswith("mini, ")
    assert plan["weights"] == "random" and "adapted" not in plan
    changed = dict(
        training_plan(run.module, run.datamodule, run.trainer, ["class head 91 -> 4 logits (28)"])
    )
    assert changed["adapted"] == "class head 91 -> 4 logits (28)"
    assert "6 train, 4 valid, 3 test images" in plan["data"]
    assert plan["classes"] == "3: blue, green, red"
    assert plan["effective batch"] == (
        "4 = 2 images x 2 batches x 1 process; the default learning rates are made for 16"
    )
    assert plan["steps"] == "6 updates, 2 an epoch, 3 epochs"
    assert plan["seed"] == "7" and "repeated" not in plan
    assert run.fit().trainer.global_step == 6


def test_the_plan_says_where_a_published_file_was_found(make_run: Callable[..., Any]) -> None:
    run = make_run()
    run.module.model_config.pretrain_weights = "rf-detr-nano.pth"
    run.module.weights_file = Path("/home/me/.roboflow/models/rf-detr-nano.pth")
    plan = dict(training_plan(run.module, run.datamodule, run.trainer))
    assert plan["weights"] == f"rf-detr-nano.pth, found in {run.module.weights_file.parent}"


@pytest.mark.usefixtures("with_repetition")
def test_a_small_set_is_repeated_to_five_updates_an_epoch(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=2, trainer={"accumulate_grad_batches": 1}, run_test=False)
    plan = dict(training_plan(run.module, run.datamodule, run.trainer))
    assert plan["repeated"] == "6 images to 10 an epoch, so that it has 5 updates"
    assert plan["steps"] == "10 updates, 5 an epoch, 2 epochs"
    assert run.fit().trainer.global_step == 10


def test_the_plan_of_a_resumed_run_names_its_checkpoint(make_run: Callable[..., Any]) -> None:
    run = make_run()
    plan = dict(
        training_plan(run.module, run.datamodule, run.trainer, resumed=run.output / "last.ckpt")
    )
    assert plan["goes on from"] == str(run.output / "last.ckpt")
    assert "weights" not in plan
    assert plan["seed"] == "the checkpoint's"


def test_the_summary_names_the_best_weights(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1).fit()
    summary = dict(run_summary(run.trainer, 61))
    assert summary["best weights"] == str(run.output / "checkpoint_best_total.pth")
    assert "weights of epoch 1" in summary["best mAP 50:95 on valid"]
    assert {"valid", "test"} <= set(summary)
    results = json.loads((run.output / "results.json").read_text())["splits"]["test"]
    figures = {row["name"]: row["AP"] for row in results["per_class"]}
    ranked = sorted(
        (name for name in figures if figures[name] is not None), key=figures.__getitem__
    )
    listed = ", ".join(f"{name} {figures[name]:.3f}" for name in ranked[:3])
    assert summary["weakest classes"] == f"on test, AP 50:95: {listed}"


def test_a_run_that_kept_nothing_has_no_summary(make_run: Callable[..., Any]) -> None:
    assert run_summary(make_run(trainer={"fast_dev_run": 1}).fit().trainer, 61) == []


def test_the_summary_counts_damaged_images(
    make_run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(epochs=3, run_test=False)
    path = run.datamodule.layout.splits["train"].images / "3.png"
    path = path if path.exists() else next(path.parent.glob("*3.*"))
    path.write_bytes(path.read_bytes()[:200])
    summary = dict(run_summary(run.fit().trainer, 61))
    assert summary["damaged images"] == "1 of train could not be decoded; `rfdetr check` names them"
    assert caplog.text.count("replaced by") == 1
