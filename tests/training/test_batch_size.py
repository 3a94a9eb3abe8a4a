"""`batch_size="auto"`: what is chosen from what is measured, and a run with it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rfdetr.training import batch_size as batch_size_module
from rfdetr.training import memory
from rfdetr.training.batch_size import (
    AutoBatchSizeCallback,
    Trial,
    largest_below_limit,
    largest_that_runs,
)
from rfdetr.training.memory import Peak, free_memory, measure_peak

SIZES = [16, 8, 4, 2, 1]


@pytest.mark.parametrize(("limit", "expected"), [(400, 16), (220, 8), (180, 4), (130, 1), (50, 1)])
def test_a_cpu_gets_the_largest_batch_that_leaves_a_margin(limit: int, expected: int) -> None:
    assert largest_below_limit(SIZES, lambda size: Peak(100 + 10 * size, limit))[0] == expected


def test_a_cpu_never_tries_what_will_not_fit_and_believes_what_it_measures() -> None:
    tried: list[int] = []

    def measure(size: int) -> Peak:
        tried.append(size)
        return Peak(1000 if size == 8 else 100 + 10 * size, 250)  # eight take more than foretold

    assert largest_below_limit(SIZES, measure) == (4, Peak(140, 250))
    assert tried == [1, 1, 2, 8, 4]


def fail_above(most: int, error: type[RuntimeError], text: str) -> Callable[[int], Peak]:
    def measure(size: int) -> Peak:
        if size > most:
            raise error(text)
        return Peak(size, 100)

    return measure


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 20.00 MiB"),
        (RuntimeError, "MPS backend out of memory (MPS allocated: 8 GB)"),
    ],
)
def test_a_gpu_gets_the_largest_batch_that_runs(error: type[RuntimeError], text: str) -> None:
    assert largest_that_runs(SIZES, fail_above(5, error, text)) == (4, Peak(4, 100))
    with pytest.raises(RuntimeError, match="single image: lower resolution"):
        largest_that_runs(SIZES, fail_above(0, error, text))


def test_another_error_of_the_trial_is_not_taken_for_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        largest_that_runs(
            SIZES, fail_above(5, RuntimeError, "mat1 and mat2 shapes cannot be multiplied")
        )


@pytest.mark.parametrize(("free", "expected"), [(2**40, (16, 1)), (2**20, (1, 16))])
def test_a_run_gets_its_batch_and_accumulation_and_says_what_was_measured(
    make_run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free: int,
    expected: tuple[int, int],
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    batches: list[int] = []
    watch = {"on_train_start": lambda trainer, _: batches.append(trainer.accumulate_grad_batches)}
    run = make_run(batch_size="auto", epochs=1, multi_scale=True, run_test=False, watch=watch)
    given = run.module.train_config
    with caplog.at_level(logging.INFO, "pytorch_lightning.utilities.rank_zero"):
        run.fit()
    written = yaml.safe_load((run.output / "config.yaml").read_text())["train"]
    assert (written["batch_size"], written["grad_accum_steps"]) == expected
    assert batches == [expected[1]]
    assert run.datamodule.train_config.batch_size == expected[0]
    assert given.batch_size == "auto"
    said = next(
        record.message for record in caplog.records if "batch_size='auto'" in record.message
    )
    assert f"{expected[0]} x {expected[1]} batches" in said
    assert "up to 3 objects at 224 pixels" in said


def test_a_mosaic_counts_with_the_objects_of_four_images(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"mosaic": {"p": 0.5}, "mixup": {"p": 0.1}}
    run = make_run(batch_size="auto", augment=steps)
    seen: list[list[int]] = []
    monkeypatch.setattr(
        Trial, "_step", lambda _, batch: seen.append([len(t["labels"]) for t in batch[1]])
    )
    run.datamodule.setup("fit")
    trial = Trial(run.module, run.datamodule, run.trainer)
    trial.measure(2)
    offsets = run.datamodule.index("train").offsets
    most = 2 * sorted((offsets[1:] - offsets[:-1]).tolist(), reverse=True)  # six images
    assert trial.images == 5
    assert seen == [[sum(most[:5]), sum(most[5:10])]]
    assert trial.most_objects == sum(most[:5])


def test_the_trial_changes_nothing(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 2**40)
    run = make_run(batch_size="auto", drop_path=0.2)
    before = {name: tensor.clone() for name, tensor in run.module.state_dict().items()}
    generator = torch.random.get_rng_state()
    run.trainer.datamodule = run.datamodule
    AutoBatchSizeCallback().setup(run.trainer, run.module, "fit")
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in run.module.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in run.module.parameters())
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_without_the_callback_nothing_chooses_a_batch_size(make_run: Callable[..., Any]) -> None:
    run = make_run(batch_size="auto", trainer={"callbacks": []})
    with pytest.raises(ValueError, match=r"needs a .*AutoBatchSizeCallback .* or give a number"):
        run.fit()


def test_a_loader_of_ones_own_has_its_own_batch_size(make_run: Callable[..., Any]) -> None:
    run = make_run(batch_size="auto")
    with pytest.raises(ValueError, match="loader of your own"):
        run.trainer.fit(run.module, run.datamodule.train_dataloader())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not tell")
def test_the_peak_of_a_process_is_what_was_in_use_at_once() -> None:
    small = measure_peak(lambda: None, torch.device("cpu"))
    large = measure_peak(lambda: torch.ones(2**26, dtype=torch.uint8).sum(), torch.device("cpu"))
    again = measure_peak(lambda: None, torch.device("cpu"))
    assert large.used - small.used > 0.9 * 2**26
    assert again.used < large.used
    assert 0 < small.used < small.limit


def test_a_control_group_limits_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/clear_refs").touch()
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    (proc / "self/cgroup").write_text("1:name=systemd:/elsewhere\n0::/a/b\n")
    for folder, limit in ((groups / "a", "5000000"), (groups / "a/b", "max")):
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("3000000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 1000000\n")
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(memory, "CGROUPS", groups)
    assert free_memory() == 3_000_000
    (groups / "a/memory.current").write_text("0\n")
    (proc / "meminfo").write_text("MemAvailable: 1000 kB\n")
    assert free_memory() == 1_024_000


def test_a_system_that_does_not_tell_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path)
    with pytest.raises(ValueError, match="Linux and GPUs do"):
        free_memory()


def test_the_sizes_of_several_processes_make_an_update_together(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        batch_size_module, "largest_below_limit", lambda sizes, _: (sizes[1], Peak(1, 2))
    )
    run = make_run(
        batch_size="auto", trainer={"devices": 3, "strategy": "ddp", "accelerator": "cpu"}
    )
    run.trainer.datamodule = run.datamodule
    AutoBatchSizeCallback().setup(run.trainer, run.module, "fit")
    # 3 x 2 x 3 = 18.
    assert (run.module.train_config.batch_size, run.trainer.accumulate_grad_batches) == (
        3,
        2,
    )
