"""Counting steps and averaging windows, keyed sizes, resizing a batch, the finite check."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from rfdetr.data.dataset import NestedTensor
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


class Weigh(pl.LightningModule):
    """A scalar whose gradient, at each update, is the sum of what its batches count."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar = torch.nn.Parameter(torch.zeros(()))
        self.updates: list[float] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.scalar * share_of_window(batch_idx, self.trainer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.updates.append(float(self.scalar.grad))  # type: ignore[arg-type]


@pytest.mark.parametrize(("batches", "accumulate"), [(8, 4), (9, 4), (3, 4), (5, 1), (7, 3)])
def test_every_update_is_a_mean_over_its_batches(batches: int, accumulate: int) -> None:
    """Lightning's own loop divides each batch by `accumulate`; so shared, the weights sum to 1."""
    module, loader = Weigh(), torch.utils.data.DataLoader([0.0] * batches)  # type: ignore[arg-type]
    limits = {"max_epochs": 1, "accumulate_grad_batches": accumulate}
    pl.Trainer(accelerator="cpu", **QUIET, **limits).fit(module, loader)
    assert module.updates == pytest.approx([1.0] * -(-batches // accumulate))


def test_the_first_window_of_a_run_resumed_inside_it_has_fewer_batches() -> None:
    trainer = pl.Trainer(accelerator="cpu", accumulate_grad_batches=4, **QUIET)
    trainer.fit_loop.max_batches = 8
    assert [share_of_window(batch, trainer, first=2) for batch in (2, 3, 4)] == [2.0, 2.0, 1.0]


def test_sizes_depend_on_seed_and_step_alone_and_cover_the_choice() -> None:
    sizes = [(64, 64), (96, 64), (128, 192)]
    drawn = [draw_size(sizes, 3, step) for step in range(60)]
    assert drawn == [draw_size(sizes, 3, step) for step in range(60)]
    assert set(drawn) == set(sizes)
    assert drawn != [draw_size(sizes, 4, step) for step in range(60)]


def test_mixed_seeds_differ_by_every_part_of_the_key() -> None:
    keys = [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)]
    assert len({mix_seed(*key) for key in keys}) == len(keys)


def test_a_resized_uint8_batch_is_one_antialiased_interpolation() -> None:
    pixels = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    resized = resize_batch(NestedTensor(pixels), (24, 32))
    expected = F.interpolate(pixels.float(), (24, 32), mode="bilinear", antialias=True)
    assert resized.tensors.dtype == torch.uint8
    assert (resized.tensors.float() - expected).abs().max() < 1.01  # rounding


def test_a_padding_mask_is_resized_with_its_batch() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :, 4:] = True
    resized = resize_batch(NestedTensor(torch.rand(1, 3, 8, 8), mask), (16, 16))
    assert resized.mask is not None
    assert resized.mask.dtype == torch.bool
    assert resized.mask.float().mean() == 0.5


def test_a_batch_of_the_right_size_is_left_alone() -> None:
    batch = NestedTensor(torch.rand(1, 3, 8, 8))
    assert resize_batch(batch, (8, 8)) is batch
