"""Parts of a training step without Lightning: precision, step counts, seeds, sizes, batches."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.data.dataset import NestedTensor
from rfdetr.errors import InputError, InputTypeError

if TYPE_CHECKING:  # evaluation needs the precision, and shall not wait for Lightning's import
    from pytorch_lightning import Trainer

USUAL_BATCH = 16
"""Images of an update that the default learning rates are made for."""
UNKNOWN = sys.maxsize
"""Batches of a loader that has no length, steps of its run: more than any run takes."""
SMALL_OFFSETS, LARGE_OFFSETS = range(-3, 5), range(-5, 6)  # in windows around the resolution


@runtime_checkable
class LabelledData(Protocol):
    """What `RFDETRModule` asks of a datamodule, where it has it; loaders alone tell no classes."""

    class_names: list[str] | None

    def data_record(self) -> dict[str, Any]: ...


class StepCount(NamedTuple):
    """Optimizer steps of an epoch and of a run."""

    per_epoch: int
    total: int


def check_batch_size(batch_size: int | str) -> None:
    """Refuses "auto" in a fit that has begun: whatever chooses the number has done so before."""
    if batch_size == "auto":
        raise InputError(
            'batch_size="auto" needs a rfdetr.training.batch_size.AutoBatchSizeCallback among the '
            "callbacks, where build_trainer puts it: add one, or give a number"
        )


def needing_steps(config: TrainConfig) -> list[str]:
    """Settings that cannot be followed without knowing how many steps a run and an epoch have."""
    needs = {
        "lr_scheduler": config.lr_scheduler != "step",
        "lr_drop": config.lr_drop < config.epochs,
        "warmup_epochs": config.warmup_epochs > 0,
        "drop_path": config.drop_path > 0,
    }
    return [f"{name}={getattr(config, name)!r}" for name, needed in needs.items() if needed]


def count_steps(trainer: Trainer, batches: int, epochs: int = 1) -> StepCount:
    """Optimizer steps under the trainer's limits, for a training loader of `batches` batches.

    `UNKNOWN` batches: with max_steps these are the steps of all `epochs`, without it the counts are
    `UNKNOWN` too. (Not `trainer.estimated_stepping_batches`: asking for it before fit makes
    Lightning forget a resumed loader's state.)
    """
    limit, most_steps = trainer.limit_train_batches, trainer.max_steps
    if batches == UNKNOWN and not isinstance(limit, int):
        if most_steps < 0:
            return StepCount(UNKNOWN, UNKNOWN)
        return StepCount(math.ceil(most_steps / epochs), most_steps)
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    limits = [most_steps, per_epoch * (-1 if trainer.max_epochs is None else trainer.max_epochs)]
    return StepCount(per_epoch, min((one for one in limits if one >= 0), default=per_epoch))


def effective_batch(batch_size: int | str, trainer: Trainer) -> str:
    """How many images an update takes and why, and whether that is unusual, in words."""
    if isinstance(batch_size, str):
        return f"{USUAL_BATCH}, in batches as large as the memory allows"
    batches, processes = trainer.accumulate_grad_batches, trainer.world_size
    total = batch_size * batches * processes
    several = "es" * (processes > 1)
    text = f"{total} = {batch_size} images x {batches} batches x {processes} process{several}"
    unusual = f"; the default learning rates are made for {USUAL_BATCH}"
    return text + unusual * (total != USUAL_BATCH)


def share_of_window(batch_idx: int, trainer: Trainer, first: int = 0) -> float:
    """Factor of a batch's loss that makes a shorter accumulation window a mean of its own.

    Lightning divides every loss by accumulate_grad_batches A. With A = 4 and 10 batches, batches 8
    and 9 are a window of two: their factor is 4 / 2. `first` is the first batch that is trained: a
    run resumed with another batch size may begin inside a window.
    """
    accumulate = trainer.accumulate_grad_batches
    start = batch_idx // accumulate * accumulate
    return accumulate / (min(start + accumulate, trainer.num_training_batches) - max(start, first))


def losses_in_words(losses: Mapping[str, Tensor]) -> str:
    """The last losses, those that are not finite first, and what to do where training diverges."""
    values = [(name, float(value)) for name, value in losses.items()]
    values.sort(key=lambda pair: math.isfinite(pair[1]))
    shown = ", ".join(f"{name} {value:g}" for name, value in values) or "none"
    return f"The last losses: {shown}. Lower lr, lengthen warmup_epochs, or train with amp=False"


def resolve_precision(amp: bool, accelerator: Any) -> str:
    """bfloat16 autocast where the device is fast at it, float16 on older GPUs, else float32, as
    Lightning names them, for an accelerator by name or as an object.
    """
    if not amp:
        return "32-true"
    name = (accelerator if isinstance(accelerator, str) else type(accelerator).__name__).lower()
    if torch.cuda.is_available() and name.startswith(("auto", "gpu", "cuda")):
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"
    on_cpu = name.startswith("cpu") or (name == "auto" and not torch.backends.mps.is_available())
    return "bf16-mixed" if on_cpu and has_fast_bfloat16() else "32-true"


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware (AMX or AVX-512 BF16)."""
    # There is no public probe; without these, `bool()` answers in their place: no.
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def mix_seed(*key: int) -> int:
    """An independent seed for each key, such as (seed of the run, epoch, batch)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def multi_scale_sizes(
    size: tuple[int, int], square: int, window: int, expanded: bool
) -> list[tuple[int, int]]:
    """Training sizes (height, width) in pixels around `size` that cut into whole windows of
    `window` pixels. Of `square`, the side of as many pixels, they have the published steps; both
    sides follow it, so that each size has the shape of `size` as nearly as windows allow.
    """
    windows = square // window
    offsets = LARGE_OFFSETS if expanded else SMALL_OFFSETS
    sizes = [
        tuple(round(side / window * (windows + offset) / windows) * window for side in size)
        for offset in offsets
    ]
    return [(height, width) for height, width in sizes if min(height, width) >= 2 * window]


def training_sizes(model: ModelConfig, train: TrainConfig) -> list[tuple[int, int]]:
    """The sizes (height, width) of training images in pixels: one, or those of multi-scale
    training.
    """
    if not train.multi_scale:
        return [model.input_size]
    window = model.patch_size * model.num_windows
    return multi_scale_sizes(model.input_size, model.square, window, train.expanded_scales)


def draw_size(sizes: Sequence[tuple[int, int]], seed: int, step: int) -> tuple[int, int]:
    """The multi-scale size of an optimizer step: the same on every rank and in every repetition."""
    return sizes[int(np.random.default_rng((seed, step)).integers(len(sizes)))]


def resize_batch(images: NestedTensor, size: tuple[int, int]) -> NestedTensor:
    """The batch at `size` (height, width) by one antialiased bilinear interpolation, uint8 staying
    uint8; the mask takes the nearest pixel.
    """
    pixels, mask = images
    if pixels.shape[-2:] == size:
        return images
    if mask is not None:
        mask = F.interpolate(mask[None].float(), size, mode="nearest")[0].bool()
    # CPUs alone interpolate uint8; elsewhere float pixels are rounded.
    rounds = pixels.dtype == torch.uint8 and pixels.device.type != "cpu"
    exact = pixels if pixels.dtype == torch.uint8 and not rounds else pixels.float()
    resized = F.interpolate(exact, size, mode="bilinear", antialias=True)
    if rounds:
        resized = resized.round_().clamp_(0, 255).to(torch.uint8)
    return NestedTensor(resized, mask)


def as_batch(batch: Any, device: torch.device) -> list[Any]:
    """[images, targets] on the device, of what any loader may give: (images, targets), or images.

    Images are a `NestedTensor` or a tensor (B, 3, H, W). A target without `orig_size` gets (H, W),
    so that boxes are in the batch's pixels.
    """
    several = isinstance(batch, list | tuple) and not isinstance(batch, NestedTensor)
    given, *rest = batch if several else (batch,)
    images = NestedTensor(given) if isinstance(given, Tensor) else given
    if not isinstance(images, NestedTensor) or images.tensors.dim() != 4:
        raise InputTypeError(
            f"a batch of {type(given).__name__}: expected images as one tensor (B, 3, H, W), or "
            "(images, targets) with a dict for each image; give the loader a collate_fn that "
            "stacks them"
        )
    targets, size = [], torch.tensor(images.tensors.shape[-2:])
    for target in rest[0] if rest else [{}] * len(images.tensors):
        whole = {"orig_size": size, **target}
        targets.append({name: whole[name].to(device, non_blocking=True) for name in whole})
    return [images.to(device, non_blocking=True), targets]


def without_crowds(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What losses read of a target, less its crowds, whose boxes are none to learn."""
    single = ~target["iscrowd"] if "iscrowd" in target else slice(None)
    names = ("labels", "boxes", "masks", "has_mask")
    return {name: target[name][single] for name in names if name in target}
