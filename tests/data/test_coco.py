"""COCO annotation files: classes, boxes, and the errors that name file and record."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_api

from rfdetr.data.findings import DatasetError, Findings, Severity
from rfdetr.data.formats.coco import read_coco
from rfdetr.data.images import decode_image
from rfdetr.data.index import DatasetIndex, build_index
from rfdetr.geometry.rle import runs_of_bitmap

Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]
NAME = "_annotations.coco.json"


def index_of(folder: Path, findings: Findings | None = None) -> DatasetIndex:
    return build_index(read_coco(folder / NAME, folder, findings))


def write(
    folder: Path,
    categories: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    images: int = 2,
) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(images):
        Image.new("RGB", (100, 80)).save(folder / f"{i}.png")
    records = [
        {"id": 10 * i, "file_name": f"{i}.png", "width": 100, "height": 80} for i in range(images)
    ]
    (folder / NAME).write_text(
        json.dumps({"images": records, "annotations": annotations, "categories": categories})
    )
    return folder


def box(
    identity: int, image: int, category: int, bbox: list[float], **extra: Any
) -> dict[str, Any]:
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
    boxes = [
        box(1, 10, 7, [1, 2, 3, 4]),
        box(2, 0, 90, [0, 0, 10, 10]),
        box(3, 10, 3, [5, 5, 5, 5]),
    ]
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
    categories = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "cat"},
    ]
    index = index_of(write(tmp_path / "train", categories, []))
    assert (index.class_names, index.category_ids.tolist()) == (("cat",), [1])


def test_images_without_objects_are_in_the_index(tiny_coco: Path) -> None:
    index = index_of(tiny_coco / "train")
    counts = np.diff(index.offsets).tolist()
    assert len(index) == 6 and counts[0] == 0 and sum(counts) == len(index.boxes) > 0


def test_crowd_and_area_are_kept(tmp_path: Path) -> None:
    boxes = [
        box(1, 0, 1, [0, 0, 10, 10], iscrowd=1, area=37.5),
        box(2, 0, 1, [0, 0, 4, 5], area=None),
    ]
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
        index = index_of(
            write(tmp_path / "train", [{"id": 1, "name": "a"}], boxes), findings := Findings()
        )
    assert index.boxes.tolist() == [[90, 70, 100, 80], [0, 0, 5, 10], [0, 0, 100, 80]]
    assert findings.counts == {
        "box-clipped": 2,
        "box-no-size": 1,
        "box-outside": 1,
        "box-whole-image": 1,
    }
    assert "2 x box-clipped" in caplog.text and "annotation id 1 (0.png)" in caplog.text


def turned_set(folder: Path, orientation: int, side: int, frame: str, form: str) -> Path:
    """One PNG of 60 x `side` stored pixels with a bright rectangle, and its annotation in the frame
    that is named.
    """
    stored = np.zeros((side, 60, 3), np.uint8)
    stored[4:12, 6:26] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder.mkdir()
    Image.fromarray(stored).save(folder / "0.png", exif=exif)
    pixels = stored if frame == "stored" else decode_image(folder / "0.png")
    mask = pixels[..., 0] > 0
    (top, left), (bottom, right) = (
        np.argwhere(mask).min(0).tolist(),
        (np.argwhere(mask).max(0) + 1).tolist(),
    )
    outline: Any = [[left, top, right, top, right, bottom, left, bottom]]
    if form == "run lengths":
        outline = {"size": list(mask.shape), "counts": runs_of_bitmap(mask)}
    entry = box(1, 1, 1, [left, top, right - left, bottom - top], segmentation=outline)
    images = [{"id": 1, "file_name": "0.png", "width": mask.shape[1], "height": mask.shape[0]}]
    content = {"images": images, "annotations": [entry], "categories": [{"id": 1, "name": "thing"}]}
    (folder / NAME).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("form", ["polygon", "run lengths"])
@pytest.mark.parametrize(
    ("orientation", "side", "frame"),
    [
        *(
            (orientation, 40, frame)
            for orientation in (5, 6, 7, 8)
            for frame in ("stored", "upright")
        ),
        *((orientation, side, "upright") for orientation in (2, 3, 4, 6) for side in (40, 60)),
    ],
)
def test_boxes_and_outlines_lie_on_the_pixels_of_turned_images(
    tmp_path: Path, orientation: int, side: int, frame: str, form: str
) -> None:
    folder = turned_set(tmp_path / "set", orientation, side, frame, form)
    index = build_index(read_coco(folder / NAME, folder, findings := Findings(), masks=True))
    bright = decode_image(index.path(0))[..., 0] > 0
    assert index.sizes[0].tolist() == list(bright.shape)
    left, top, right, bottom = index.boxes[0].astype(int).tolist()
    assert bright[top:bottom, left:right].all() and bright.sum() == (right - left) * (bottom - top)
    outline = index.outlines_of(0, index.rows(0))[0]
    assert outline is not None
    runs = {"size": list(bright.shape), "counts": outline.to_rle()}
    np.testing.assert_array_equal(mask_api.decode(runs).astype(bool), bright)
    assert dict(findings.counts) == {
        "image-boxes-turned" if frame == "stored" else "image-turned": 1
    }


def test_a_box_without_area_is_skipped_in_a_turned_image_too(
    tmp_path: Path, edit_coco: Edit
) -> None:
    folder = turned_set(tmp_path / "set", 6, 40, "stored", "polygon")
    edit_coco(folder / NAME, lambda c: c["annotations"].append(box(2, 1, 1, [30, 20, -10, 5])))
    index = index_of(folder, findings := Findings())
    assert findings.counts == {"image-boxes-turned": 1, "box-no-size": 1}
    assert len(index.boxes) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "needs a list 'categories'; found .*'images'"),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            r"annotation id 1 \(image id 2\): bbox is \[1, 2, 3\]",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, "3", 4]),
            r"annotation id 1 .*expected \[x, y, width, height",
        ),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation id 1 .*bbox is None"),
        (lambda c: c["annotations"][0].pop("image_id"), "annotation id 1: image_id is None"),
        (
            lambda c: c["annotations"][0].update(category_id=1.5),
            "annotation id 1: category_id is 1.5",
        ),
        (
            lambda c: c["annotations"][0].update(category_id="one"),
            "annotation id 1: .*category_id one, .*names an unknown category",
        ),
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
        (lambda c: c["annotations"].append(None), "annotation number 7: None, expected an object"),
        (lambda c: c["annotations"].append(5), "annotation number 7: 5, expected an object"),
        (lambda c: c["images"].clear(), "lists no images"),
        (lambda c: c["images"][0].update(id=""), r"image number 0: .*'id' \(a whole number\)"),
        (lambda c: c["images"][1].update(id=1), "image id 1: it is both 0.jpg and 1.png"),
        (
            lambda c: c["images"][0].update(width=640),
            r"0.jpg \(image id 1\): is 64x48, annotated as 640x48",
        ),
        (
            lambda c: c["images"][0].update(file_name="gone.jpg"),
            r"gone.jpg \(image id 1\): .*an image file does not exist",
        ),
        (lambda c: c["categories"][1].update(name="red"), "categories 1 and 3 are both 'red'"),
        (lambda c: c["categories"][1].update(name=" "), "category number 1 is .* and a 'name'"),
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


UUIDS = {number: f"6f1c0e5a-{number}" for number in range(20)}


@pytest.mark.parametrize(
    ("form", "image_ids"),
    [
        (str, [1, 2, 3, 4, 5, 6]),
        (float, [1, 2, 3, 4, 5, 6]),
        # Float64, in which metrics compare ids, does not tell these apart.
        (
            lambda number: 2**53 + number,
            range(6),
        ),
        (lambda number: f"{10**30 + number}", range(6)),
        (lambda number: 10**30 + number, range(6)),
        (UUIDS.__getitem__, range(6)),
    ],
    ids=["text", "float", "beyond float64", "long text", "beyond 64 bits", "UUID"],
)
@pytest.mark.parametrize("only_references", [False, True])
def test_ids_of_any_form_mean_the_same_boxes(
    tiny_coco: Path,
    edit_coco: Edit,
    form: Callable[[int], Any],
    image_ids: Any,
    only_references: bool,
) -> None:
    plain = index_of(tiny_coco / "train")

    def change(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry.update({key: form(entry[key]) for key in ("id", "image_id", "category_id")})
        for entry in [] if only_references else content["images"] + content["categories"]:
            entry["id"] = form(entry["id"])

    edit_coco(tiny_coco / "train" / NAME, change)
    if only_references and form not in (str, float):  # nothing has these ids
        with pytest.raises(
            DatasetError, match=rf"annotation id {form(1)}: image_id {form(2)}, .*not listed"
        ):
            index_of(tiny_coco / "train")
        return
    index = index_of(tiny_coco / "train", findings := Findings())
    assert findings.counts == {"ids-odd": 1, "category-parent": 1}
    assert index.image_ids.tolist() == list(image_ids)
    np.testing.assert_array_equal(index.boxes, plain.boxes)
    assert [index.class_names[label] for label in index.labels] == [
        plain.class_names[label] for label in plain.labels
    ]


def test_annotations_of_the_list_alone_count(tiny_coco: Path, edit_coco: Edit) -> None:
    def change(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            x, y, w, h = entry["bbox"]
            entry["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
        first = content["annotations"][0]
        first["parts"] = [{**first, "id": 90, "segmentation": [[9, 9, 12, 9, 12, 12]]}]
        content["deleted_annotations"] = [{**first, "id": 1}]

    plain = index_of(tiny_coco / "train")
    edit_coco(tiny_coco / "train" / NAME, change)
    index = build_index(
        read_coco(
            tiny_coco / "train" / NAME, tiny_coco / "train", findings := Findings(), masks=True
        )
    )
    assert findings.counts == {"category-parent": 1}
    np.testing.assert_array_equal(index.boxes, plain.boxes)
    assert index.outlines is not None
    outlines = [index.outlines.get(entry, 48, 64) for entry in index.outlines.entries]
    corners = [outline.polygons[0][0].tolist() for outline in outlines]  # type: ignore
    assert corners == index.boxes[:, :2].tolist()


def test_names_with_backslashes_are_found_and_told(tiny_coco: Path, edit_coco: Edit) -> None:
    (tiny_coco / "train" / "images").mkdir()
    (tiny_coco / "train" / "0.jpg").rename(tiny_coco / "train" / "images" / "0.jpg")
    edit_coco(
        tiny_coco / "train" / NAME,
        lambda content: content["images"][0].update(file_name="images\\0.jpg"),
    )
    index = index_of(tiny_coco / "train", findings := Findings())
    assert index.path(0) == tiny_coco / "train" / "images" / "0.jpg"
    assert findings.counts == {"path-backslash": 1, "category-parent": 1}


def test_names_that_are_not_utf8_are_found(tiny_coco: Path, edit_coco: Edit) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (tiny_coco / "train" / "0.jpg").rename(tiny_coco / "train" / name)
    edit_coco(
        tiny_coco / "train" / NAME, lambda content: content["images"][0].update(file_name=name)
    )
    index = index_of(tiny_coco / "train")
    assert index.path(0).exists() and index.path(0).name == name and index.fingerprint()


def test_a_file_outside_of_the_dataset_warns_in_training_and_is_an_error_to_the_doctor(
    tiny_coco: Path, edit_coco: Edit
) -> None:
    (tiny_coco / "train" / "0.jpg").rename(tiny_coco.parent / "x.jpg")
    edit_coco(
        tiny_coco / "train" / NAME,
        lambda content: content["images"][0].update(file_name="../../x.jpg"),
    )
    cases: tuple[tuple[Findings, Severity], ...] = (
        (Findings(), "warning"),
        (Findings(checking=True), "error"),
    )
    for findings, severity in cases:
        read_coco(tiny_coco / "train" / NAME, tiny_coco / "train", findings)
        assert findings.counts["path-outside"] == 1 and findings.count(severity) == 1


def test_missing_files_are_listed_to_ten_and_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "train", [{"id": 1, "name": "a"}], [], images=14)
    for i in range(1, 14):
        (folder / f"{i}.png").unlink()
    with pytest.raises(
        DatasetError, match=r"13 errors in (.|\n)*10.png \(image id 100\)(.|\n)*and 3 more"
    ):
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
annotation_lists = st.lists(
    st.tuples(st.integers(0, 1), st.integers(5, 6), values, values, values, values), max_size=8
)


@settings(max_examples=30, deadline=None)
@given(annotation_lists)
def test_every_box_is_inside_its_image_or_counted_as_skipped(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int, float, float, float, float]],
) -> None:
    boxes = [
        box(i, 10 * image, category, numbers) for i, (image, category, *numbers) in enumerate(rows)
    ]
    categories = [{"id": 5, "name": "a"}, {"id": 6, "name": "b"}]
    index = index_of(
        write(tmp_path_factory.mktemp("set") / "train", categories, boxes), findings := Findings()
    )
    assert (index.boxes >= 0).all() and (index.boxes <= [100, 80, 100, 80]).all()
    skipped = findings.counts["box-no-size"] + findings.counts["box-outside"]
    assert len(index.boxes) + skipped >= len(rows) and index.offsets[-1] == len(index.boxes)
    for image in (0, 1):
        expected = [
            category - 5
            for place, category, x, y, w, h in rows
            if place == image and inside(x, y, w, h)
        ]
        assert index.labels[index.rows(image)].tolist() == expected


def inside(x: float, y: float, w: float, h: float) -> bool:
    left, top, right, bottom = np.clip(
        np.array([x, y, x + w, y + h]), 0, [100, 80, 100, 80]
    ).astype(np.float32)
    return bool(right > left and bottom > top)  # as single precision sees it


def test_classes_of_long_ids_are_in_ascending_order_and_text_comes_last(tmp_path: Path) -> None:
    ids = {"blue": 2**70, "text": "b2f0", "green": 2**70 - 1, "red": 5}
    categories = [{"id": identity, "name": name} for name, identity in ids.items()]
    annotations = [box(i, 0, identity, [5 * i, 5, 9, 9]) for i, identity in enumerate(ids.values())]
    index = index_of(write(tmp_path / "split", categories, annotations))
    assert index.class_names == ("red", "green", "blue", "text")
    assert [index.class_names[label] for label in index.labels] == list(ids)
