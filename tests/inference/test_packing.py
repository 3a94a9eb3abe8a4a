"""Packed linear layers compute what plain ones do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rfdetr.config import RFDETRMiniConfig
from rfdetr.inference.packing import PackedLinear, can_pack, pack_linears
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector

pytestmark = pytest.mark.skipif(
    not can_pack(), reason="this processor or build has no bfloat16 products"
)


@torch.inference_mode()
def test_a_packed_layer_is_the_layer_and_its_activation() -> None:
    linear = nn.Linear(24, 40).bfloat16()
    x = torch.randn(2, 7, 24, dtype=torch.bfloat16)
    plain = F.linear(x.float(), linear.weight.float(), linear.bias.float())
    torch.testing.assert_close(PackedLinear(linear)(x).float(), plain, rtol=0.01, atol=0.01)
    torch.testing.assert_close(
        PackedLinear(linear, "gelu")(x).float(), F.gelu(plain), rtol=0.01, atol=0.01
    )


@torch.inference_mode()
def test_a_packed_network_is_as_near_to_float32_as_the_plain_one() -> None:
    torch.manual_seed(0)
    exact = build_detector(
        RFDETRMiniConfig(pretrain_weights=None, resolution=96, num_classes=3)
    ).eval()
    # So that it does not matter which query gets which cell.
    exact.query_content.copy_(exact.query_content[0].clone())
    plain = copy.deepcopy(exact).bfloat16()
    packed = copy.deepcopy(plain)
    pack_linears(packed)
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())

    images = torch.randn(4, 3, 96, 96)

    def errors(network: Detector) -> list[float]:
        low = images.bfloat16()
        pairs = [*zip(network.encode(low), exact.encode(images), strict=True)]
        pairs.append((network(low).logits, exact(images).logits))
        return [float((got - wanted).abs().mean()) for got, wanted in pairs]

    for of_packed, of_plain in zip(errors(packed), errors(plain), strict=True):
        assert of_packed < 1.2 * of_plain
