"""Counting steps and averaging windows, keyed sizes, resizing a batch, the finite check."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from rfdetr.data.batches import NestedTensor
from rfdetr.training.steps import count_steps, draw_size, mix_seed, resize_batch, share_of_window

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.mark.parametrize(
    ("settings", "batches", "expected"),
    [
        ({"max_epochs": 5}, 8, (8, 40)),
        ({"max_epochs": 5, "accumulate_grad_batches": 4}, 9, (3, 15)),
        ({"max_epochs": 5, "accumulate_grad_batches": 4, "limit_train_batches": 5}, 9, (2, 10)),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 9, (4, 8)),
        ({"max_epochs": 5, "max_steps": 7}, 8, (8, 7)),
        ({"max_epochs": -1, "max_steps": 7}, 8, (8, 7)),
        ({"fast_dev_run": 2, "max_epochs": 5}, 8, (2, 2)),
    ],
)
def test_steps_follow_the_trainers_limits(
    settings: dict[str, Any], batches: int, expected: tuple[int, int]
) -> None:
    assert count_steps(pl.Trainer(accelerator="cpu", **QUIET, **settings), batches) == expected


@pytest.mark.parametrize(("batches", "accumulate"), [(8, 4), (9, 4), (3, 4), (5, 1), (7, 3)])
def test_shares_of_a_window_sum_to_the_mean(batches: int, accumulate: int) -> None:
    trainer: Any = SimpleNamespace(num_training_batches=batches, accumulate_grad_batches=accumulate)
    weights = [share_of_window(i, trainer) / accumulate for i in range(batches)]
    windows = [sum(weights[i : i + accumulate]) for i in range(0, batches, accumulate)]
    assert windows == pytest.approx([1.0] * len(windows))


def test_sizes_depend_on_seed_and_step_alone_and_cover_the_choice() -> None:
    sizes = [64, 96, 128]
    drawn = [draw_size(sizes, 3, step) for step in range(60)]
    assert drawn == [draw_size(sizes, 3, step) for step in range(60)]
    assert set(drawn) == set(sizes)
    assert drawn != [draw_size(sizes, 4, step) for step in range(60)]


def test_mixed_seeds_differ_by_every_part_of_the_key() -> None:
    keys = [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)]
    assert len({mix_seed(*key) for key in keys}) == len(keys)


def test_a_resized_uint8_batch_is_one_antialiased_interpolation() -> None:
    pixels = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    resized = resize_batch(NestedTensor(pixels), 24)
    expected = F.interpolate(pixels.float(), (24, 24), mode="bilinear", antialias=True)
    assert resized.tensors.dtype == torch.uint8
    assert (resized.tensors.float() - expected).abs().max() < 1.01  # rounding


def test_a_padding_mask_is_resized_with_its_batch() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :, 4:] = True
    resized = resize_batch(NestedTensor(torch.rand(1, 3, 8, 8), mask), 16)
    assert resized.mask is not None
    assert resized.mask.dtype == torch.bool
    assert resized.mask.float().mean() == 0.5


def test_a_batch_of_the_right_size_is_left_alone() -> None:
    batch = NestedTensor(torch.rand(1, 3, 8, 8))
    assert resize_batch(batch, 8) is batch
