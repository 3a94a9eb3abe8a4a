"""What moves the weights how far: parameter groups, learning-rate schedules, the decay of the EMA.

Arguments that are settings have the names of `TrainConfig`'s fields.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from rfdetr.models.detector import Detector

_UNDECAYED = re.compile(r"\.bias$|\.norm|\.lora_magnitude_vector\.")  # in the encoder's blocks


def parameter_groups(
    detector: Detector,
    *,
    lr: float,
    lr_encoder: float,
    weight_decay: float,
    lr_vit_layer_decay: float,
    lr_component_decay: float,
) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one AdamW group: "name", "params", "lr", "weight_decay".

    The encoder learns more slowly the further a part is from its output: its rate is
    lr_encoder * lr_vit_layer_decay^depth * lr_component_decay^2, with depth 0 for the last norm, 1
    for the last block, ..., and one more than the first block's for the embeddings. Its biases,
    norms and embeddings do not decay. The decoder's rate is lr * lr_component_decay.
    """
    last = detector.encoder.out_feature_indexes[-1]  # blocks that run
    depths = {f"block{i}": last + 1 - i for i in range(len(detector.encoder.blocks))}
    depths |= {"norm": 0, "embeddings": last + 2}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            continue
        group, rate, decay = group_name(name), lr, weight_decay
        if group == "decoder":
            rate = lr * lr_component_decay
        elif group.startswith("encoder."):
            _, unit, *undecayed = group.split(".")
            rate = lr_encoder * lr_vit_layer_decay ** depths[unit] * lr_component_decay**2
            decay = 0.0 if undecayed else weight_decay
        entry = {"name": group, "params": [], "lr": rate, "weight_decay": decay}
        groups.setdefault(group, entry)["params"].append(parameter)
    return list(groups.values())


def group_name(name: str) -> str:
    """The group of a parameter, by its name.

    "encoder.blocks.3.fc1.bias" is in "encoder.block3.no_decay", "query_content" in "head".
    """
    part, *rest = name.split(".")
    if part != "encoder":
        return "decoder" if part == "decoder" else "head"
    if rest[0] != "blocks":
        return f"encoder.{'norm' if rest[0] == 'norm' else 'embeddings'}.no_decay"
    return f"encoder.block{rest[1]}" + (".no_decay" if _UNDECAYED.search(name) else "")


def lr_factor(  # noqa: PLR0913 - a schedule is these numbers, always passed by name
    step: float,
    *,
    total_steps: int,
    steps_per_epoch: int,
    lr_scheduler: Literal["step", "cosine"],
    warmup_epochs: float = 0.0,
    lr_drop: int = 100,
    lr_min_factor: float = 0.0,
) -> float:
    """Share of the learning rate at an optimizer step, counted from 0: linear warm-up from 0, then
    the schedule.

    "step" multiplies by 0.1 from epoch `lr_drop` on; "cosine" falls to `lr_min_factor` at
    `total_steps` and stays there.
    """
    warmup_steps = int(warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return step / warmup_steps
    if lr_scheduler == "step":
        return 1.0 if step < lr_drop * steps_per_epoch else 0.1
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return lr_min_factor + (1 - lr_min_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(update: int, decay: float, tau: float) -> float:
    """Share of the average kept at an update (from 1): rises to `decay` in some `tau` updates."""
    return decay * (1 - math.exp(-update / tau)) if tau > 0 else decay
