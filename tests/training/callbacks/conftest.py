"""Runs whose figures are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rfdetr.training import COCOEvalCallback

Scores = list[dict[str, float]]


@pytest.fixture
def make_scripted(make_run: Callable[..., Any]) -> Callable[..., Any]:
    """`make_scripted(scores, **make_run's)`: a run whose epochs are said to reach these figures."""

    def make(
        scores: Scores, watch: dict[str, Callable[..., object]] | None = None, **settings: Any
    ) -> Any:
        def log(trainer: Any, module: Any) -> None:
            module.log_dict(scores[trainer.current_epoch])

        run = make_run(watch={"on_validation_epoch_end": log, **(watch or {})}, **settings)
        callbacks = run.trainer.callbacks
        callbacks[:] = [c for c in callbacks if not isinstance(c, COCOEvalCallback)]
        return run

    return make
