"""`rfdetr watch`: what it shows of a run's folder, and when it ends."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rfdetr.cli import main
from rfdetr.errors import InputError
from rfdetr.training.progress import RunProgress, curve


def lines(epoch: int, updates: int = 4) -> list[dict[str, Any]]:
    """What a run logs in an epoch, counted from 0."""
    first = epoch * updates
    rows: list[dict[str, Any]] = [
        {"train/loss_step": 9.0 - step / 10, "epoch": epoch, "step": step}
        for step in range(first, first + updates)
    ]
    figures = {"val/mAP_50_95": 0.1 * (epoch + 1), "val/ema_mAP_50_95": 0.1 * epoch}
    record = {"epoch": epoch, "step": first + updates, "seconds": 60.0, **figures}
    return [*rows, {"end_of_epoch": record}]


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of ten epochs on another machine, of which two are over."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"train": {"epochs": 10}}))
    owner = {"pid": 1, "host": "elsewhere", "since": "?", "command": "?"}
    (folder / ".run.lock").write_text(json.dumps(owner))
    write(folder, [{"forecast": {"updates": 4, "seconds": [50.0, 10.0]}}, *lines(0), *lines(1)])
    return folder


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["watch", str(folder), "--once"]) == 0
    return capsys.readouterr().out


def test_state_figures_and_curves_are_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(run, capsys)
    assert "running, epoch 3 of 10, update 8, loss 8.650, mAP 0.200, about 0:08:00" in out
    assert "loss, 9.000 to 8.300" in out and "mAP, 0.100 to 0.200" in out
    write(run, lines(2)[:2])  # half an epoch
    assert "about 0:07:30 left" in " ".join(shown(run, capsys).replace("│", "").split())


def test_before_the_first_epoch_ends_the_forecast_tells_the_time(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    progress = RunProgress(run)
    progress.update()
    assert progress.seconds_left() is None and progress.shown(80)
    write(run, [{"forecast": {"updates": 4, "seconds": [50.0, 10.0]}}])
    progress.update()
    assert progress.seconds_left() == 600
    (run / "config.yaml").write_text(yaml.safe_dump({"train": {"epochs": 10, "minutes": 5}}))
    assert progress.seconds_left() == 300


def test_only_what_is_new_is_read_and_a_cut_file_anew(run: Path) -> None:
    progress = RunProgress(run)
    progress.update()
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"train/loss_step": 1.0, "ep')  # half a line
    progress.update()
    assert len(progress.losses) == 8 and len(progress.epochs) == 2
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as stream:
        stream.write('och": 2, "step": 8}\n')
    progress.update()
    assert progress.losses[-1] == 1.0 and progress.step == 9
    content = (run / "metrics.jsonl").read_text().splitlines()[:6]  # as a resumed run cuts it
    (run / "metrics.jsonl").write_text("\n".join(content) + "\n")
    progress.update()
    assert len(progress.losses) == 4 and len(progress.epochs) == 1


def test_the_state_follows_from_lock_and_results(run: Path) -> None:
    progress, lock = RunProgress(run), run / ".run.lock"
    assert progress.goes_on
    os.utime(run / "metrics.jsonl", (time.time() - 3000,) * 2)
    assert progress.state == "running elsewhere, silent for 0:50:00"
    lock.write_text(json.dumps({"pid": os.getppid(), "host": platform.node()}))
    assert progress.state == "running"
    lock.write_text(json.dumps({"pid": 2**22 + 1, "host": platform.node()}))
    assert progress.state == "stopped"  # killed: its process is no more
    lock.unlink()
    assert progress.state == "stopped"
    (run / "results.json").write_text("{}")
    assert progress.state == "finished" and not progress.goes_on


def test_it_ends_with_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def end() -> None:
        (run / "results.json").write_text("{}")
        (run / ".run.lock").unlink()

    timer = threading.Timer(0.3, end)
    timer.start()
    assert main(["watch", str(run), "--every", "0.05"]) == 0
    timer.join()
    assert "finished, epoch 2 of 10" in capsys.readouterr().out


def test_a_folder_without_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="there is no run in"):
        RunProgress(tmp_path)
    assert main(["watch", str(tmp_path / "none"), "--once"]) == 2
    assert "expected the output_dir of one" in capsys.readouterr().err


def test_a_curve_has_its_extremes_and_fits() -> None:
    drawn = curve("x", [float(i % 50) for i in range(1000)], 40, "green")
    assert len(drawn) == 7 and all(len(line) <= 50 for line in drawn)
    steps = [line.plain[10:] for line in curve("x", [0.0, 1.0], 4, "green")[1:]]
    assert steps == ["  ██"] * 5 + ["▁▁██"]
    flat = curve("x", [1.0, float("nan"), 1.0], 4, "green")
    assert flat[-1].plain.endswith("▁▁▁▁") and curve("x", [1.0], 4, "green") == []


def test_it_starts_without_pytorch(run: Path) -> None:
    code = f"from rfdetr.cli import main; main(['watch', {str(run)!r}, '--once']); import sys; "
    code += "print([name for name in ('torch', 'pytorch_lightning') if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.endswith("[]\n")
