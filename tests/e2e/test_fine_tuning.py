"""The main job through the short face: pictures in, a detector that has learned out, and going on
from there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rfdetr import RFDETR, RFDETRMini
from tests.tiny import TINY


def test_a_detector_learns_and_goes_on_learning(
    make_tiny_coco: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = make_tiny_coco({"train": 16, "valid": 6, "test": 6})
    settings: dict[str, Any] = {
        "dataset_dir": dataset,
        "output_dir": tmp_path / "out",
        "batch_size": 4,
        "grad_accum_steps": 1,
        "lr": 2e-3,
        "lr_encoder": 1e-3,
        "clip_max_norm": 1.0,
        "multi_scale": False,
        "num_workers": 0,
        "seed": 0,
        "eval_interval": 5,
    }
    RFDETRMini(**TINY).train(epochs=10, **settings)
    records = read_log(tmp_path / "out")
    assert records[-1]["train/loss"] < 0.8 * records[0]["train/loss"]

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    best = RFDETR.from_checkpoint(tmp_path / "out" / "checkpoint_best_total.pth")
    for split in ("valid", "test"):
        again = best.evaluate(dataset, split=split, batch_size=4, num_workers=0)
        figures = {
            name: value for name, value in again.overall.items() if value == value
        }  # nan is null in the file
        written = results["splits"][split]["overall"]
        assert figures == pytest.approx({name: written[name] for name in figures})

    capsys.readouterr()
    RFDETRMini(**TINY).train(epochs=12, resume="last", **{**settings, "eval_interval": 12})
    assert [record["epoch"] for record in read_log(tmp_path / "out")] == list(range(12))
    assert (
        "last.ckpt" in capsys.readouterr().out.partition("trained")[0]
    )  # the plan names where it goes on

    times = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out", *(tmp_path / "out").iterdir())
    }
    caplog.clear()
    RFDETRMini(**TINY).train(epochs=12, resume="last", **settings)
    assert re.search("nothing is left to train of .*last.ckpt.*raise epochs to go on", caplog.text)
    assert times == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out", *(tmp_path / "out").iterdir())
    }
    assert "Training" not in capsys.readouterr().out


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
