"""What the process does with memory that is freed, while it trains and after."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rfdetr.training.memory import freed_memory_kept

STATUS = Path("/proc/self/statm")


def resident_mb() -> float:
    return int(STATUS.read_text().split()[1]) * 4096 / 1e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_memory_is_kept_inside_and_given_back_after() -> None:
    with freed_memory_kept():
        before = resident_mb()
        blocks = [torch.ones(2**22) for _ in range(12)]  # 16 MiB each
        del blocks
        inside = resident_mb() - before
    assert inside > 150
    assert resident_mb() - before < 100


def test_gradients_are_gone_after_a_step(make_run: Callable[..., Any]) -> None:
    left: list[bool] = []

    def look(_: Any, module: Any) -> None:
        left.append(any(parameter.grad is not None for parameter in module.parameters()))

    make_run(
        watch={"on_train_batch_end": look},
        epochs=1,
        grad_accum_steps=1,
        use_ema=False,
        run_test=False,
    ).fit()
    assert left and not any(left)
