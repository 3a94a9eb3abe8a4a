"""Small shared layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from rfdetr.models import layers
from rfdetr.models.layers import ChannelNorm, Linear, attention, is_fused, linear_of_recomputed


def test_attention_in_bfloat16_training_agrees_with_the_fused_kernel() -> None:
    query, key, value = (torch.randn(2, 3, 20, 8, requires_grad=True) for _ in range(3))
    expected = F.scaled_dot_product_attention(query, key, value)
    expected.square().sum().backward()
    gradients = [x.grad.clone() for x in (query, key, value) if x.grad is not None]

    low = [x.detach().bfloat16().requires_grad_() for x in (query, key, value)]
    attended = attention(*low)
    attended.square().sum().backward()
    assert attended.dtype == torch.bfloat16
    assert_close(attended.float(), expected, rtol=0.05, atol=0.02)
    assert_close([x.grad.float() for x in low if x.grad is not None], gradients, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("rows", [1, 4, 100], ids=["by one", "uneven", "all"])
def test_attention_in_parts_has_the_gradients_of_attention(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(6, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    monkeypatch.setattr(layers, "_SCORES_AT_ONCE", rows * 5 * 5 * 8)
    attended = layers._AttentionInParts.apply(*inputs)
    assert_close(attended, F.scaled_dot_product_attention(*inputs))
    assert torch.autograd.gradcheck(layers._AttentionInParts.apply, inputs)


def test_attention_in_bfloat16_keeps_no_scores() -> None:
    inputs = [torch.randn(2, 3, 50, 8).bfloat16().requires_grad_() for _ in range(3)]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, id):
        attention(*inputs)
    assert kept == [2 * 3 * 50 * 8] * 3


@pytest.mark.parametrize("relu", [False, True])
def test_fused_linear_layers_agree_with_plain_ones(relu: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(24, 40), torch.randn(2, 7, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        if not is_fused(x):
            pytest.skip("this processor or build has no bfloat16 products")
        fused = layer(x, relu=relu)
    assert fused.dtype == torch.bfloat16
    plain = layer(x, relu=relu)
    assert_close(fused.float(), plain, rtol=0.02, atol=0.02)
    of = x, layer.weight, layer.bias
    # Where a rounded product has the other sign than the exact one, ReLU lets another gradient by.
    weight = torch.randn_like(plain) * (plain.abs() > 0.05)
    expected = torch.autograd.grad((plain * weight).sum(), of)
    found = torch.autograd.grad((fused * weight).sum(), of)
    assert [gradient.dtype for gradient in found] == [torch.float32] * 3
    assert_close(found, expected, rtol=0.05, atol=0.1)


def test_channel_norm_normalises_each_position_and_needs_no_copy() -> None:
    x = torch.randn(2, 8, 3, 5).contiguous(memory_format=torch.channels_last)
    normalised = ChannelNorm(8)(x)
    assert_close(normalised.mean(1), torch.zeros(2, 3, 5), rtol=0, atol=1e-5)
    assert_close(normalised.var(1, unbiased=False), torch.ones(2, 3, 5), rtol=1e-3, atol=1e-3)
    assert normalised.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
def test_what_is_computed_again_is_not_kept_and_changes_no_gradient(low: bool) -> None:
    cheap, linear = nn.GELU(), Linear(6, 4)
    x = torch.randn(2, 5, 6, requires_grad=True)

    def kept_and_gradients(linear: nn.Linear) -> tuple[int, tuple[Tensor, ...]]:
        kept: list[Tensor] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=low):
            result = linear_of_recomputed(cheap, x, linear)
        gradients = torch.autograd.grad(result.square().sum(), (x, linear.weight, linear.bias))
        same = [
            tensor.numel() == x.numel()
            and torch.equal(tensor.reshape(x.shape), cheap(x).to(tensor.dtype))
            for tensor in kept
        ]
        return sum(same), gradients

    plain = kept_and_gradients(linear.eval())
    frugal = kept_and_gradients(linear.train())
    assert (plain[0], frugal[0]) == (1, 0)
    assert_close(frugal[1], plain[1], rtol=0, atol=0)
