"""Decoded images in memory: the same views, decoded once for all, no more than allowed."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rfdetr.config import RFDETRMiniConfig
from rfdetr.data.cache import ImageCache
from rfdetr.errors import InputError
from rfdetr.training import RFDETRDataModule, memory
from rfdetr.training.plan import _cached

SIZE = 64 * 48 * 3  # bytes of a picture


def views(loader: Any, epochs: int = 2) -> list[Any]:
    seen = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        seen += [(images.tensors, target) for images, targets in loader for target in targets]
    return seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("tiles", [None, (32, 48)])
def test_views_are_those_without_a_cache_to_the_bit(
    train_config: Callable[..., Any], workers: int, tiles: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"num_workers": workers, "tiles": tiles, "persistent_workers": False}
    model = RFDETRMiniConfig(resolution=64, num_classes=3)
    plain, kept = (
        RFDETRDataModule(model, train_config(**settings, cache=cache)) for cache in (None, "ram")
    )
    for name in ("train_dataloader", "val_dataloader"):
        expected, loader = views(getattr(plain, name)()), getattr(kept, name)()
        first = views(loader)
        monkeypatch.setattr("rfdetr.data.dataset.decode_image", None)  # nothing is decoded again
        again = views(loader)
        monkeypatch.undo()
        for found in (first, again):
            assert len(found) == len(expected) > 0
            for (pixels, target), (other, truth) in zip(found, expected, strict=True):
                assert torch.equal(pixels, other)
                assert all(torch.equal(target[key], truth[key]) for key in truth)


def test_no_more_is_kept_than_allowed_and_the_plan_says_how_many(
    train_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RFDETRMiniConfig(resolution=64, num_classes=3)
    data = RFDETRDataModule(model, train_config(cache=8.5 * SIZE / 1e9))
    data.setup("fit")
    told = "room for 6 of 6 train and 2 of 4 valid images, decoded: 0.1 MB of memory"
    assert _cached(data) == told
    assert data.cache_of("test") is None
    monkeypatch.setattr(memory, "free_memory", lambda: 6 * SIZE)
    data = RFDETRDataModule(model, train_config(cache="ram"))
    data.setup("fit")
    assert _cached(data).startswith("room for 3 of 6 train and 0 of 4 valid images")
    assert len(views(data.train_dataloader(), 1)) == 6

    def untold() -> int:
        raise InputError("this system does not tell")

    monkeypatch.setattr(memory, "free_memory", untold)
    with pytest.raises(InputError, match="does not tell; give a number of GB"):
        RFDETRDataModule(model, train_config(cache="ram")).train_dataloader()


def test_an_image_that_is_not_as_expected_is_not_kept_and_none_is_written_to() -> None:
    cache = ImageCache(np.array([[2, 3], [2, 3]], np.int32), 1000)
    odd, even = np.zeros((3, 2, 3), np.uint8), np.ones((2, 3, 3), np.uint8)
    assert cache.get(0, lambda: odd) is odd
    assert cache.get(0, lambda: even) is not even  # a kept copy
    with pytest.raises(ValueError, match="read-only"):
        cache.get(0, lambda: odd)[:] = 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux lists open files")
def test_nothing_is_left_of_it() -> None:
    def held() -> list[str]:
        links = (Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
        maps = Path("/proc/self/maps").read_text().splitlines()
        named = [os.readlink(link) for link in links if link.is_symlink()] + maps
        return [name for name in named if "rfdetr-images" in name]

    cache = ImageCache(np.array([[2, 3]], np.int32), 1000)
    assert held()
    del cache
    gc.collect()
    assert held() == []
