"""What the process does with memory that is freed, while it trains and after."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

PROGRAM = """
import resource, torch
from rfdetr.inference.predictor import keep_freed_memory
from rfdetr.training.memory import freed_memory_kept

def faults(times=8):
    \"\"\"Pages that a step faults in, which allocates and frees twelve blocks.\"\"\"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        blocks = [torch.ones({count}) for _ in range(12)]
        del blocks
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // times

torch.ones(8).sum()
{steps}
"""
PAGES = 12 * 2**24 // 4096


def run_program(steps: str, count: int = 2**22) -> list[int]:
    """A process of its own: what a thousand tests before have allocated changes nothing."""
    command = [sys.executable, "-c", PROGRAM.format(steps=steps, count=count)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return [int(number) for number in output.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_memory_is_kept_inside_and_given_back_after() -> None:
    steps = """
print(faults())
with freed_memory_kept():
    faults(1)
    print(faults())
resident = lambda: int(open("/proc/self/statm").read().split()[1])
with freed_memory_kept():
    faults(1)
    inside = resident()
print(inside - resident())
"""
    before, inside, given_back = run_program(steps)
    assert before > 0.2 * PAGES  # by itself glibc gives back much of what each step frees
    assert inside < 0.1 * before
    assert given_back > 0.9 * PAGES


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
@pytest.mark.scheduled
def test_predictions_find_the_memory_of_the_one_before() -> None:
    """Blocks of 1 MiB, as a prediction's: once told, glibc keeps up to 62 MiB of them."""
    steps = "print(faults())\nkeep_freed_memory()\nfaults(1)\nprint(faults())"
    before, after = run_program(steps, count=2**18)
    assert after < 0.1 * before


def test_gradients_are_gone_after_a_step(make_run: Callable[..., Any]) -> None:
    left: list[bool] = []

    def look(_: Any, module: Any) -> None:
        left.append(any(parameter.grad is not None for parameter in module.parameters()))

    settings = {"epochs": 1, "grad_accum_steps": 1, "use_ema": False, "run_test": False}
    make_run(watch={"on_train_batch_end": look}, **settings).fit()
    assert left and not any(left)
