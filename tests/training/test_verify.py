"""Runs killed with SIGKILL, again and again, end as if nothing had happened."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rfdetr import RFDETR
from rfdetr.cli import main
from rfdetr.training import convert_legacy_checkpoint
from rfdetr.training.verify import content_hashes, verify_resume

SETTINGS = {
    "epochs": 2, "batch_size": 1, "grad_accum_steps": 2, "checkpoint_every_n_steps": 1,
    "drop_path": 0.2, "multi_scale": True, "run_test": False, "save_safetensors": True,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "kills"),
    [
        (0, 2),
        pytest.param(0, 17, marks=pytest.mark.scheduled),
        pytest.param(2, 4, marks=pytest.mark.scheduled),
    ],
)
def test_killed_runs_end_as_the_undisturbed_one(
    workers: int, kills: int, tiny_model: Callable[..., Any], train_config: Callable[..., Any]
) -> None:
    model, train = tiny_model(amp=False), train_config(**SETTINGS, num_workers=workers)
    report = verify_resume(model, train, kills=kills, seed=workers)
    assert report.kills == kills
    assert {
        "last.ckpt",
        "checkpoint_best_total.pth",
        "metrics.csv",
        "metrics.jsonl",
        "log.txt",
        "results.json",
    } <= report.files.keys()
    assert report.differences == []


@pytest.mark.scheduled
def test_equal_seeds_give_equal_runs_and_others_do_not(make_run: Callable[..., Any]) -> None:
    found = [
        content_hashes(
            make_run(output=f"run-{number}", seed=seed, model={"amp": False}, **SETTINGS)
            .fit()
            .output
        )
        for number, seed in enumerate((7, 7, 8))
    ]
    assert found[0] == found[1]
    differing = {name for name in found[0] if found[0][name] != found[2][name]}
    assert {
        "last.ckpt",
        "checkpoint_best_total.pth",
        "checkpoint_best_total.safetensors",
        "log.txt",
    } <= differing


@pytest.mark.scheduled
def test_the_command_says_that_the_files_are_equal(
    make_tiny_coco: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify-resume", str(make_tiny_coco()), "--kills", "1"]) == 0
    assert "the same, bit for bit, after 1 kills" in capsys.readouterr().out


@pytest.mark.scheduled
def test_the_safetensors_file_of_a_run_loads_wherever_the_pth_does(
    make_run: Callable[..., Any], tiny_model: Callable[..., Any]
) -> None:
    run = make_run(**SETTINGS).fit()
    path = run.output / "checkpoint_best_total.safetensors"
    expected = RFDETR.from_checkpoint(path.with_suffix(".pth")).model.model.state_dict()
    again = make_run(output="again", model={"pretrain_weights": path}, **SETTINGS)
    loaded = [
        RFDETR.from_checkpoint(path).model.model.state_dict(),
        copy.deepcopy(again.module.model.state_dict()),
    ]
    again.fit(ckpt_path=path)
    assert again.trainer.global_step > 0
    convert_legacy_checkpoint(path, run.output / "converted.ckpt")
    state = torch.load(run.output / "converted.ckpt", weights_only=True)["state_dict"]
    loaded.append({name.removeprefix("model."): tensor for name, tensor in state.items()})
    for found in loaded:
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
