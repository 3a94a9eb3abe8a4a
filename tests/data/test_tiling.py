"""Splits cut into tiles: what each shows, what of it is asked for, and the order of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.images import decode_image
from rfdetr.data.index import DatasetIndex
from rfdetr.data.layout import find_splits, load_index
from rfdetr.data.loaders import FILES_AT_ONCE, EpochSampler
from rfdetr.data.tiling import EMPTY_KEPT, TileCounts, cut_tiles
from rfdetr.data.transforms import EvalTransform, TrainTransform
from rfdetr.geometry.polygons import Crop, Segmentation
from rfdetr.geometry.rle import coco_masks, encode_bitmaps, rle_dict

SIZE = (120, 180)  # in tiles of 60 without overlap: two rows of three
# x y w h: whole in a tile, half in each of two, a sliver right of 120, and one over all tiles
BOXES = ([5, 5, 20, 10], [50, 70, 20, 20], [85, 20, 40, 20], [2, 2, 170, 110])


@pytest.fixture
def index(tmp_path: Path) -> DatasetIndex:
    folder = tmp_path / "train"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("large", SIZE), ("small", (50, 60))):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    images = [
        {"id": n, "file_name": f"{name}.png", "height": size[0], "width": size[1]}
        for n, (name, size) in enumerate((("large", SIZE), ("small", (50, 60))), 7)
    ]
    annotations = [
        {
            "id": n, "image_id": 7, "category_id": 1, "iscrowd": 0, "bbox": box,
            "area": box[2] * box[3],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for n, box in enumerate(BOXES[:3])
        for x, y, w, h in [box]
    ]  # fmt: skip
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "a", "supercategory": "none"}]
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "_annotations.coco.json").write_text(json.dumps(content))
    for name in ("large", "small"):
        (tmp_path / "valid" / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
    return load_index(find_splits(tmp_path), "train", masks=True)


def test_tiles_have_the_labels_that_they_show(index: DatasetIndex) -> None:
    tiles, counts = cut_tiles(index, (60, 60), 0, training=False)
    assert counts == TileCounts(images=2, tiles=7, left_out=0, whole=1, cut=3, slivers=1)
    shown = [tiles.boxes[tiles.rows(number)].tolist() for number in range(7)]
    assert shown[0] == [[5, 5, 25, 15]]
    assert shown[1] == [[25, 20, 60, 40]] and shown[2] == [[0, 20, 5, 40]]
    assert shown[3:5] == [[[50, 10, 60, 30]], [[0, 10, 10, 30]]] and shown[5:] == [[], []]
    assert tiles.crowd.tolist() == [False, False, True, False, False]
    assert tiles.areas.tolist() == [200, 700, 100, 200, 200]
    assert tiles.sizes.tolist() == [[60, 60]] * 6 + [[50, 60]]
    assert tiles.name(2) == "large.png [120, 0, 180, 60]"
    (outline,) = tiles.outlines_of(4, tiles.rows(4))
    assert outline is not None and outline.bounds(Crop(0, 0, 60, 60)).tolist() == [0, 10, 10, 30]
    whole = decode_image(tiles.path(4))
    assert np.array_equal(tiles.shown_of(4, whole), whole[60:, 60:120])


def test_training_sees_no_slivers_and_few_empty_tiles(index: DatasetIndex) -> None:
    tiles, counts = cut_tiles(index, (60, 60), 0, training=True)
    # Of the empty tiles one stays, here the one with the sliver; and the small image.
    assert (counts.tiles, counts.left_out, EMPTY_KEPT) == (6, 1, 5)
    assert tiles.name(2) == "large.png [120, 0, 180, 60]" and tiles.name(5).startswith("small")
    own = decode_image(tiles.path(2))[:60, 120:].copy()
    dataset = DetectionDataset(tiles, EvalTransform(60))
    image, target = dataset[2]
    own[20:40, :5] = 128
    assert np.array_equal(image.permute(1, 2, 0).numpy(), own) and not len(target["boxes"])
    evaluated, target = DetectionDataset(tiles, EvalTransform(60), evaluation=True)[2]
    assert target["iscrowd"].tolist() == [1] and not np.array_equal(evaluated, image)
    assert target["orig_size"].tolist() == [60, 60] and len(dataset[3][1]["masks"]) == 1
    assert len(dataset._files) == 1  # decoded once


def test_tiles_do_not_depend_on_what_was_decoded_before(index: DatasetIndex) -> None:
    tiles, _ = cut_tiles(index, (60, 60), 0.2, training=True)
    view = TrainTransform(48, 0.2)
    used = DetectionDataset(tiles, view, seed=3)
    for key in [(0, 4), (1, 2), (0, 2), (2, len(tiles) + 1)]:
        (one, target), (other, same) = used[key], DetectionDataset(tiles, view, seed=3)[key]
        assert np.array_equal(one, other) and np.array_equal(target["boxes"], same["boxes"])


def test_one_tile_is_the_image(index: DatasetIndex) -> None:
    tiles, counts = cut_tiles(index, (200, 200), 0.2, training=True)
    assert counts == TileCounts(2, 2, 0, 3, 0, 0)
    for name in ("boxes", "labels", "crowd", "areas", "sizes", "offsets"):
        assert np.array_equal(getattr(tiles, name), getattr(index, name)), name


@pytest.mark.parametrize("as_rle", [False, True])
def test_cut_outlines_cover_the_pixels_of_the_window(as_rle: bool) -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(8, 60, 9)[:, None]
        points = 50 + radius * np.stack((np.cos(angle), np.sin(angle)), 1)
        picture = Image.new("1", (100, 100))
        ImageDraw.Draw(picture).polygon([tuple(p) for p in points], fill=1)
        drawn = np.array(picture)
        if as_rle:
            (rle,) = encode_bitmaps(torch_of(drawn))
            outline = Segmentation((), rle, 100, 100)
        else:
            outline = Segmentation((points.astype(np.float32),), b"", 100, 100)
        left, top = rng.integers(0, 60, 2).tolist()
        window = Crop(left, top, left + 40, top + 40)
        truth: Any = coco_masks().decode(rle_dict(outline.to_rle(), 100, 100))
        truth = truth[top : top + 40, left : left + 40]
        cut = outline.cut(window)
        shown = np.zeros((40, 40)) if cut is None else coco_masks().decode(
            rle_dict(cut.to_rle(), 40, 40)
        )  # fmt: skip
        # COCO's drawing rounds an edge's pixels by its ends, which the window moves.
        assert (shown != truth).sum() <= (0 if as_rle else 25)


def torch_of(bitmap: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(bitmap[None])


def test_an_epoch_goes_through_a_few_files_at_a_time_and_has_every_tile_once() -> None:
    files = np.repeat(np.arange(20), 6)
    orders = [
        [image for _, image in EpochSampler(120, shuffle=True, seed=1, epoch=e, files=files)]
        for e in (0, 1, 0)
    ]
    assert orders[0] == orders[2] != orders[1] and sorted(orders[1]) == list(range(120))
    for order in orders:
        for start in (0, 48):
            assert len({files[i] for i in order[start : start + 48]}) == FILES_AT_ONCE
        assert len({files[i] for i in order[:8]}) > 2
    first, second = (
        EpochSampler(120, shuffle=True, seed=1, files=files, rank=rank, world_size=2)
        for rank in (0, 1)
    )
    assert sorted(i for rank in (first, second) for _, i in rank) == list(range(120))
