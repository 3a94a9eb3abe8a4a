"""The picture of a dataset's labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from rfdetr.data.index import DatasetIndex
from rfdetr.evaluation import label_plots
from rfdetr.evaluation.label_plots import labels_picture

LIMITS = {"resolution": 256, "patch_size": 16, "num_queries": 10}


def index_of(labels: np.ndarray, classes: int, images: int = 20) -> DatasetIndex:
    """Boxes at drawn places in images of 200 x 100, as many in each image."""
    draw = np.random.default_rng(0)
    low = draw.uniform(0, 60, (len(labels), 2))
    boxes = np.concatenate((low, low + draw.uniform(1, 40, low.shape)), 1).astype(np.float32)
    names = tuple(f"class {n} with a name that is long" for n in range(classes))
    nothing = np.zeros(0, np.uint8)
    return DatasetIndex(
        Path("a.json"), Path(), names, np.arange(classes), {}, nothing, np.zeros(images + 1, int),
        np.arange(images), np.full((images, 2), (100, 200), np.int32),
        np.linspace(0, len(labels), images + 1).astype(np.int64), boxes, labels,
        np.zeros(len(labels), np.bool_), np.ones(len(labels), np.float32),
    )  # fmt: skip


@pytest.mark.parametrize(("classes", "boxes"), [(1, 0), (1, 30), (3, 900), (80, 4000)])
def test_every_set_of_labels_is_drawn(
    classes: int, boxes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    made = label_plots.Figure
    monkeypatch.setattr(
        label_plots, "Figure", lambda **kwargs: drawn.append(made(**kwargs)) or drawn[0]
    )
    labels = np.arange(boxes) % classes
    train, valid = index_of(labels, classes), index_of(labels[:10], classes)
    names = list(train.class_names)
    picture = labels_picture({"train": train, "valid": valid}, names, **LIMITS)
    assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    axes = drawn[0].axes[:4]
    bars = sorted(int(bar.get_width()) for bar in axes[0].containers[0])
    expected = np.sort(np.bincount(labels, minlength=classes))
    assert bars == expected[-len(bars) :].tolist() and len(bars) == min(classes, 30)
    assert f"train: 20 images, {boxes:,} objects" in axes[0].get_legend().texts[0].get_text()
    assert sum(bar.get_height() for bar in axes[3].patches) == 20


def test_the_share_of_small_boxes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    plain = label_plots.Axes.text

    def kept(axes: object, x: float, y: float, s: str, **kwargs: object) -> object:
        texts.append(s)
        return plain(axes, x, y, s, **kwargs)

    monkeypatch.setattr(label_plots.Axes, "text", kept)
    index = index_of(np.zeros(200, np.int64), 1)
    labels_picture({"train": index}, ["a"], **LIMITS)
    sides = (index.boxes[:, 2:] - index.boxes[:, :2]) / (200, 100) * 256
    share = (sides < 16).all(1).mean()
    assert 0 < share < 1 and any(text.startswith(f"{share:.1%} of the boxes") for text in texts)
