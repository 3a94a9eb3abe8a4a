"""What moves the weights how far: parameter groups, learning-rate schedules, EMA decay, multi-scale
sizes.
"""

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
    """Every trainable parameter in exactly one AdamW group with "name", "params", "lr" and
    "weight_decay".

    The encoder learns more slowly the further a part is from its output: `layer_decay` for each
    step of depth, and `component_decay` twice; its biases, norms and embeddings do not decay. The
    decoder has `component_decay` once.
    """
    last_depth = detector.encoder.out_feature_indexes[-1] + 2
    depths = {"embeddings": 0, "norm": last_depth}  # block i has i + 1
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            continue
        group, rate, decay = group_name(name), lr, weight_decay
        if group == "decoder":
            rate = lr * component_decay
        elif group.startswith("encoder."):
            _, unit, *undecayed = group.split(".")
            depth = depths[unit] if unit in depths else int(unit.removeprefix("block")) + 1
            rate = lr_encoder * layer_decay ** (last_depth - depth) * component_decay**2
            decay = 0.0 if undecayed else weight_decay
        entry = groups.setdefault(
            group, {"name": group, "params": [], "lr": rate, "weight_decay": decay}
        )
        entry["params"].append(parameter)
    return list(groups.values())


def group_name(name: str) -> str:
    """The group of a parameter, by its name: "encoder.blocks.3.fc1.bias" is in
    "encoder.block3.no_decay".
    """
    part, *rest = name.split(".")
    if part != "encoder":
        return "decoder" if part == "decoder" else "head"
    if rest[0] != "blocks":
        return f"encoder.{'norm' if rest[0] == 'norm' else 'embeddings'}.no_decay"
    return f"encoder.block{rest[1]}" + (".no_decay" if _UNDECAYED.search(name) else "")


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
    """Share of the learning rate at an optimizer step, counted from 0: linear warm-up from 0, then
    the schedule.

    "step" multiplies by 0.1 from epoch `lr_drop` on; "cosine" falls to `min_factor` at
    `total_steps` and stays there.
    """
    warmup_steps = int(warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "step":
        return 1.0 if step < lr_drop * steps_per_epoch else 0.1
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(update: int, decay: float, tau: float) -> float:
    """Share of the average kept at an update, counted from 1: small at first, near `decay` after
    some `tau` updates.
    """
    return decay * (1 - math.exp(-update / tau)) if tau > 0 else decay


def multi_scale_sizes(
    resolution: int, patch_size: int, num_windows: int, expanded: bool
) -> list[int]:
    """Training sizes in pixels around the resolution that cut into whole patches and windows."""
    window = patch_size * num_windows
    offsets = LARGE_OFFSETS if expanded else SMALL_OFFSETS
    sizes = [(resolution // window + offset) * window for offset in offsets]
    return [size for size in sizes if size >= 2 * window]
