"""Stochastic depth over a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def test_the_rate_falls_to_nothing_over_the_run(make_run: Callable[..., Any]) -> None:
    rates: list[tuple[int, float]] = []
    run = make_run(epochs=2, drop_path=0.4, run_test=False)
    last_block = run.module.model.encoder.blocks[-1]
    run.module.model.register_forward_pre_hook(
        lambda model, _: (
            rates.append((run.trainer.global_step, last_block.drop_path))
            if model.training
            else None
        )
    )
    run.fit()
    assert rates == [(step, pytest.approx(0.4 * (1 - step / 4))) for step in (0, 0, 1, 2, 2, 3)]
