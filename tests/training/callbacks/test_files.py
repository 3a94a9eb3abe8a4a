"""The readable record of a run."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import yaml

from rfdetr.config import TrainConfig
from rfdetr.training.callbacks.run_files import epoch_line


def test_every_file_is_there_and_can_be_read(
    make_run: Callable[..., Any], with_plots: None
) -> None:
    run = make_run(epochs=2).fit()
    weights = {
        "checkpoint_best_regular.pth", "checkpoint_best_ema.pth", "checkpoint_best_total.pth",
        "last.ckpt",
    }  # fmt: skip
    assert {path.name for path in run.output.iterdir()} == weights | {
        "checksums.json", "results.json", "log.txt", "metrics.csv", "metrics.jsonl", "config.yaml",
        "metrics.png", "labels.jpg", "train_views.jpg", "pr_curve.png", "f1_curve.png",
        "confusion_matrix.png", "confusion_matrix_normalized.png", "report.html", "report.json",
        "label_hints.json",
    }  # fmt: skip
    assert json.loads((run.output / "checksums.json").read_text()) == {
        name: hashlib.sha256((run.output / name).read_bytes()).hexdigest() for name in weights
    }
    records = [json.loads(line) for line in (run.output / "log.txt").read_text().splitlines()]
    assert [(record["epoch"], record["step"]) for record in records] == [(0, 2), (1, 4)]
    assert {
        "train/loss",
        "train/lr",
        "val/mAP_50_95",
        "val/ema_mAP_50_95",
        "val/loss",
        "seconds",
    } <= set(records[0])
    with open(run.output / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "val/mAP_50_95", "val/ema_mAP_50_95"):
        assert [row["epoch"] for row in rows if row[name]] == ["0", "1"]
    terms = [
        name
        for name in rows[0]
        if name.startswith("train/") and not name.endswith("_step") and "lr" not in name
    ]
    assert {"train/loss", "train/loss_bbox", "train/loss_ce_enc"} <= set(terms)
    for term in terms:
        assert len([row for row in rows if row[f"{term}_step"]]) == 4  # every update
        assert len([row for row in rows if row[term]]) == 2  # every epoch
    assert [row["step"] for row in rows if row["test/mAP_50_95"]] == ["4"]


def test_the_configuration_can_be_trained_again(make_run: Callable[..., Any]) -> None:
    run = make_run(seed=None, epochs=1).fit()
    content = yaml.safe_load((run.output / "config.yaml").read_text())
    assert content["train"]["seed"] == run.module.seed
    assert content["class_names"] == ["blue", "green", "red"]
    assert content["variant"] == "mini"
    again = TrainConfig(**{**content["train"], "seed": None})
    assert again == run.module.train_config
    assert type(run.module.model_config)(**content["model"]) == run.module.model_config


def test_a_new_run_in_the_same_folder_starts_its_record_anew(make_run: Callable[..., Any]) -> None:
    make_run(epochs=2, run_test=False).fit()
    run = make_run(epochs=1, run_test=False, overwrite=True).fit()
    assert len((run.output / "log.txt").read_text().splitlines()) == 1
    with open(run.output / "metrics.csv", newline="") as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {"0"}


def test_a_run_of_an_earlier_version_goes_on_in_its_tables(make_run: Callable[..., Any]) -> None:
    """It wrote no metrics.jsonl, and its checkpoints count the rows of metrics.csv."""

    def stop(trainer: Any, _: Any) -> None:
        trainer.should_stop = True

    settings = {"epochs": 2, "run_test": False}
    whole = make_run(output="whole", **settings).fit().output
    first = make_run(watch={"on_train_epoch_end": stop}, **settings).fit().output
    content = torch.load(first / "last.ckpt", weights_only=True)
    state = content["callbacks"]["RunFilesCallback"]
    del state["bytes"]
    state["rows"] = (first / "metrics.csv").read_bytes().count(b"\n") - 1
    with open(first / "metrics.csv", "ab") as file:
        file.write(b"1.0\r\n")  # logged after the checkpoint
    for name in ("checksums.json", "metrics.jsonl", "last.ckpt"):
        (first / name).unlink()
    torch.save(content, first / "last.ckpt")
    make_run(**settings).fit(ckpt_path="last")
    assert (first / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    records = [json.loads(line) for line in (first / "log.txt").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [0, 1]


def test_an_epoch_without_evaluation_records_no_old_figures(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=3, eval_interval=2, run_test=False).fit()
    records = [json.loads(line) for line in (run.output / "log.txt").read_text().splitlines()]
    assert ["val/mAP_50_95" in record for record in records] == [False, True, False]


@pytest.mark.parametrize(
    ("epochs", "figures", "expected"),
    [
        (
            10,
            {"train/loss": 1.5, "val/mAP_50_95": 0.25},
            "epoch 3/10, loss 1.500, mAP 0.250, 0:01:05, about 0:07:35 left",
        ),
        (3, {}, "epoch 3/3, 0:01:05"),
        (-1, {}, "epoch 3, 0:01:05"),
    ],
)
def test_the_line_of_an_epoch(epochs: int, figures: dict[str, float], expected: str) -> None:
    assert epoch_line(3, epochs, figures, timedelta(seconds=65).total_seconds()) == expected
