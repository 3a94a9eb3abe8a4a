"""The classes that the bundled weights were trained on: all can be rendered, none is the demo's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rfdetr.config import RFDETRSegMiniConfig
from rfdetr.synthetic import DEMO_CLASSES, DEMO_DISTRACTORS
from rfdetr.synthetic.scenes import render_scene
from rfdetr.synthetic.shapes import random_rings

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
from pretrain.kinds import PRETRAIN_KINDS
from pretrain.scenes import LEVELS, MASK_LEVELS, PRETRAIN_CLASSES, SceneBatches


def test_the_classes_are_many_and_none_of_the_demo() -> None:
    assert len(PRETRAIN_KINDS) >= 60 and not set(DEMO_CLASSES) & set(PRETRAIN_KINDS)
    assert set(DEMO_DISTRACTORS) <= set(PRETRAIN_KINDS)
    assert all(set(level.kinds) <= set(PRETRAIN_KINDS) for level in LEVELS + MASK_LEVELS)


def test_every_kind_draws_an_object_of_the_size_asked_for_and_is_seen_in_a_scene() -> None:
    for name, kind in PRETRAIN_KINDS.items():
        for seed in range(3):
            rings = random_rings(np.random.default_rng(seed), kind, 50.0)
            points = np.concatenate([points for points, filled in rings if filled])
            np.testing.assert_allclose(points.min(axis=0), 0, atol=1e-9, err_msg=name)
            assert points.max() == pytest.approx(50.0), name
        scenes = [render_scene(np.random.default_rng(seed), [kind], (96, 96)) for seed in range(4)]
        shares = [float((scene.owner >= 0).mean()) for scene in scenes]
        assert max(shares) > 0.01, name


@pytest.mark.parametrize(("character", "holes"), [("A", 1), ("8", 2), ("Z", 0), ("B", 2)])
def test_a_character_has_the_holes_it_is_known_for(character: str, holes: int) -> None:
    rings = random_rings(np.random.default_rng(0), PRETRAIN_KINDS[character], 50.0)
    assert sum(not ring.filled for ring in rings) == holes


def test_a_batch_is_a_function_of_its_index_and_its_classes_are_those_of_the_pixels() -> None:
    batches = SceneBatches(0, 2, LEVELS, RFDETRSegMiniConfig())
    images, targets, shown = batches[3, 4]
    again, *_ = batches[3, 4]
    assert torch.equal(images, again) and len(images) == len(targets) == len(shown) == 2
    for target, classes in zip(targets, shown, strict=True):
        visible = set(classes.unique().tolist()) - {len(PRETRAIN_CLASSES)}
        assert visible <= set(target["labels"].tolist())
        assert target["masks"].flatten(1).any(1).all()
