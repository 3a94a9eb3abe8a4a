"""The pairs of pictures that loggers get."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rfdetr.training.callbacks.validation import SIDE, PredictionImagesCallback


@pytest.mark.parametrize("score", [0.9, 0.1], ids=["found", "below the threshold"])
def test_masks_are_drawn_on_both_halves_where_they_lie(score: float) -> None:
    """The left half of the image outlined in the truth, its lower half found; grey pixels, so any
    colour is drawn.
    """
    outlined, logits = torch.zeros(1, 64, 64, dtype=torch.bool), torch.full((1, 16, 16), -1.0)
    outlined[:, :, :32] = True
    logits[:, 8:] = 1.0
    label, size = torch.tensor([1]), torch.tensor([100, 200])
    truth = {
        "boxes": torch.tensor([[0.25, 0.5, 0.5, 1.0]]),
        "labels": label,
        "masks": outlined,
        "orig_size": size,
    }
    found = {
        "boxes": torch.tensor([[0.0, 50.0, 200.0, 100.0]]),
        "labels": label,
        "scores": torch.tensor([score]),
        "mask_logits": logits,
    }
    pair = PredictionImagesCallback(threshold=0.3)._pair(
        torch.full((3, 64, 64), 128, dtype=torch.uint8), truth, found, ["a", "b"]
    )
    pixels = np.asarray(pair).astype(int)
    coloured = np.ptp(pixels, axis=2) > 20
    left, right = coloured[:, :SIDE], coloured[:, -SIDE:]
    assert left[100:300, 100].all() and not left[100:300, 300].any()
    assert right[300, 50:300].all() == right.any() == (score > 0.3)
    assert not right[100, 50:300].any()


def test_a_rectangle_is_drawn_as_one() -> None:
    """An object in the lower right quarter of an input of 32 x 64, of an image of 100 x 200."""
    label = torch.tensor([0])
    truth = {
        "boxes": torch.tensor([[0.75, 0.75, 0.5, 0.5]]),
        "labels": label,
        "orig_size": torch.tensor([100, 200]),
    }
    box = torch.tensor([[100.0, 50.0, 200.0, 100.0]])
    found = {"boxes": box, "labels": label, "scores": torch.tensor([0.9])}
    pixels = torch.full((3, 32, 64), 128, dtype=torch.uint8)
    pair = np.asarray(PredictionImagesCallback()._pair(pixels, truth, found, ["a"])).astype(int)
    assert pair.shape == (SIDE // 2, 2 * SIDE + 6, 3)
    for half in (pair[:, :SIDE], pair[:, -SIDE:]):
        coloured = np.ptp(half, axis=2) > 20
        assert coloured[110:, SIDE // 2 - 1 : SIDE // 2 + 3].any(axis=1).all()  # the left edge
        assert not coloured[:70].any() and not coloured[:, :150].any()
