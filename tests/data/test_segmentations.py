"""Segmentations from file to training target: every form, every fault, in little memory."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api

from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.findings import DatasetError
from rfdetr.data.layout import find_splits, load_index
from rfdetr.data.loaders import EpochSampler, build_loader
from rfdetr.data.segmentations import OutlineRecorder
from rfdetr.data.transforms import EvalTransform, TrainTransform
from rfdetr.synthetic.generate import generate

HEIGHT, WIDTH = 30, 40
SQUARE = [[5, 5, 20, 5, 20, 20, 5, 20]]


def ring() -> np.ndarray:
    """A square with a square hole."""
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    bitmap[5:20, 5:20] = 1
    bitmap[10:15, 8:12] = 0
    return np.asfortranarray(bitmap)


def uncompressed(bitmap: np.ndarray) -> dict[str, Any]:
    counts, last = [0], 0
    for pixel in bitmap.ravel(order="F").tolist():
        if pixel != last:
            counts.append(0)
        counts[-1] += 1
        last = pixel
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def compressed(bitmap: np.ndarray) -> dict[str, Any]:
    return {"size": [HEIGHT, WIDTH], "counts": mask_api.encode(bitmap)["counts"].decode()}


FORMS = {
    "polygon": SQUARE,
    "two polygons": [*SQUARE, [25, 5, 35, 5, 35, 25]],
    "overlapping polygons": [*SQUARE, [10, 10, 30, 10, 30, 25, 10, 25]],
    "a good polygon among remains": [[1, 1, 2, 2], *SQUARE],
    "uncompressed run lengths with a hole": uncompressed(ring()),
    "compressed run lengths with a hole": compressed(ring()),
}
FAULTS = {
    "none": None,
    "empty": [],
    "two corners": [[5, 5, 20, 5]],
    "half a corner": [[5, 5, 20, 5, 20, 20, 5]],
    "words": [["a", "b", "c", "d", "e", "f"]],
    "infinite": [[5, 5, 1e60, 5, 20, 20]],
    "a line": [[5, 5, 20, 5, 30, 5]],
    "no list": 7,
    "other size": {"size": [WIDTH, HEIGHT], "counts": uncompressed(ring())["counts"]},
    "too short": {"size": [HEIGHT, WIDTH], "counts": [5, 10]},
    "negative": {"size": [HEIGHT, WIDTH], "counts": [5, -10, HEIGHT * WIDTH + 5]},
    "no text of runs": {"size": [HEIGHT, WIDTH], "counts": "hello world"},
    "nothing inside": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
    "without size": {"counts": [5, 10]},
}


def write(root: Path, segmentations: list[Any]) -> Path:
    """A train split of one image with an object of each outline, all with the same box."""
    (root / "train").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(root / "train" / "0.png")
    annotations = [
        {
            "id": i,
            "image_id": 1,
            "category_id": 1,
            "bbox": [5, 5, 15, 15],
            "area": 100,
            "segmentation": segmentation,
        }
        for i, segmentation in enumerate(segmentations)
    ]
    content = {
        "images": [{"id": 1, "file_name": "0.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def sample(root: Path, size: int = 24, evaluation: bool = True) -> dict[str, torch.Tensor]:
    index = load_index(find_splits(root), "train", masks=True)
    return DetectionDataset(index, EvalTransform(size), evaluation=evaluation)[0][1]


def run_length_strings(target: dict[str, torch.Tensor]) -> list[bytes]:
    content, ends = target["rle_bytes"].numpy().tobytes(), target["rle_offsets"].tolist()
    return [content[start:end] for start, end in itertools.pairwise(ends)]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_the_run_lengths_that_pycocotools_makes_of_it(
    tmp_path: Path, form: str
) -> None:
    target = sample(write(tmp_path / "set", [FORMS[form]]))
    outline: Any = FORMS[form]
    if isinstance(outline, list):
        parts = mask_api.frPyObjects([part for part in outline if len(part) > 4], HEIGHT, WIDTH)
        expected = mask_api.merge(parts)["counts"]
    else:
        expected = mask_api.encode(ring())["counts"]
    assert run_length_strings(target) == [expected]
    assert target["has_mask"].tolist() == [True]


def test_a_hole_stays_a_hole_in_the_training_mask(tmp_path: Path) -> None:
    root = write(tmp_path / "set", [FORMS["compressed run lengths with a hole"]])
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "train" / "0.png")
    masks = sample(root, size=120, evaluation=False)["masks"]
    assert masks.dtype == torch.bool
    np.testing.assert_array_equal(masks[0].numpy(), np.kron(ring(), np.ones((4, 3))))


@pytest.mark.parametrize("fault", FAULTS)
def test_without_a_usable_outline_the_box_stays_and_the_mask_is_marked_absent(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path / "set", [SQUARE, FAULTS[fault], SQUARE])
    with caplog.at_level(logging.WARNING):
        target = sample(root)
    assert len(target["boxes"]) == 3
    assert target["has_mask"].tolist() == [True, False, True]
    assert not target["masks"][1].any() and torch.equal(target["masks"][0], target["masks"][2])
    assert [bool(rle) for rle in run_length_strings(target)] == [True, False, True]
    (report,) = [message for message in caplog.messages if " x outline-" in message]
    assert " 1 x outline-" in report and "annotation id 1 (0.png)" in report


def test_a_set_without_outlines_is_refused_for_masks_alone(tmp_path: Path) -> None:
    layout = find_splits(write(tmp_path / "set", [None, [], [[1, 2]]]))
    with pytest.raises(
        DatasetError, match=r"3 objects, none with a usable outline; the first: no outline"
    ):
        load_index(layout, "train", masks=True)
    assert len(load_index(layout, "train").boxes) == 3


def test_a_set_without_objects_is_none_without_outlines(tmp_path: Path) -> None:
    target = sample(write(tmp_path / "set", []), size=16)
    assert target["masks"].shape == (0, 16, 16) and target["has_mask"].shape == (0,)
    assert target["rle_offsets"].tolist() == [0] and target["rle_bytes"].shape == (0,)


def test_detection_reads_no_outlines_and_has_no_masks(tmp_path: Path) -> None:
    index = load_index(find_splits(write(tmp_path / "set", [SQUARE])), "train")
    assert index.outlines is None
    target = DetectionDataset(index, EvalTransform(16), evaluation=True)[0][1]
    assert not {"masks", "has_mask", "rle_bytes", "rle_offsets"} & set(target)


def test_yolo_polygons_are_relative_and_lines_of_boxes_have_no_mask(tiny_yolo: Path) -> None:
    file = tiny_yolo / "train" / "labels" / "1.txt"
    file.write_text("0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n1 0.5 0.5 0.2 0.2\n")
    index = load_index(find_splits(tiny_yolo), "train", masks=True)
    target = DetectionDataset(index, EvalTransform(32))[1][1]
    assert target["has_mask"].tolist() == [True, False]
    assert target["masks"][0, 8:24, 8:24].all() and target["masks"][0].sum() == 256
    np.testing.assert_allclose(target["boxes"][0], [0.5, 0.5, 0.5, 0.5])


def test_outlines_stay_with_their_boxes_when_rows_move_or_go(
    tmp_path: Path, edit_coco: Callable[..., None]
) -> None:
    root = generate(tmp_path / "shapes", num_images=8, seed=2, plain=True)

    def shuffle_and_damage(content: dict[str, Any]) -> None:
        content["annotations"].reverse()
        content["annotations"].insert(
            3, {**content["annotations"][5], "id": 900, "bbox": [-50, -50, 10, 10]}
        )

    edit_coco(root / "train" / "_annotations.coco.json", shuffle_and_damage)
    index = load_index(find_splits(root), "train", masks=True)
    checked = 0
    for image in range(len(index)):
        rows = index.rows(image)
        for outline, box in zip(index.outlines_of(image, rows), index.boxes[rows], strict=True):
            rle = {"size": index.sizes[image].tolist(), "counts": outline.to_rle()}
            x, y, w, h = mask_api.toBbox(rle)
            np.testing.assert_allclose([x, y, x + w, y + h], box)
            checked += 1
    assert checked > 10


def test_boxes_of_training_views_are_those_around_their_masks(tmp_path: Path) -> None:
    size, cut = 160, 0
    index = load_index(
        find_splits(generate(tmp_path / "shapes", num_images=12, seed=1)), "train", masks=True
    )
    dataset = DetectionDataset(index, TrainTransform(32), seed=4)
    for epoch in range(6):
        for image in range(len(index)):
            target = dataset[epoch, image, size][1]  # of a step of that size
            cut += len(target["boxes"]) < np.diff(index.offsets)[image]
            centres, sizes = target["boxes"][:, :2] * size, target["boxes"][:, 2:] * size
            for mask, low, high in zip(
                target["masks"], centres - sizes / 2, centres + sizes / 2, strict=True
            ):
                ys, xs = np.nonzero(mask.numpy())
                # A tip thinner than a pixel may fall between centres.
                slack = 1.5 * size / index.sizes[image].min() + 1
                np.testing.assert_allclose((xs.min(), ys.min()), low, atol=max(slack, 3))
                np.testing.assert_allclose((xs.max() + 1, ys.max() + 1), high, atol=max(slack, 3))
    assert cut > 5


def test_targets_with_masks_travel_through_workers(tmp_path: Path) -> None:
    index = load_index(find_splits(write(tmp_path / "set", [*FORMS.values()])), "train", masks=True)
    dataset = DetectionDataset(index, EvalTransform(16), evaluation=True)
    loader = build_loader(dataset, EpochSampler(1, shuffle=False), batch_size=1, num_workers=1)
    ((_, (travelled,)),) = list(loader)
    here = dataset[0][1]
    assert travelled.keys() == here.keys()
    assert all(torch.equal(travelled[name], here[name]) for name in here)


def test_an_outline_costs_its_numbers_and_a_few_bytes() -> None:
    """So that 100,000 images of eight objects with 25 corners each need about 200 MB."""
    recorder, objects, corners = OutlineRecorder(), 5_000, 25
    for _ in range(objects):
        recorder.add([np.random.default_rng(0).uniform(0, 30, 2 * corners).tolist()])
    sizes = np.full((objects, 2), 30)
    outlines = recorder.build(np.arange(objects), sizes, relative=False)
    arrays = [value for value in vars(outlines).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) <= objects * (8 * corners + 40)
    assert not [value for value in vars(outlines).values() if isinstance(value, list | dict)]
