"""Small pure parts of a training step: counting steps, seeds, multi-scale sizes."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.nn import functional as F

from rfdetr.data.batches import NestedTensor
from rfdetr.errors import InputTypeError

USUAL_BATCH = 16
"""Images of an update that the default learning rates are made for."""
UNKNOWN = sys.maxsize
"""Steps of a run whose loader does not tell how many batches it has: more than any run takes."""


class StepCount(NamedTuple):
    """Optimizer steps of a run."""

    per_epoch: int
    total: int


def length_of(loader: Any) -> int | None:
    """How many batches a loader gives; None of one over an `IterableDataset` that does not tell."""
    try:
        return len(loader)
    except TypeError:
        return None


def count_steps(trainer: Trainer, loader_length: int | None, epochs: int = 1) -> StepCount:
    """Optimizer steps under the trainer's limits, for a training loader of that many batches.

    Where the loader does not tell how many, max_steps are those of all `epochs`, and without
    max_steps the steps of an epoch and of the run are `UNKNOWN`.

    Not `trainer.estimated_stepping_batches`: asking for it before fit makes Lightning forget a
    resumed loader's state.
    """
    limit = trainer.limit_train_batches
    if loader_length is None and not isinstance(limit, int):
        steps = trainer.max_steps
        return (
            StepCount(UNKNOWN, UNKNOWN)
            if steps < 0
            else StepCount(math.ceil(steps / epochs), steps)
        )
    known = UNKNOWN if loader_length is None else loader_length
    batches = min(known, limit) if isinstance(limit, int) else int(known * limit)
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(per_epoch * trainer.max_epochs)
    return StepCount(per_epoch, min(limits, default=per_epoch))


def effective_batch(batch_size: int | str, trainer: Trainer) -> str:
    """How many images an update takes and why, and whether that is unusual, in words."""
    if isinstance(batch_size, str):
        return f"{USUAL_BATCH}, in batches as large as the memory allows"
    accumulate, processes = trainer.accumulate_grad_batches, trainer.world_size
    total = batch_size * accumulate * processes
    text = f"{total} = {batch_size} images x {accumulate} batches x {processes} process{'es' * (processes > 1)}"
    return (
        text
        if total == USUAL_BATCH
        else f"{text}; the default learning rates are made for {USUAL_BATCH}"
    )


def share_of_window(batch_idx: int, trainer: Trainer, first: int = 0) -> float:
    """Factor that makes a shorter accumulation window a mean over its own batches; `first` is the
    first batch trained.

    The last window of an epoch is one, and the first of a run that is resumed with another batch
    size. Lightning divides every batch's loss by accumulate_grad_batches.
    """
    accumulate = trainer.accumulate_grad_batches
    start = batch_idx // accumulate * accumulate
    return accumulate / (min(start + accumulate, trainer.num_training_batches) - max(start, first))


def losses_in_words(losses: Mapping[str, Tensor]) -> str:
    """The last losses, those that are not finite first, and what to do where training diverges."""
    values = sorted(
        ((name, float(value)) for name, value in losses.items()),
        key=lambda item: math.isfinite(item[1]),
    )
    shown = ", ".join(f"{name} {value:g}" for name, value in values) or "none"
    return f"The last losses: {shown}. Lower lr, lengthen warmup_epochs, or train with amp=False"


def mix_seed(*key: int) -> int:
    """An independent seed for each key, such as (seed of the run, epoch, batch)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def draw_size(sizes: Sequence[int], seed: int, step: int) -> int:
    """The multi-scale size of an optimizer step: the same on every rank and in every repetition."""
    return int(np.random.default_rng((seed, step)).choice(sizes))


def resize_batch(images: NestedTensor, size: int) -> NestedTensor:
    """The batch at size x size: one antialiased bilinear interpolation on its device, uint8 staying
    uint8.
    """
    pixels, mask = images
    if pixels.shape[-2:] == (size, size):
        return images
    if mask is not None:
        mask = F.interpolate(mask[None].float(), (size, size), mode="nearest")[0].bool()
    integer_kernel = (
        pixels.dtype == torch.uint8 and pixels.device.type == "cpu"
    )  # elsewhere there is only a float one
    resized = F.interpolate(
        pixels if integer_kernel else pixels.float(), (size, size), mode="bilinear", antialias=True
    )
    if pixels.dtype == torch.uint8 and not integer_kernel:
        resized = resized.round_().clamp_(0, 255).to(torch.uint8)
    return NestedTensor(resized, mask)


def as_batch(batch: Any) -> tuple[NestedTensor, list[dict[str, Tensor]]]:
    """What any loader may give: images with their targets, or images alone, as a `NestedTensor` or
    a plain tensor.

    A target that does not tell `orig_size` gets the batch's own size, so that boxes are in its
    pixels.
    """
    parts = (
        batch
        if isinstance(batch, list | tuple) and not isinstance(batch, NestedTensor)
        else (batch,)
    )
    images = NestedTensor(parts[0]) if isinstance(parts[0], Tensor) else parts[0]
    if not isinstance(images, NestedTensor) or images.tensors.dim() != 4:
        raise InputTypeError(
            f"a batch of {type(parts[0]).__name__}: expected images as one tensor (B, 3, H, W), or (images, targets) "
            "with a dict for each image; give the loader a collate_fn that stacks them"
        )
    targets = parts[1] if len(parts) > 1 else [{}] * len(images.tensors)
    size = torch.tensor(images.tensors.shape[-2:])
    return images, [{"orig_size": size, **target} for target in targets]
