"""The sine embedding of reference boxes, and a layer in training."""

from __future__ import annotations

import math

import torch
from torch.testing import assert_close

from rfdetr.models.decoder import DecoderLayer, sine_embedding
from rfdetr.models.proposals import flatten_levels


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
    layer = DecoderLayer(
        hidden_dim=16, self_heads=2, cross_heads=4, levels=1, points=2, dim_feedforward=32
    )
    content, position, references = (
        torch.randn(3, 10, 16),
        torch.randn(3, 10, 16),
        torch.rand(3, 10, 1, 4),
    )
    memory = flatten_levels([torch.randn(3, 16, 4, 6)], None)
    together = layer.eval()(content, position, references, memory, 2)
    assert_close(layer.train()(content, position, references, memory, 2), together)
