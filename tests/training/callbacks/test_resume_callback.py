"""Signals and full disks: the run stops or goes on where it should, and nothing of it is lost."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rfdetr.config import TrainConfig
from rfdetr.data.packing import pack
from rfdetr.training.callbacks.resume import RunStopped
from rfdetr.training.verify import content_hashes

SCRIPT = Path(__file__).parents[1] / "scripts" / "signalled.py"
# Three updates an epoch.
SETTINGS = {
    "epochs": 2,
    "batch_size": 1,
    "grad_accum_steps": 2,
    "run_test": False,
}


@pytest.fixture
def whole(make_run: Callable[..., Any]) -> dict[str, str]:
    return content_hashes(make_run(output="whole", model={"amp": False}, **SETTINGS).fit().output)


@pytest.mark.parametrize(
    ("hook", "number"),
    [("on_train_batch_end", signal.SIGTERM), ("on_validation_batch_end", signal.SIGUSR1)],
)
def test_a_signalled_run_goes_on_exactly(
    make_run: Callable[..., Any], whole: dict[str, str], hook: str, number: signal.Signals
) -> None:
    handlers = signal.getsignal(number), signal.getsignal(signal.SIGINT)

    def stop(trainer: Any, _: Any) -> None:
        if trainer.current_epoch == 1:
            signal.raise_signal(number)

    run = make_run(model={"amp": False}, watch={hook: stop}, **SETTINGS)
    with pytest.raises(RunStopped) as stopped:
        run.fit()
    assert stopped.value.code == 128 + number
    assert (signal.getsignal(number), signal.getsignal(signal.SIGINT)) == handlers
    assert run.trainer.global_step == {"on_train_batch_end": 4, "on_validation_batch_end": 6}[hook]
    again = make_run(model={"amp": False}, **SETTINGS).fit(ckpt_path="last")
    found = content_hashes(again.output)
    if (
        hook == "on_validation_batch_end"
    ):  # Lightning's counters tell that a validation pass was begun twice
        found["last.ckpt"] = whole["last.ckpt"]
    assert found == whole


def test_an_interrupt_saves_and_a_second_one_leaves_at_once(make_run: Callable[..., Any]) -> None:
    def once(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    run = make_run(output="once", watch={"on_train_batch_start": once}, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert (run.output / "last.ckpt").exists()

    def twice(*_: Any) -> None:
        once()
        once()

    run = make_run(output="twice", watch={"on_train_batch_start": twice}, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert not (run.output / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "number", "send"),
    [
        # Ctrl-C reaches the loader's workers as well.
        (
            "on_validation_batch_end",
            signal.SIGINT,
            os.killpg,
        ),
        ("on_train_end", signal.SIGTERM, os.kill),
    ],
)
def test_a_signal_ends_a_run_with_workers_at_once_and_in_one_line(
    tiny_model: Callable[..., Any],
    train_config: Callable[..., TrainConfig],
    hook: str,
    number: signal.Signals,
    send: Callable[[int, int], None],
) -> None:
    config = train_config(epochs=1, num_workers=2)
    settings = {
        "hook": hook,
        "train": config.model_dump(mode="json"),
        "model": tiny_model().model_dump(mode="json"),
    }
    command = [sys.executable, str(SCRIPT), json.dumps(settings)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        # After what is told of the data.
        assert process.stdout and "READY\n" in iter(process.stdout.readline, "")
        started = time.monotonic()
        send(process.pid, number)
        told, errors = process.communicate(timeout=60)
    # 2 on an idle machine; workers that wait to be told take 30 more.
    assert time.monotonic() - started < 15
    assert process.returncode == 128 + number
    after = told[told.index(number.name) :].splitlines()
    assert len(after) == 1 and "resume=" in after[0]
    assert "Traceback" not in errors and number.name not in errors
    assert (config.output_dir / "last.ckpt").exists()
    assert not list(config.output_dir.glob(".*"))


def test_a_full_disk_ends_nothing(
    make_run: Callable[..., Any], whole: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(trainer: Any, _: Any) -> None:  # no file may grow beyond 100 kB, in the first epoch
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (100_000 if trainer.current_epoch == 0 else limits[0], limits[1])
        )

    def last(trainer: Any, _: Any) -> None:
        sizes.append(
            sum(path.stat().st_size for path in Path(trainer.default_root_dir).glob("*.ckpt"))
        )

    sizes: list[int] = []
    watch = {"on_train_batch_start": fill, "on_train_batch_end": last}
    try:
        with caplog.at_level(logging.ERROR):
            run = make_run(model={"amp": False}, watch=watch, **SETTINGS).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = [record.getMessage() for record in caplog.records]
    assert any("last.ckpt could not be written: " in message for message in told)
    assert any("checkpoint_best_regular.pth could not be written" in message for message in told)
    assert sizes[-1] == 0  # the save after the first epoch has failed
    assert content_hashes(run.output) == whole
    assert not list(run.output.glob(".*"))


@pytest.mark.slow
def test_a_run_on_packed_images_is_that_on_their_folder_and_goes_on_exactly(
    make_run: Callable[..., Any],
    whole: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a pack in the folder's place; the second part reads it in a process of its own."""
    monkeypatch.setenv("RFDETR_HOME", str(tmp_path / "cache"))
    folder = make_run().datamodule.train_config.dataset_dir
    packed = pack(folder, tmp_path / "packed")
    folder.rename(tmp_path / "images")
    packed.rename(folder)
    stop = {"on_train_batch_end": lambda *_: signal.raise_signal(signal.SIGTERM)}
    with pytest.raises(RunStopped):
        make_run(model={"amp": False}, watch=stop, **SETTINGS).fit()
    again = make_run(model={"amp": False}, num_workers=1, **SETTINGS).fit(ckpt_path="last")
    assert again.datamodule.layout.pack is not None
    found = content_hashes(again.output)
    assert found.keys() == whole.keys()
    for name in ("checkpoint_best_total.pth", "last.ckpt"):
        one, two = (torch.load(tmp_path / run / name) for run in ("whole", "output"))
        assert all(torch.equal(one["model"][key], two["model"][key]) for key in one["model"])
    for name in ("results.json", "metrics.csv"):
        assert found[name] == whole[name]
