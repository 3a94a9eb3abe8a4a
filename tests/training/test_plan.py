"""What a run says it will do, and what it says it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rfdetr.training.plan import run_summary, training_plan


def test_the_plan_counts_what_fit_will_do(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=3)
    plan = dict(training_plan(run.module, run.datamodule, run.trainer))
    assert plan["model"].startswith("mini, ")
    assert plan["weights"] == "random"
    assert "6 train, 4 valid, 3 test images" in plan["data"]
    assert plan["classes"] == "3: blue, green, red"
    assert plan["effective batch"] == (
        "4 = 2 images x 2 batches x 1 process; the default learning rates are made for 16"
    )
    assert plan["steps"] == "6 updates, 2 an epoch, 3 epochs"
    assert plan["seed"] == "7"
    assert run.fit().trainer.global_step == 6


def test_the_plan_of_a_resumed_run_names_its_checkpoint(make_run: Callable[..., Any]) -> None:
    run = make_run()
    plan = dict(training_plan(run.module, run.datamodule, run.trainer, run.output / "last.ckpt"))
    assert plan["goes on from"] == str(run.output / "last.ckpt")
    assert "weights" not in plan


def test_the_summary_names_the_best_weights(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1).fit()
    summary = dict(run_summary(run.trainer))
    assert summary["best weights"] == str(run.output / "checkpoint_best_total.pth")
    assert "weights of epoch 1" in summary["best mAP 50:95"]
    assert {"valid", "test"} <= set(summary)


def test_a_run_that_kept_nothing_has_no_summary(make_run: Callable[..., Any]) -> None:
    assert run_summary(make_run(trainer={"fast_dev_run": 1}).fit().trainer) == []
