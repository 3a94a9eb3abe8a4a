"""COCO annotation files: classes, boxes, and the errors that name file and record."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rfdetr.data.coco import read_coco
from rfdetr.data.findings import DatasetError, Findings
from rfdetr.data.index import DatasetIndex, build_index

Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]
NAME = "_annotations.coco.json"


def index_of(folder: Path, findings: Findings | None = None) -> DatasetIndex:
    return build_index(read_coco(folder / NAME, folder, findings))


def write(folder: Path, categories: list[dict[str, Any]], annotations: list[dict[str, Any]], images: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(images):
        Image.new("RGB", (100, 80)).save(folder / f"{i}.png")
    records = [{"id": 10 * i, "file_name": f"{i}.png", "width": 100, "height": 80} for i in range(images)]
    (folder / NAME).write_text(json.dumps({"images": records, "annotations": annotations, "categories": categories}))
    return folder


def box(identity: int, image: int, category: int, bbox: list[float], **extra: Any) -> dict[str, Any]:
    return {"id": identity, "image_id": image, "category_id": category, "bbox": bbox, **extra}


def test_the_blood_cells(bccd_coco: Path) -> None:
    index = index_of(bccd_coco / "train", findings := Findings())
    assert index.class_names == ("Platelets", "RBC", "WBC")
    assert index.category_ids.tolist() == [1, 2, 3]
    assert (len(index), len(index.boxes)) == (205, 2804)
    assert np.bincount(index.labels).tolist() == [209, 2381, 214]
    assert index.path(0).name == "BloodImage_00001.jpg"
    assert index.boxes[index.rows(0)][0].tolist() == [68, 315, 68 + 218, 315 + 165]
    assert not findings.counts


def test_labels_follow_the_category_ids_whatever_the_names_and_their_places(tmp_path: Path) -> None:
    categories = [
        {"id": 7, "name": "zebra"},
        {"id": 90, "name": "ant"},
        {"id": 3, "name": "mole", "supercategory": "mole"},
    ]
    boxes = [box(1, 10, 7, [1, 2, 3, 4]), box(2, 0, 90, [0, 0, 10, 10]), box(3, 10, 3, [5, 5, 5, 5])]
    index = index_of(write(tmp_path / "train", categories, boxes))
    assert index.class_names == ("mole", "zebra", "ant")
    assert index.category_ids.tolist() == [3, 7, 90]
    assert index.labels[index.rows(0)].tolist() == [2]
    assert index.labels[index.rows(1)].tolist() == [1, 0]
    assert index.image_ids.tolist() == [0, 10]


def test_unused_parents_are_no_classes_but_unused_categories_are(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "dog", "supercategory": "pets"},
    ]
    index = index_of(write(tmp_path / "a", categories, [box(1, 0, 1, [0, 0, 5, 5])]))
    assert index.class_names == ("cat", "dog")
    assert index.unused_parents == {"pets": 0}
    used = index_of(write(tmp_path / "b", categories, [box(1, 0, 0, [0, 0, 5, 5])]))
    assert used.class_names == ("pets", "cat", "dog")


def test_a_class_may_be_named_like_its_parent(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "cat", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "cat"}]
    index = index_of(write(tmp_path / "train", categories, []))
    assert (index.class_names, index.category_ids.tolist()) == (("cat",), [1])


def test_images_without_objects_are_in_the_index(tiny_coco: Path) -> None:
    index = index_of(tiny_coco / "train")
    counts = np.diff(index.offsets).tolist()
    assert len(index) == 6 and counts[0] == 0 and sum(counts) == len(index.boxes) > 0


def test_crowd_and_area_are_kept(tmp_path: Path) -> None:
    boxes = [box(1, 0, 1, [0, 0, 10, 10], iscrowd=1, area=37.5), box(2, 0, 1, [0, 0, 4, 5], area=None)]
    index = index_of(write(tmp_path / "train", [{"id": 1, "name": "a"}], boxes))
    assert index.crowd.tolist() == [True, False]
    assert index.areas.tolist() == [37.5, 20]


def test_boxes_outside_are_clipped_and_those_without_area_skipped_and_both_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = [
        box(1, 0, 1, [90, 70, 20, 20]),
        box(2, 0, 1, [-5, 0, 10, 10]),
        box(3, 0, 1, [10, 10, 0, 5]),
        box(4, 10, 1, [200, 10, 5, 5]),
        box(5, 10, 1, [0, 0, 100.005, 80]),
    ]
    with caplog.at_level(logging.WARNING):
        index = index_of(write(tmp_path / "train", [{"id": 1, "name": "a"}], boxes), findings := Findings())
    assert index.boxes.tolist() == [[90, 70, 100, 80], [0, 0, 5, 10], [0, 0, 100, 80]]
    assert findings.counts == {"box-clipped": 2, "box-no-size": 1, "box-outside": 1, "box-whole-image": 1}
    assert "2 x box-clipped" in caplog.text and "annotation id 1 (0.png)" in caplog.text


def test_rotated_images_are_counted_and_measured_upright(tiny_coco: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(tiny_coco / "train" / "0.jpg") as image:
        image.save(tiny_coco / "train" / "0.jpg", exif=exif)
    index = index_of(tiny_coco / "train", findings := Findings())
    assert index.sizes[0].tolist() == [64, 48]
    assert [str(finding) for finding in findings.kept() if "0.jpg (image id 1): EXIF orientation 6" in str(finding)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "needs a list 'categories'; found .*'images'"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"annotation id 1 \(image id 2\): bbox is \[1, 2, 3\]"),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, "3", 4]),
            r"annotation id 1 .*expected \[x, y, width, height",
        ),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation id 1 .*bbox is None"),
        (lambda c: c["annotations"][0].pop("image_id"), "annotation id 1: image_id is None"),
        (lambda c: c["annotations"][0].update(category_id="1"), "annotation id 1: category_id is '1'"),
        (lambda c: c["annotations"][0].update(area="big"), "annotation id 1 .*area is 'big'"),
        (
            lambda c: c["annotations"][0].update(category_id=99),
            "annotation id 1: .*category_id 99, .*names an unknown category",
        ),
        (
            lambda c: c["annotations"][0].update(image_id=99),
            "annotation id 1: image_id 99, .*names an image that is not listed",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]),
            "annotation id 1: .*holds NaN or infinity",
        ),
        (lambda c: c["annotations"].append(None), "entries in 'annotations'"),
        (lambda c: c["annotations"].append(5), "annotation number 7: 5, expected an object"),
        (lambda c: c["images"].clear(), "lists no images"),
        (lambda c: c["images"][0].update(id="1"), "image number 0: .*whole number 'id'"),
        (lambda c: c["images"][1].update(id=1), "image id 1: it is both 0.jpg and 1.png"),
        (lambda c: c["images"][0].update(width=640), r"0.jpg \(image id 1\): is 64x48, annotated as 640x48"),
        (
            lambda c: c["images"][0].update(file_name="gone.jpg"),
            r"gone.jpg \(image id 1\): .*an image file does not exist",
        ),
        (lambda c: c["categories"][1].update(name="red"), "categories 1 and 3 are both 'red'"),
        (lambda c: c["categories"][1].update(id=2), r"category ids \[2\] occur more than once"),
        (lambda c: c["categories"].clear(), "'categories' has no classes"),
    ],
)
def test_faults_are_errors_that_name_file_and_record(
    tiny_coco: Path, edit_coco: Edit, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_coco(tiny_coco / "train" / NAME, change)
    with pytest.raises(DatasetError, match=message) as error:
        index_of(tiny_coco / "train")
    assert str(tiny_coco / "train" / NAME) in str(error.value)


def test_missing_files_are_listed_to_ten_and_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "train", [{"id": 1, "name": "a"}], [], images=14)
    for i in range(1, 14):
        (folder / f"{i}.png").unlink()
    with pytest.raises(DatasetError, match=r"13 errors in (.|\n)*10.png \(image id 100\)(.|\n)*and 3 more"):
        index_of(folder)


def test_a_broken_image_file_is_found_at_once(tiny_coco: Path) -> None:
    (tiny_coco / "train" / "2.jpg").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"2.jpg \(image id 3\): .*not a readable image"):
        index_of(tiny_coco / "train")


def test_broken_json_is_an_error_that_names_the_file(tiny_coco: Path) -> None:
    path = tiny_coco / "train" / NAME
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DatasetError, match=f"{NAME}: not a valid JSON file"):
        index_of(tiny_coco / "train")


values = st.floats(-20, 150, width=32)
annotation_lists = st.lists(st.tuples(st.integers(0, 1), st.integers(5, 6), values, values, values, values), max_size=8)


@settings(max_examples=30, deadline=None)
@given(annotation_lists)
def test_every_box_is_inside_its_image_or_counted_as_skipped(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, float, float, float, float]]
) -> None:
    boxes = [box(i, 10 * image, category, numbers) for i, (image, category, *numbers) in enumerate(rows)]
    categories = [{"id": 5, "name": "a"}, {"id": 6, "name": "b"}]
    index = index_of(write(tmp_path_factory.mktemp("set") / "train", categories, boxes), findings := Findings())
    assert (index.boxes >= 0).all() and (index.boxes <= [100, 80, 100, 80]).all()
    skipped = findings.counts["box-no-size"] + findings.counts["box-outside"]
    assert len(index.boxes) + skipped >= len(rows) and index.offsets[-1] == len(index.boxes)
    for image in (0, 1):
        expected = [category - 5 for place, category, x, y, w, h in rows if place == image and inside(x, y, w, h)]
        assert index.labels[index.rows(image)].tolist() == expected


def inside(x: float, y: float, w: float, h: float) -> bool:
    left, top, right, bottom = np.clip(np.array([x, y, x + w, y + h]), 0, [100, 80, 100, 80]).astype(np.float32)
    return bool(right > left and bottom > top)  # as single precision sees it
