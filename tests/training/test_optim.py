from __future__ import annotations

import functools
import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rfdetr.config import VARIANTS
from rfdetr.models.build import build_detector
from rfdetr.training.optim import ema_decay, lr_factor, parameter_groups
from rfdetr.training.steps import multi_scale_sizes

GOLDEN = Path(os.environ.get("RFDETR_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
SCHEDULES = json.loads((GOLDEN / "schedules.json").read_text())
RATES = {
    "lr": 1e-4,
    "lr_encoder": 1.5e-4,
    "weight_decay": 1e-4,
    "lr_vit_layer_decay": 0.8,
    "lr_component_decay": 0.7,
}


@functools.cache
def detector_of(variant: str):
    with torch.device("meta"):
        return build_detector(VARIANTS[variant](pretrain_weights=None))


def by_parameter(variant: str, **rates: float) -> dict[str, tuple[str, float, float]]:
    detector = detector_of(variant)
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    return {
        names[id(p)]: (group["name"], group["lr"], group["weight_decay"])
        for group in parameter_groups(detector, **(RATES | rates))
        for p in group["params"]
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_trainable_parameter_is_in_exactly_one_of_few_named_groups(variant: str) -> None:
    detector = detector_of(variant)
    groups = parameter_groups(detector, **RATES)
    found = Counter(id(parameter) for group in groups for parameter in group["params"])
    assert found == Counter(
        id(parameter) for parameter in detector.parameters() if parameter.requires_grad
    )
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names) == 2 * detector.encoder.out_feature_indexes[-1] + 4
    rates = {(group["lr"], group["weight_decay"]) for group in groups}
    assert len(rates) == len(groups)


@pytest.mark.parametrize(
    ("name", "group", "lr", "decay"),
    [
        ("encoder.class_token", "encoder.embeddings.no_decay", 1.5e-4 * 0.49 * 0.8**14, 0.0),
        ("encoder.patch_embed.weight", "encoder.embeddings.no_decay", 1.5e-4 * 0.49 * 0.8**14, 0.0),
        ("encoder.blocks.0.qkv.weight", "encoder.block0", 1.5e-4 * 0.49 * 0.8**13, 1e-4),
        ("encoder.blocks.11.scale2", "encoder.block11", 1.5e-4 * 0.49 * 0.8**2, 1e-4),
        ("encoder.blocks.11.norm1.weight", "encoder.block11.no_decay", 1.5e-4 * 0.49 * 0.8**2, 0.0),
        ("encoder.blocks.11.fc2.bias", "encoder.block11.no_decay", 1.5e-4 * 0.49 * 0.8**2, 0.0),
        ("encoder.norm.weight", "encoder.norm.no_decay", 1.5e-4 * 0.49, 0.0),
        ("decoder.layers.0.linear1.bias", "decoder", 0.7e-4, 1e-4),
        ("decoder.norm.weight", "decoder", 0.7e-4, 1e-4),
        ("query_content", "head", 1e-4, 1e-4),
        ("projector.levels.0.norm.weight", "head", 1e-4, 1e-4),
        ("proposals.class_head.bias", "head", 1e-4, 1e-4),
    ],
)
def test_rates_of_the_nano(name: str, group: str, lr: float, decay: float) -> None:
    found = by_parameter("nano")[name]
    assert found[0] == group
    assert found[1:] == pytest.approx((lr, decay), rel=1e-12)


def test_frozen_parameters_are_in_no_group() -> None:
    detector = build_detector(VARIANTS["mini"](pretrain_weights=None))
    detector.encoder.requires_grad_(False)
    groups = parameter_groups(detector, **RATES)
    assert {group["name"] for group in groups} == {"decoder", "head"}


def test_groups_build_a_fused_adamw_that_keeps_their_names() -> None:
    detector = build_detector(VARIANTS["mini"](pretrain_weights=None))
    optimizer = torch.optim.AdamW(parameter_groups(detector, **RATES), fused=True)
    assert {"decoder", "head", "encoder.block0.no_decay"} <= {
        group["name"] for group in optimizer.param_groups
    }


@pytest.mark.parametrize(
    "case", SCHEDULES["lr"], ids=lambda case: f"{case['preset']}-{case['warmup_steps']}"
)
def test_learning_rate_factors(case: dict) -> None:
    epoch, names = case["steps_per_epoch"], {"min_factor": "lr_min_factor"}
    factor = functools.partial(
        lr_factor,
        lr_scheduler=case["preset"],
        total_steps=case["total_steps"],
        steps_per_epoch=epoch,
        warmup_epochs=case["warmup_steps"] / epoch,
        **{names.get(name, name): value for name, value in case["kwargs"].items()},
    )
    assert [factor(step) for step in range(len(case["factors"]))] == pytest.approx(
        case["factors"], rel=1e-9
    )


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "steps"), [(0.5, 5, 2), (0.7, 5, 3), (0.1, 9, 0), (1.0, 5, 5)]
)
def test_steps_of_warm_up_are_cut_to_a_whole_number(
    epochs: float, per_epoch: int, steps: int
) -> None:
    factor = functools.partial(
        lr_factor,
        lr_scheduler="step",
        total_steps=50,
        steps_per_epoch=per_epoch,
        warmup_epochs=epochs,
    )
    assert [factor(step) for step in range(steps + 2)] == pytest.approx(
        [*(i / (steps or 1) for i in range(steps)), 1, 1]
    )


def test_cosine_stays_at_its_end() -> None:
    factor = functools.partial(
        lr_factor, lr_scheduler="cosine", total_steps=10, steps_per_epoch=5, lr_min_factor=0.2
    )
    assert [factor(step) for step in (10, 11, 1000)] == pytest.approx([0.2] * 3)


def test_warm_up_as_long_as_the_run() -> None:
    factor = functools.partial(
        lr_factor, lr_scheduler="cosine", total_steps=4, steps_per_epoch=4, warmup_epochs=1.0
    )
    assert [factor(step) for step in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("case", SCHEDULES["ema_decay"], ids=lambda case: str(case["updates_done"]))
def test_ema_decay(case: dict) -> None:
    assert ema_decay(case["updates_done"] + 1, case["decay"], case["tau"]) == pytest.approx(
        case["effective"], rel=1e-12
    )


def test_ema_decay_without_warm_up() -> None:
    assert ema_decay(1, 0.9, 0) == 0.9


@pytest.mark.parametrize(
    "case", SCHEDULES["multi_scale"], ids=lambda case: f"{case['resolution']}-{case['expanded']}"
)
def test_multi_scale_sizes(case: dict) -> None:
    side, window = case["resolution"], case["patch_size"] * case["num_windows"]
    sizes = multi_scale_sizes((side, side), side, window, case["expanded"])
    assert sizes == [(scale, scale) for scale in case["scales"]]


def test_multi_scale_sizes_have_at_least_two_windows_a_side() -> None:
    sizes = multi_scale_sizes((96, 96), 96, 32, expanded=True)
    assert sizes == [(side, side) for side in (64, 96, 128, 160, 192, 224, 256)]


@given(st.integers(2, 40), st.integers(2, 40), st.sampled_from([14, 24, 32]), st.booleans())
def test_multi_scale_keeps_the_shape_in_whole_windows(
    rows: int, columns: int, window: int, expanded: bool
) -> None:
    square = round((rows * columns) ** 0.5)
    size = rows * window, columns * window
    sizes = multi_scale_sizes(size, square * window, window, expanded)
    assert size in sizes
    factors = [(square + offset) / square for offset in range(-5, 6)]
    for drawn in sizes:
        assert drawn[0] % window == drawn[1] % window == 0
        off = [
            [abs(a - b * factor) for a, b in zip(drawn, size, strict=True)] for factor in factors
        ]
        assert min(map(max, off)) <= window / 2 + 1e-6  # both by one factor, but for rounding
