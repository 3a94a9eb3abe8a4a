"""The sine embedding of reference boxes."""

from __future__ import annotations

import math

import torch
from torch.testing import assert_close

from rfdetr.models.decoder import sine_embedding


def test_sine_embedding_by_hand() -> None:
    x, y, w, h = 0.1, 0.2, 0.3, 0.4
    expected = []
    for coordinate in (y, x, w, h):
        for frequency in (1, 100):  # 10000 ** (2i / 4)
            angle = 2 * math.pi * coordinate / frequency
            expected += [math.sin(angle), math.cos(angle)]
    assert_close(sine_embedding(torch.tensor([[x, y, w, h]]), 4), torch.tensor([expected]))
