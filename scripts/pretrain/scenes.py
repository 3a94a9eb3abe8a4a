"""What is rendered for `scripts/pretrain_mini.py`: levels from easy to hard, and their batches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from pretrain.kinds import PRETRAIN_KINDS
from torch import Tensor
from torch.utils.data import Dataset

from rfdetr.config import ModelConfig
from rfdetr.geometry.boxes import xyxy_to_cxcywh
from rfdetr.synthetic.scenes import render_scene

PRETRAIN_CLASSES = tuple(PRETRAIN_KINDS)
"""The classes of the bundled weights, in the order of their labels."""
FIRST_KINDS = (
    "disc", "square", "triangle", "star-5", "ring", "plus", "arrow", "gear", "spiral", "drop",
    "8", "A",
)  # fmt: skip
MORE_KINDS = (
    "bar", "hexagon", "flower-4", "bolt", "mushroom", "umbrella", "ladder", "cloud", "hammer",
    "bone", "pin", "shield", "cup", "wineglass", "chevron", "half-disc", "bitten-disc", "star-4",
    "sun", "frame", "comb", "wave", "magnifier", "dumbbell", "pine", "rocket", "amoeba",
    "striped-pebble", "K", "5", "&", "R", "2", "?",
)  # fmt: skip


class Level(NamedTuple):
    """What is rendered and learned in a part of the run."""

    until: float
    """Share of the run's time at which the next level begins."""
    detects: bool
    """Train the whole detector; else encoder and projector alone, by the dense head: four times as
    many scenes.
    """
    plain: float
    """Share of easy scenes."""
    kinds: tuple[str, ...]
    sizes: tuple[int, ...]
    """Sides of the scenes, pixels."""
    square: bool = True
    """Else width and height are drawn each for itself."""


LEVELS = (
    Level(0.07, False, 1.0, FIRST_KINDS, (128, 160, 192)),
    Level(0.17, False, 1.0, FIRST_KINDS + MORE_KINDS, (128, 160, 192)),
    Level(0.42, False, 0.5, PRETRAIN_CLASSES, (128, 160, 192, 224)),
    Level(0.75, True, 0.7, PRETRAIN_CLASSES, (160, 192, 224)),
    Level(1.00, True, 0.5, PRETRAIN_CLASSES, (192, 224, 256, 288)),
)
"""From easy to hard: given all classes and textures at once, an untrained transformer learns boxes
but no classes.
"""

MASK_LEVELS = (Level(1.00, True, 0.6, PRETRAIN_CLASSES, (192, 224, 256)),)
"""A detector that has learned goes on, with a mask head."""

LATER_LEVELS = (Level(1.00, True, 0.5, PRETRAIN_CLASSES, (160, 192, 224, 256, 288, 320), False),)
"""A detector that has learned goes on, in the shapes that `resolution="auto"` chooses."""

Batch = tuple[Tensor, list[dict[str, Tensor]], Tensor]


class SceneBatches(Dataset[Batch]):
    """Batch (index, level) of an endless set, a function of (seed, index, level).

    Uint8 images (B, 3, H, W), targets, and for every `stride` pixels the class that shows there (B,
    H / stride, W / stride), len(PRETRAIN_CLASSES) where none does. With `masks`, targets have the
    visible pixels of each object. `alike` batches that follow each other have one size: processes
    that share a step take as long.
    """

    def __init__(
        self,
        seed: int,
        batch_size: int,
        levels: tuple[Level, ...],
        config: ModelConfig,
        size: int | None = None,
        alike: int = 1,
    ) -> None:
        self.seed, self.batch_size, self.levels, self.size = seed, batch_size, levels, size
        self.alike = alike
        self.stride, self.masks = config.patch_size // 2, config.segmentation_head

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        index, level = key[0], self.levels[key[1]]
        drawn = np.random.default_rng((self.seed, index // self.alike)).choice(level.sizes, 2)
        height, width = map(int, drawn[[0, 0]] if level.square else drawn)
        if self.size:
            height = width = self.size
        images, targets, shown = [], [], []
        for i in range(self.batch_size if level.detects else 2 * self.batch_size):
            rng = np.random.default_rng((self.seed, index, i))
            plain = bool(rng.random() < level.plain)
            kinds = [PRETRAIN_KINDS[name] for name in level.kinds]
            scene = render_scene(rng, kinds, (height, width), plain=plain)
            labels = np.array(
                [PRETRAIN_CLASSES.index(level.kinds[i]) for i in scene.labels], dtype=np.int64
            )
            images.append(torch.from_numpy(scene.image.copy()).permute(2, 0, 1))
            boxes_xyxy = torch.from_numpy(scene.boxes_xyxy)
            owner = scene.owner[self.stride // 2 :: self.stride, self.stride // 2 :: self.stride]
            shown.append(torch.from_numpy(np.append(labels, len(PRETRAIN_CLASSES))[owner]))
            targets.append(
                {
                    "labels": torch.from_numpy(labels),
                    "boxes": xyxy_to_cxcywh(boxes_xyxy / torch.tensor([width, height] * 2)),
                    "image_id": torch.tensor(index * self.batch_size + i),
                    "orig_size": torch.tensor([height, width]),
                }
            )
            if self.masks:
                targets[-1]["masks"] = torch.from_numpy(
                    scene.owner == np.arange(len(labels))[:, None, None]
                )
        return torch.stack(images), targets, torch.stack(shown)
