"""Levels of the projector."""

from __future__ import annotations

import pytest
import torch

from rfdetr.models.encoder import Projector


def test_each_level_has_its_scale() -> None:
    projector = Projector(width=12, num_maps=2, channels=8, scales=[2.0, 1.0, 0.5])
    levels = projector([torch.randn(2, 12, 6, 4), torch.randn(2, 12, 6, 4)])
    assert [tuple(level.shape) for level in levels] == [(2, 8, 12, 8), (2, 8, 6, 4), (2, 8, 3, 2)]


def test_memory_stays_channels_last() -> None:
    maps = [
        torch.randn(2, 12, 6, 4).contiguous(memory_format=torch.channels_last) for _ in range(2)
    ]
    for level in Projector(width=12, num_maps=2, channels=8, scales=[2.0, 1.0, 0.5])(maps):
        assert level.is_contiguous(memory_format=torch.channels_last)


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scale 4\.0"):
        Projector(width=12, num_maps=1, channels=8, scales=[4.0])
