"""Masks of predictions: of what is reported only, the same in both forms, and as validation would
make them.
"""

from __future__ import annotations

import numpy as np
import pytest
import supervision as sv
import torch
import torch.nn.functional as F
from pycocotools import mask as mask_api

from rfdetr.cli.predict import _record
from rfdetr.config import RFDETRSegMiniConfig
from rfdetr.evaluation.drawing import draw
from rfdetr.inference import masks as masks_module
from rfdetr.inference.masks import DENSE_PIXELS, build_masks
from rfdetr.inference.predictor import NetworkPredictor, Prediction
from rfdetr.models.build import build_detector

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor() -> NetworkPredictor:
    config = RFDETRSegMiniConfig(pretrain_weights=None, resolution=64, num_classes=2, num_select=20)
    torch.manual_seed(0)
    model = build_detector(config)
    return NetworkPredictor(
        model, resolution=64, num_select=20, labels={0: "cat", 1: "dog"}, device=torch.device("cpu")
    )


def test_masks_are_the_networks_logits_enlarged_to_the_image(predictor: NetworkPredictor) -> None:
    (found,) = predictor.predict([IMAGE], threshold=0.0)
    (raw,) = predictor.detect(predictor.preprocess([IMAGE]), torch.tensor([IMAGE.shape[:2]]))
    named = torch.isin(raw["labels"], torch.tensor([0, 1]))
    expected = (
        F.interpolate(raw["mask_logits"][named][None], IMAGE.shape[:2], mode="bilinear")[0] > 0
    )
    assert isinstance(found.mask, np.ndarray) and found.mask.dtype == np.bool_
    np.testing.assert_array_equal(found.mask, expected.numpy())


def test_masks_below_the_threshold_are_never_built(
    predictor: NetworkPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def count(mask_logits: torch.Tensor, size: tuple[int, int]) -> object:
        built.append(len(mask_logits))
        return build_masks(mask_logits, size)

    monkeypatch.setattr("rfdetr.inference.predictor.build_masks", count)
    (everything,) = predictor.predict([IMAGE], threshold=0.0)
    assert everything.confidence is not None
    (some,) = predictor.predict([IMAGE], threshold=float(everything.confidence[3]))
    (none,) = predictor.predict([IMAGE], threshold=1.0)
    assert built == [len(everything), 4, 0] and len(some) == 4
    assert none.mask is not None and none.mask.shape == (0, 50, 80)


def test_a_large_image_has_the_same_masks_in_compact_form(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = F.interpolate(torch.randn(5, 1, 4, 4), (16, 16), mode="bilinear")[:, 0]
    logits[2] = -1.0  # a mask of nothing
    dense = build_masks(logits, (60, 90))
    monkeypatch.setattr(masks_module, "DENSE_PIXELS", 60 * 90 - 1)
    compact = build_masks(logits, (60, 90))
    assert isinstance(dense, np.ndarray) and isinstance(compact, sv.CompactMask)
    np.testing.assert_array_equal(np.asarray(compact), dense)
    assert 1920 * 1080 <= DENSE_PIXELS < 2048 * 1536


def test_compact_masks_are_filtered_and_drawn_as_arrays_are() -> None:
    logits = torch.full((2, 8, 8), -1.0)
    logits[1, 2:6, 2:6] = 1.0
    masks = build_masks(logits, (1500, 2000))
    boxes = np.array([[0, 0, 10, 10], [500, 375, 1500, 1125]], np.float32)
    found = sv.Detections(boxes, masks, np.array([0.4, 0.9]), np.array([0, 1]))
    kept = found[found.confidence > 0.5]
    assert len(kept) == 1 and kept.mask.area[0] > 1000 * 750 * 0.8
    picture = sv.MaskAnnotator().annotate(np.zeros((1500, 2000, 3), np.uint8), kept)
    assert picture[750, 1000].any() and not picture[100, 100].any()


def test_the_command_writes_masks_as_coco_run_lengths_and_draws_them(
    predictor: NetworkPredictor,
) -> None:
    (found,) = predictor.predict([IMAGE], threshold=0.0)
    prediction = Prediction("a.jpg", IMAGE, found)
    written = _record(prediction)["detections"]
    assert len(written) == len(found) > 0
    for entry, mask in zip(written, found.mask, strict=True):
        assert entry["mask_rle"]["size"] == [50, 80] and isinstance(
            entry["mask_rle"]["counts"], str
        )
        np.testing.assert_array_equal(mask_api.decode(entry["mask_rle"]), mask)
    inside = np.asarray(found.mask).any(0)
    changed = (np.asarray(draw(IMAGE, found, len(found) * [""])) != IMAGE).any(2)
    assert changed[inside].mean() > 0.9
