"""Published tensor names to ours and back."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from rfdetr.config import EncoderDims, ModelConfig
from rfdetr.models.build import build_detector
from rfdetr.weights.names import from_published, to_published

SETTINGS = {
    "hidden_dim": 16,
    "sa_nheads": 2,
    "ca_nheads": 2,
    "out_feature_indexes": [1, 2],
    "num_queries": 4,
}
SMALL = EncoderDims(width=12, depth=2, heads=2)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    config = ModelConfig(
        **SETTINGS,
        encoder="dinov2_registers_windowed_small",
        num_select=4,
        group_detr=11,
        projector_scale=["P3", "P4", "P5"],
        segmentation_head=True,
    )
    state: dict[str, torch.Tensor] = build_detector(config, SMALL).state_dict()
    return state


def test_there_and_back_keeps_every_tensor(state: dict[str, torch.Tensor]) -> None:
    assert_close(from_published(to_published(state)), state, rtol=0, atol=0)


def test_query_key_and_value_are_thirds_of_one_matrix(state: dict[str, torch.Tensor]) -> None:
    published = to_published(state)
    prefix = "backbone.0.encoder.encoder.encoder.layer.1.attention.attention"
    assert torch.equal(
        published[f"{prefix}.key.weight"], state["encoder.blocks.1.qkv.weight"][12:24]
    )
    assert torch.equal(published[f"{prefix}.value.bias"], state["encoder.blocks.1.qkv.bias"][24:])


def test_groups_are_in_the_order_of_their_numbers_not_of_their_text(
    state: dict[str, torch.Tensor],
) -> None:
    shuffled = dict(sorted(to_published(state).items()))  # 0, 1, 10, 2, ...
    assert torch.equal(
        from_published(shuffled)["proposals.linear.weight"], state["proposals.linear.weight"]
    )
    first = to_published(state)["transformer.enc_out_bbox_embed.10.layers.2.weight"]
    assert torch.equal(first, state["proposals.box_head.layers.2.weight"][10])


def test_a_foreign_name_is_kept_and_the_empty_buffer_dropped() -> None:
    state = {"something.else": torch.zeros(1), "_kp_active_mask": torch.zeros(0, 0)}
    assert set(from_published(state)) == {"something.else"}


@pytest.mark.parametrize(
    "missing",
    [
        "backbone.0.encoder.encoder.encoder.layer.0.attention.attention.key.weight",
        "transformer.enc_output.3.bias",
    ],
)
def test_an_incomplete_file_is_refused_by_name(
    state: dict[str, torch.Tensor], missing: str
) -> None:
    published = to_published(state)
    del published[missing]
    with pytest.raises(
        ValueError, match=r"(encoder\.blocks\.0\.qkv\.weight|proposals\.linear\.bias) needs"
    ):
        from_published(published)
