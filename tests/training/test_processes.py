"""Several processes: they see each image once, agree on everything, and end up where one process
would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rfdetr import RFDETR
from rfdetr.config import VARIANTS
from rfdetr.losses.criterion import Criterion
from rfdetr.models.build import build_detector
from rfdetr.training.processes import LossMean, ShardedStrategy, is_sharded, process_settings

SCRIPT = Path(__file__).parent / "scripts" / "train.py"
MINI = {"resolution": 96, "num_classes": 3, "num_queries": 50, "num_select": 50, "amp": False}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
LIMIT_S = 280


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, write_coco: Callable[..., Path]) -> Path:
    """Six training images of which two have no objects, five to validate, so that shares differ,
    three to test.
    """
    return write_coco(tmp_path_factory.mktemp("data") / "tiny", {"train": 6, "valid": 5, "test": 3})


class Finished:
    """What the script left: its output folder, what each rank saw, and how it ended."""

    def __init__(self, output: Path, done: subprocess.CompletedProcess[str]) -> None:
        self.output = output
        self.done = done
        self.ranks: list[dict[str, Any]] = [
            json.loads(path.read_text()) for path in sorted(output.glob("rank*.json"))
        ]

    @property
    def epochs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.output / "log.txt").read_text().splitlines()]


@pytest.fixture(scope="module")
def run_script(
    tmp_path_factory: pytest.TempPathFactory, dataset: Path, ranks: Any
) -> Callable[..., Finished]:
    """`run_script(command, trainer={...}, settings={...}, **train_config)` runs scripts/train.py to
    its end; a number in place of a command is how many processes of `ranks` do.
    """

    def run(
        command: list[str] | int,
        trainer: dict[str, Any],
        settings: dict[str, Any] | None = None,
        **train: Any,
    ) -> Any:
        output = tmp_path_factory.mktemp("run") / "output"
        config = {
            "dataset_dir": str(dataset), "output_dir": str(output), "epochs": 2, "batch_size": 1,
            "accelerator": "cpu", "grad_accum_steps": 1, "num_workers": 0, "seed": 7, "lr": 1e-5,
            "lr_encoder": 1e-5, **train,
        }  # fmt: skip
        content = {
            "model": MINI,
            "train": config,
            "trainer": trainer,
            "validate": False,
            **(settings or {}),
        }
        if isinstance(command, int):
            return Finished(output, ranks(command, SCRIPT, content, output.parent))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        line = [*command, str(SCRIPT), json.dumps(content)]
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=LIMIT_S, env=environment
        )
        return Finished(output, done)

    return run


STOPPING = {
    "early_stopping": True,
    "early_stopping_patience": 1,
    "early_stopping_min_delta": 1.0,
    "epochs": 5,
}


@pytest.fixture(scope="module")
def alone(run_script: Callable[..., Finished]) -> Finished:
    finished = run_script(1, {}, {"validate": True}, batch_size=2, **STOPPING)
    assert finished.done.returncode == 0, finished.done.stderr
    return finished


@pytest.mark.slow
def test_two_processes_end_where_one_does(
    run_script: Callable[..., Finished], alone: Finished
) -> None:
    """The documented script under torchrun: batches of one image, so that some have no objects on a
    rank or on both.
    """
    settings = {"strategy": "ddp", "devices": "auto"}
    pair = run_script(TORCHRUN, settings, {"validate": True}, sync_bn=True, **STOPPING)
    assert pair.done.returncode == 0, pair.done.stderr
    (one,), (first, second) = alone.ranks, pair.ranks

    shared = [left + right for left, right in zip(first["images"], second["images"], strict=True)]
    assert shared == one["images"]
    assert sorted(first["evaluated"][:3] + second["evaluated"][:2]) == [1, 2, 3, 4, 5]
    assert one["epochs"] == first["epochs"] == second["epochs"] == 2  # all stopped early, together
    for name in ("checksums", "best"):
        assert first[name] == second[name]  # live, averaged and best weights, to the last bit
    assert first["gradients"] == pytest.approx(one["gradients"], rel=1e-4, abs=1e-6)

    assert set(first["metrics"]) == set(one["metrics"])
    assert one["metrics"]["val/mAP_50_95"] > 0.01  # figures that can differ
    for name in ("metrics", "validated"):
        assert_same_figures(first[name], one[name])
        assert_same_figures(second[name], one[name])
    of_one, of_two = (
        json.loads((run.output / "results.json").read_text())["splits"] for run in (alone, pair)
    )
    assert of_one.keys() == of_two.keys() == {"valid", "test"}
    for split, images in (("valid", 5), ("test", 3)):
        assert of_one[split]["images"] == of_two[split]["images"] == images
        assert_same_figures(defined(of_two[split]["overall"]), defined(of_one[split]["overall"]))
    assert {path.name for path in pair.output.glob("[!r]*")} == {
        path.name for path in alone.output.glob("[!r]*")
    }
    assert (
        "2 = 1 images x 1 batches x 2 processes; the default learning rates are made for 16"
        in pair.done.stderr
    )


@pytest.mark.scheduled
def test_two_processes_share_rectangles_a_cache_early_images_and_the_mean_of_epochs(
    run_script: Callable[..., Finished],
) -> None:
    rectangle = {"model": {**MINI, "resolution": [64, 128]}}
    settings = {"early_eval_share": 0.4, "early_eval_epochs": 1, "average_best": 2, "cache": "ram"}
    parallel = {"strategy": "ddp", "devices": "auto"}
    pair = run_script(2, parallel, rectangle, epochs=3, num_workers=1, **settings)
    assert pair.done.returncode == 0, pair.done.stderr
    first, second = pair.ranks
    for name in ("checksums", "best"):
        assert first[name] == second[name]
    assert ["val/mAP_50_95" in epoch for epoch in pair.epochs] == [False, True, True]
    assert len(list(pair.output.glob("checkpoint_best_step_*.pth"))) == 2


@pytest.mark.slow
def test_train_uses_all_processes_of_torchrun(
    tmp_path: Path,
    make_tiny_coco: Callable[..., Path],
    tiny_model: Callable[..., Any],
    ranks: Any,
) -> None:
    """Into the default folder, which holds a run: all must take the same other one."""
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "last.ckpt").touch()
    model = tiny_model().model_dump(mode="json")
    train = {
        "dataset_dir": str(make_tiny_coco()),
        "epochs": 1,
        "batch_size": 1,
        "num_workers": 0,
        "run_test": False,
    }
    script = Path(__file__).parent / "scripts" / "face.py"
    done = ranks(2, script, {"model": model, "train": train}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Training plan") == done.stdout.count("Training finished") == 1
    assert "8 = 1 images x 4 batches x 2 processes" in done.stdout
    assert "5 updates, 5 an epoch" in done.stdout  # of 8 images each, however few there are
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first["names"] == ["blue", "green", "red"]
    (log,) = tmp_path.glob("output*/log.txt")
    assert log.parent.name == "output-2"
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.scheduled
def test_all_processes_end_with_the_time_of_the_first(
    tmp_path: Path, make_tiny_coco: Callable[..., Path], tiny_model: Callable[..., Any]
) -> None:
    """Less time than any evaluation takes: one update is had, judged, and all end."""
    model = tiny_model().model_dump(mode="json")
    train = {
        "dataset_dir": str(make_tiny_coco()),
        "epochs": 40,
        "minutes": 0.01,
        "batch_size": 1,
        "num_workers": 0,
        "run_test": False,
    }
    command = [
        *TORCHRUN,
        str(Path(__file__).parent / "scripts" / "face.py"),
        json.dumps({"model": model, "train": train}),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "1 of at most 40, the last one to 20%: the 0.01 min were over" in done.stdout
    assert done.stdout.count("time is over after update 1") == 1
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second


@pytest.mark.scheduled
def test_processes_that_do_not_see_the_checkpoint_end_all(
    tmp_path: Path, make_run: Callable[..., Any], ranks: Any
) -> None:
    """As on hosts without a common folder: the second one would begin anew, and all would hang."""
    run = make_run(epochs=1).fit()
    train = run.datamodule.train_config.model_dump(mode="json", exclude={"resume"})
    (tmp_path / "first").mkdir()
    (run.output / "last.ckpt").rename(tmp_path / "first" / "last.ckpt")
    own = {"output_dir": str(tmp_path / "rank{RANK}"), "epochs": 2, "resume": "last"}
    (tmp_path / "rank0").symlink_to(tmp_path / "first")
    content = {"model": run.module.model_config.model_dump(mode="json"), "train": {**train, **own}}
    done = ranks(2, Path(__file__).parent / "scripts" / "face.py", content, tmp_path)
    assert done.returncode == 1
    told = "processes [1] do not go on from the checkpoint of process 0, or have none: output_dir"
    assert told in done.stderr


def defined(figures: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}


def assert_same_figures(found: dict[str, float], expected: dict[str, float]) -> None:
    names = [name for name in expected if not name.endswith("_step")]  # which is a rank's own
    wanted = {name: expected[name] for name in names}
    assert {name: found[name] for name in names} == pytest.approx(
        wanted, rel=2e-6, abs=1e-7, nan_ok=True
    )


@pytest.mark.scheduled
def test_processes_without_a_seed_agree_on_one_and_an_error_on_one_ends_all(
    run_script: Callable[..., Finished],
) -> None:
    """Started by Lightning this time (`devices=2`); rank 1 fails in its second epoch, while rank 0
    waits for it.
    """
    pair = run_script([sys.executable], {"devices": 2}, {"fail_on_rank_1_at": 5}, seed=None)
    assert pair.done.returncode != 0
    assert "rank 1 has lost its disk" in pair.done.stderr
    first, second = pair.ranks
    assert first["seed"] == second["seed"]
    seen = [image for rank in (first, second) for batch in rank["images"][:3] for image in batch]
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    assert first["metrics"]["val/loss"] == second["metrics"]["val/loss"]
    assert (pair.output / "last.ckpt").exists()


@pytest.mark.scheduled
def test_sharded_processes_train_as_one_does_and_leave_whole_files(
    run_script: Callable[..., Finished], alone: Finished
) -> None:
    pair = run_script(2, {"strategy": "fsdp", "devices": "auto"}, epochs=1)
    assert pair.done.returncode == 0, pair.done.stderr
    assert "UserWarning: sharded strategies cannot average weights: EMA is off" in pair.done.stderr
    names = [
        name
        for name in alone.epochs[0]
        if name.startswith(("train/", "val/mAP")) and "step" not in name
    ]
    for name in names:
        assert pair.epochs[0][name] == pytest.approx(alone.epochs[0][name], rel=1e-5, abs=1e-7), (
            name
        )
    picture = np.full((96, 96, 3), 100, np.uint8)
    found = [
        RFDETR.from_checkpoint(pair.output / name).predict(picture, threshold=0.0)
        for name in ("checkpoint_best_total.pth", "last.ckpt")
    ]
    assert len(found[0]) > 0
    np.testing.assert_array_equal(found[0].xyxy, found[1].xyxy)


@pytest.mark.parametrize("variant", ["base", "mini", "seg-nano"])
def test_every_trained_parameter_gets_a_gradient_from_a_batch_without_objects(variant: str) -> None:
    """DDP waits for the gradient of every parameter on every rank."""
    config = VARIANTS[variant](
        pretrain_weights=None, num_classes=2, num_queries=4, num_select=4, group_detr=2
    )
    detector = build_detector(config)
    side = 2 * config.patch_size * config.num_windows
    nothing = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    if config.segmentation_head:
        nothing |= {
            "masks": torch.zeros(0, side, side, dtype=torch.bool),
            "has_mask": torch.zeros(0, dtype=torch.bool),
        }
    losses = Criterion(group_detr=2)(detector(torch.randn(1, 3, side, side)), [nothing])
    torch.stack(list(losses.values())).sum().backward()
    left_out = [
        name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert left_out == []
    unused = {
        name.split(".")[2]
        for name, p in detector.named_parameters()
        if not p.requires_grad and "blocks" in name
    }
    assert unused == ({"11"} if variant == "base" else set())


def test_the_validation_loss_is_a_mean_over_boxes_whatever_the_batches() -> None:
    together, apart = LossMean(), LossMean()
    together.update(torch.tensor(6.0 / 4), 4)
    for total, boxes in ((2.0, 1), (3.0, 3), (1.0, 0)):
        apart.update(torch.tensor(total / max(boxes, 1)), boxes)
    assert float(apart.compute()) == float(together.compute()) == 1.5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"devices": "auto"}, {"devices": 4, "num_nodes": 2}),
        ({"devices": 4, "strategy": "ddp"}, {"num_nodes": 2}),
        ({"devices": -1, "num_nodes": 1}, {"devices": 4}),
    ],
)
def test_torchrun_says_how_many_processes_and_machines_there_are(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], expected: dict[str, int]
) -> None:
    assert process_settings(given) == {}
    for name, value in {
        "TORCHELASTIC_RUN_ID": "none",
        "LOCAL_WORLD_SIZE": "4",
        "WORLD_SIZE": "8",
    }.items():
        monkeypatch.setenv(name, value)
    assert process_settings(given) == expected


@pytest.mark.scheduled
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_end_where_one_process_does(hosts: int, tmp_path: Path) -> None:
    """Network namespaces; one of them is slow, killed and started again."""
    command = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "hosts.py")]
    options = [f"--hosts={hosts}", f"--folder={tmp_path / 'runs'}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 4


def test_processes_that_would_train_alone_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "TORCHELASTIC_RUN_ID": "none",
        "LOCAL_WORLD_SIZE": "2",
        "WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match="each will train alone"):
        process_settings({"devices": 1})


def test_which_strategies_are_sharded() -> None:
    assert not any(map(is_sharded, ("auto", "ddp")))
    assert all(map(is_sharded, ("fsdp", "fsdp_cpu_offload", "deepspeed_stage_2")))
    assert is_sharded(ShardedStrategy())
    assert isinstance(
        process_settings({"strategy": "fsdp", "devices": 1})["strategy"], ShardedStrategy
    )
