"""Workers of scripts without a main guard, of notebooks, of threads, in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rfdetr.data.loaders import worker_context

TRAIN = """
from rfdetr import RFDETRMini
from rfdetr.evaluation import plots

plots.plot_metrics = plots.plot_history = lambda *_: None  # drawing takes longer than the rest

def train(dataset, output):
    tiny = dict(
        resolution=64, hidden_dim=32, sa_nheads=4, ca_nheads=4, dim_feedforward=64, dec_layers=1,
        num_queries=10, num_select=10, group_detr=2, num_classes=3, pretrain_weights=None,
    )
    RFDETRMini(**tiny).train(
        dataset_dir=dataset, output_dir=output, epochs=1, batch_size=3, grad_accum_steps=1,
        num_workers=1, multi_scale=False, run_test=False, use_ema=False,
    )
"""

IN_A_SCRIPT = """
import multiprocessing
with open({log!r}, "a") as log:
    log.write("run\\n")
multiprocessing.set_start_method("spawn")
""" + TRAIN + """
train({dataset!r}, {output!r})
"""  # fmt: skip

IN_A_NOTEBOOK_AND_A_THREAD = """
import asyncio, threading
assert "__file__" not in globals()
""" + TRAIN + """
async def cell():
    train({dataset!r}, {output!r})
asyncio.run(cell())
thread = threading.Thread(target=train, args=({dataset!r}, {output!r} + "-2"))
thread.start()
thread.join(timeout=250)
assert not thread.is_alive()
"""  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="has one way to end a process")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_terminate_kills_a_worker(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Python does so when it exits, and then waits: a worker that ignores signals must end."""
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none=False: method)
    process: Any = worker_context().Process(target=time.sleep, args=(200,))
    process.start()
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "as_file"),
    [
        pytest.param(
            IN_A_SCRIPT,
            True,
            id="script-that-spawns-without-main-guard",
            marks=pytest.mark.scheduled,
        ),
        pytest.param(IN_A_NOTEBOOK_AND_A_THREAD, False, id="notebook-and-thread"),
    ],
)
def test_training_with_workers_needs_no_special_form(
    make_tiny_coco: Callable[..., Path], tmp_path: Path, program: str, as_file: bool
) -> None:
    output, log = tmp_path / "output", tmp_path / "runs.txt"
    counts = {"train": 3, "valid": 2}
    text = program.format(dataset=str(make_tiny_coco(counts)), output=str(output), log=str(log))
    (tmp_path / "train.py").write_text(text)
    command = [sys.executable, *([str(tmp_path / "train.py")] if as_file else ["-c", text])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    outputs = [output] if as_file else [output, tmp_path / "output-2"]
    assert all((folder / "checkpoint_best_total.pth").is_file() for folder in outputs)
    assert not as_file or log.read_text() == "run\n"  # workers did not run the script again
