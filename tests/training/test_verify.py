"""Runs killed with SIGKILL, again and again, end as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rfdetr.training.verify import verify_resume

SETTINGS = {"epochs": 2, "batch_size": 1, "grad_accum_steps": 2, "checkpoint_every_n_steps": 1, "drop_path": 0.2,
            "multi_scale": True, "run_test": False}  # fmt: skip


@pytest.mark.parametrize(("workers", "kills"), [(0, 17), (2, 4)])
def test_killed_runs_end_as_the_undisturbed_one(
    workers: int, kills: int, tiny_model: Callable[..., Any], train_config: Callable[..., Any]
) -> None:
    model, train = tiny_model(amp=False), train_config(**SETTINGS, num_workers=workers)
    report = verify_resume(model, train, kills=kills, seed=workers)
    assert report.kills == kills
    assert {"last.ckpt", "checkpoint_best_total.pth", "metrics.csv", "log.txt", "results.json"} <= report.files.keys()
    assert report.differences == []
