"""What moves the weights how far: parameter groups, learning-rate schedules, EMA decay, multi-scale sizes."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from rfdetr.models.detector import Detector

_UNDECAYED = re.compile(r"\.bias$|\.norm|\.lora_magnitude_vector\.")  # in the encoder's blocks
SMALL_OFFSETS = range(-3, 5)  # multi-scale sizes, in windows around the resolution
LARGE_OFFSETS = range(-5, 6)


def parameter_groups(
    detector: Detector,
    *,
    lr: float,
    lr_encoder: float,
    weight_decay: float,
    layer_decay: float,
    component_decay: float,
) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one AdamW group with "name", "params", "lr" and "weight_decay".

    The encoder learns more slowly the further a part is from its output: `layer_decay` for each step of depth, and
    `component_decay` twice; its biases, norms and embeddings do not decay. The decoder has `component_decay` once.
    """
    encoder = detector.encoder
    last_depth = encoder.out_feature_indexes[-1] + 2  # of the final norm; the embeddings have 0, block i has i + 1
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            continue
        part, _, rest = name.partition(".")
        group, rate, decay = "head", lr, weight_decay
        if part == "encoder":
            unit, depth = _encoder_unit(rest, last_depth)
            decays = unit.startswith("block") and not _UNDECAYED.search(rest)
            group = f"encoder.{unit}" + ("" if decays else ".no_decay")
            rate = lr_encoder * layer_decay ** (last_depth - depth) * component_decay**2
            decay = weight_decay if decays else 0.0
        elif part == "decoder":
            group, rate = "decoder", lr * component_decay
        entry = groups.setdefault(group, {"name": group, "params": [], "lr": rate, "weight_decay": decay})
        entry["params"].append(parameter)
    return list(groups.values())


def _encoder_unit(name: str, last_depth: int) -> tuple[str, int]:
    # "blocks.3.qkv.weight" -> block3, depth 4
    part, *rest = name.split(".")
    if part == "blocks":
        return f"block{rest[0]}", int(rest[0]) + 1
    return ("norm", last_depth) if part == "norm" else ("embeddings", 0)


def lr_factor(  # noqa: PLR0913 - a schedule is these numbers, always passed by name
    step: int,
    *,
    schedule: Literal["step", "cosine"],
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    lr_drop: int = 100,
    min_factor: float = 0.0,
) -> float:
    """Share of the learning rate at an optimizer step, counted from 0: linear warm-up from 0, then the schedule.

    "step" multiplies by 0.1 from epoch `lr_drop` on; "cosine" falls to `min_factor` at `total_steps` and stays there.
    """
    warmup_steps = int(warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "step":
        return 1.0 if step < lr_drop * steps_per_epoch else 0.1
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(update: int, decay: float, tau: float) -> float:
    """Share of the average kept at an update, counted from 1: small at first, near `decay` after some `tau` updates."""
    return decay * (1 - math.exp(-update / tau)) if tau > 0 else decay


def multi_scale_sizes(resolution: int, patch_size: int, num_windows: int, expanded: bool) -> list[int]:
    """Training sizes in pixels around the resolution that cut into whole patches and windows."""
    window = patch_size * num_windows
    offsets = LARGE_OFFSETS if expanded else SMALL_OFFSETS
    sizes = [(resolution // window + offset) * window for offset in offsets]
    return [size for size in sizes if size >= 2 * window]
