"""The forecast: what it tells, that the run does not notice, and room on the disk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from rfdetr.training import forecast
from rfdetr.training.callbacks import PaceCallback
from rfdetr.training.forecast import disk_need, in_bytes, in_time
from rfdetr.training.plan import training_plan
from rfdetr.training.run_folder import OutputFolderError

MANY = {"batch_size": 1, "grad_accum_steps": 1, "epochs": 2, "run_test": False}


class Usage(NamedTuple):
    free: int


def test_the_forecast_is_one_line_and_the_run_is_as_without(
    make_run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="rfdetr")
    run, plain = make_run(**MANY).fit(), make_run(output="plain", **MANY)
    found = re.findall(r"forecast: (.*)", caplog.text)
    assert len(found) == 1
    assert re.fullmatch(
        r"an epoch takes about \d\.\d s of training and \d\.\d s of validation of live and "
        r"averaged weights; "
        r"the end at \d\d:\d\d, in [\d.: s]+; memory up to [\d.,]+ .B of [\d.,]+ .B; "
        r"disk up to [\d.]+ MB for checkpoints, [\d.,]+ .B are free",
        found[0],
    ), found[0]
    lines = (run.output / "metrics.jsonl").read_text().splitlines()
    noted = [json.loads(line)["forecast"] for line in lines if "forecast" in line]
    assert noted[0]["updates"] == 6 and len(noted[0]["seconds"]) == 2
    assert noted[1:] == [{**noted[0], "memory_taken": noted[-1]["memory_taken"]}]  # at the end
    assert 0.5 < noted[-1]["memory_taken"] / noted[0]["memory"] < 2
    assert "forecast" not in (run.output / "metrics.csv").read_text()
    plain.trainer.callbacks[:] = [
        one for one in plain.trainer.callbacks if not isinstance(one, PaceCallback)
    ]
    plain.fit()
    ends = [torch.load(each.output / "last.ckpt")["state_dict"] for each in (run, plain)]
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
    tables = [(each.output / "metrics.csv").read_bytes() for each in (run, plain)]
    assert tables[0] == tables[1]


def test_parts_that_are_not_trained_stay_in_their_mode(make_run: Callable[..., Any]) -> None:
    modes: list[bool] = []
    run = make_run(
        **MANY,
        watch={"on_before_backward": lambda _, module: modes.append(module.detector.training)},
    )
    run.fit()
    assert modes == [True] * 12


def test_the_disk_that_is_foretold_is_what_the_files_take(make_run: Callable[..., Any]) -> None:
    run = make_run(**{**MANY, "epochs": 3}, checkpoint_interval=1, save_safetensors=True)
    need = disk_need(run.trainer, run.module, run.output)
    run.fit()
    kept = {
        p.stat().st_ino: p.stat().st_size for p in run.output.glob("*.*") if p.stat().st_size > 1e5
    }
    assert need.kept == 3
    assert need.all == pytest.approx(sum(kept.values()) + need.state, rel=0.1)


def test_a_disk_that_cannot_suffice_is_told_before_training(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(**{**MANY, "epochs": 40})
    need = disk_need(run.trainer, run.module, run.output)
    assert need.kept == 4 and need.first < need.all
    told = rf"{re.escape(in_bytes(need.all - 1))} are free for output_dir .* needs .*, with 4 .* "
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: Usage(need.all - 1))
    with pytest.raises(OutputFolderError, match=told + r".*checkpoint_interval \(now 10\)"):
        run.fit()
    assert not (run.output / "last.ckpt").exists() and run.trainer.global_step == 0
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: Usage(need.first - 1))
    with pytest.raises(OutputFolderError, match=r"free some, or choose another output_dir$"):
        make_run(**MANY).fit()
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: Usage(need.all - 1))
    stops = {"early_stopping": True, "early_stopping_patience": 1, "early_stopping_min_delta": 2.0}
    make_run(**{**MANY, "epochs": 40}, **stops).fit()
    assert "if it has all its epochs, with 4 checkpoints" in caplog.text


def test_the_plan_tells_the_disk(make_run: Callable[..., Any]) -> None:
    run = make_run(**MANY)
    plan = dict(training_plan(run.module, run.datamodule, run.trainer))
    assert re.fullmatch(r"up to [\d.]+ MB for checkpoints, [\d.,]+ GB are free", plan["disk"])


def test_durations_and_sizes_are_readable() -> None:
    assert [in_time(9.96), in_time(65), in_time(3600)] == ["10.0 s", "0:01:05", "1:00:00"]
    assert [in_bytes(5e5), in_bytes(2.34e9)] == ["0.5 MB", "2.3 GB"]
