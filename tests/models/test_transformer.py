"""The decoder: attention in a group, deformable attention, the sine embedding, a whole layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rfdetr.models.transformer import (
    DecoderLayer,
    DeformableAttention,
    GroupSelfAttention,
    Memory,
    flatten_levels,
    sine_embedding,
)


def test_a_group_does_not_see_the_others() -> None:
    layer = GroupSelfAttention(16, heads=4)
    content, position = torch.randn(2, 2, 15, 16)  # 3 groups of 5
    together = layer(content, position, groups=3)
    alone = layer(content[:, 5:10], position[:, 5:10], groups=1)
    assert_close(together[:, 5:10], alone)
    assert not torch.allclose(together, layer(content, position, groups=1))


def plain_attention(levels: int, points: int) -> DeformableAttention:
    """Samples at the reference's centre, weighs evenly, hands the values through."""
    layer = DeformableAttention(8, heads=2, levels=levels, points=points)
    with torch.no_grad():
        layer.sampling_offsets.bias.zero_()
        for linear in (layer.value_proj, layer.output_proj):
            linear.weight.copy_(torch.eye(8))
    return layer


def test_the_centre_of_a_cell_gives_the_cell() -> None:
    fine, coarse = torch.randn(2, 8, 4, 6), torch.randn(2, 8, 2, 3)
    references = torch.tensor([2.5 / 6, 1.5 / 4, 0.3, 0.3]).expand(2, 1, 1, 4)
    one_level = plain_attention(1, 3)(
        torch.randn(2, 1, 8), references, flatten_levels([fine], None)
    )
    assert_close(one_level[:, 0], fine[:, :, 1, 2])
    # On the coarse level the same place is column 0.75, row 0.25.
    row = 0.75 * coarse[:, :, 0] + 0.25 * coarse[:, :, 1]
    expected = (fine[:, :, 1, 2] + 0.25 * row[:, :, 0] + 0.75 * row[:, :, 1]) / 2
    two_levels = plain_attention(2, 2)(
        torch.randn(2, 1, 8), references, flatten_levels([fine, coarse], None)
    )
    assert_close(two_levels[:, 0], expected)


def test_padded_cells_count_as_zero() -> None:
    levels = [torch.randn(1, 8, 4, 4)]
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :, 4:] = True
    references = torch.tensor([[[2 / 4, 0.5, 0.5, 0.5]]])  # on the edge between image and padding
    layer, query = plain_attention(1, 1), torch.randn(1, 1, 8)
    padded = layer(query, references.unsqueeze(2), flatten_levels(levels, mask))
    column = (levels[0][0, :, 1, 1] + levels[0][0, :, 2, 1]) / 2
    assert_close(padded[0, 0], column / 2)


@pytest.mark.parametrize(("heads", "points"), [(4, 2), (6, 3)])
def test_fresh_offsets_point_in_even_directions_with_growing_reach(heads: int, points: int) -> None:
    layer = DeformableAttention(12, heads=heads, levels=2, points=points)
    offsets = layer.sampling_offsets.bias.view(heads, 2, points, 2)
    assert_close(offsets[0], torch.tensor([[[i + 1.0, 0.0] for i in range(points)]] * 2))
    assert_close(offsets.abs().amax(-1), torch.arange(1.0, points + 1).expand(heads, 2, -1))
    angle = torch.atan2(offsets[:, 0, 0, 1], offsets[:, 0, 0, 0]) % (2 * math.pi)
    assert_close(angle, torch.arange(heads) * 2 * math.pi / heads, rtol=0, atol=1e-5)


def test_locations_scale_with_the_reference_and_stay_float32() -> None:
    layer = DeformableAttention(8, heads=1, levels=1, points=2).bfloat16()
    reference = torch.tensor([0.5, 0.5, 0.2, 0.4]).view(1, 1, 1, 4)
    locations = layer.sampling_locations(torch.zeros(1, 1, 8, dtype=torch.bfloat16), reference)
    assert locations.dtype == torch.float32
    # Offsets (1, 0) and (2, 0), in units of half the box over the number of points.
    assert_close(locations.view(2, 2), torch.tensor([[0.55, 0.5], [0.6, 0.5]]))


def test_gradients_reach_values_offsets_and_weights() -> None:
    layer = DeformableAttention(8, heads=2, levels=1, points=2)
    tokens = torch.randn(1, 16, 8, requires_grad=True)
    reference = torch.tensor([0.4, 0.6, 0.3, 0.3]).view(1, 1, 1, 4)
    layer(torch.randn(1, 1, 8), reference, Memory(tokens, [(4, 4)])).square().sum().backward()
    found: list[Tensor | None] = [tokens.grad, *(p.grad for p in layer.parameters())]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in found)


def test_sine_embedding_by_hand() -> None:
    x, y, w, h = 0.1, 0.2, 0.3, 0.4
    expected = []
    for coordinate in (y, x, w, h):
        for frequency in (1, 100):  # 10000 ** (2i / 4)
            angle = 2 * math.pi * coordinate / frequency
            expected += [math.sin(angle), math.cos(angle)]
    assert_close(sine_embedding(torch.tensor([[x, y, w, h]]), 4), torch.tensor([expected]))


def test_a_layer_computes_in_training_what_it_computes_in_evaluation() -> None:
    """In training the feed-forward part goes image by image."""
    layer = DecoderLayer(width=16, self_heads=2, cross_heads=4, levels=1, points=2, hidden=32)
    content, position, references = (
        torch.randn(3, 10, 16),
        torch.randn(3, 10, 16),
        torch.rand(3, 10, 1, 4),
    )
    memory = flatten_levels([torch.randn(3, 16, 4, 6)], None)
    together = layer.eval()(content, position, references, memory, 2)
    assert_close(layer.train()(content, position, references, memory, 2), together)
