"""Small pure parts of a training step: counting steps, seeds, multi-scale sizes, the finite check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.nn import functional as F

from rfdetr.geometry.nested import NestedTensor


class StepCount(NamedTuple):
    """Optimizer steps of a run."""

    per_epoch: int
    total: int


def count_steps(trainer: Trainer, loader_length: int) -> StepCount:
    """Optimizer steps under the trainer's limits, for a training loader of that many batches.

    Not `trainer.estimated_stepping_batches`: asking for it before fit makes Lightning forget a resumed loader's state.
    """
    limit = trainer.limit_train_batches
    batches = min(loader_length, limit) if isinstance(limit, int) else int(loader_length * limit)
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(per_epoch * trainer.max_epochs)
    return StepCount(per_epoch, min(limits, default=per_epoch))


def share_of_window(batch_idx: int, trainer: Trainer) -> float:
    """Factor that makes the last, shorter accumulation window of an epoch a mean over its own batches.

    Lightning divides every batch's loss by accumulate_grad_batches, also where fewer are left.
    """
    accumulate = trainer.accumulate_grad_batches
    window = min(accumulate, trainer.num_training_batches - batch_idx // accumulate * accumulate)
    return accumulate / window


def mix_seed(*key: int) -> int:
    """An independent seed for each key, such as (seed of the run, epoch, batch)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def draw_size(sizes: Sequence[int], seed: int, step: int) -> int:
    """The multi-scale size of an optimizer step: the same on every rank and in every repetition."""
    return int(np.random.default_rng((seed, step)).choice(sizes))


def resize_batch(images: NestedTensor, size: int) -> NestedTensor:
    """The batch at size x size: one antialiased bilinear interpolation on its device, uint8 staying uint8."""
    pixels, mask = images
    if pixels.shape[-2:] == (size, size):
        return images
    if mask is not None:
        mask = F.interpolate(mask[None].float(), (size, size), mode="nearest")[0].bool()
    integer_kernel = pixels.dtype == torch.uint8 and pixels.device.type == "cpu"  # elsewhere there is only a float one
    resized = F.interpolate(pixels if integer_kernel else pixels.float(), (size, size), mode="bilinear", antialias=True)
    if pixels.dtype == torch.uint8 and not integer_kernel:
        resized = resized.round_().clamp_(0, 255).to(torch.uint8)
    return NestedTensor(resized, mask)


def check_finite(loss: Tensor, terms: Mapping[str, Tensor], step: int) -> None:
    """Stops a run whose loss is no number any more; going on would only spread it to every weight."""
    if not torch.isfinite(loss):
        found = ", ".join(f"{name}={float(value):g}" for name, value in terms.items() if not torch.isfinite(value))
        raise FloatingPointError(
            f"the loss is not finite at optimizer step {step} ({found}); lower lr, lengthen warmup_epochs, or train "
            "with amp=False. last.ckpt holds the last whole epoch"
        )
