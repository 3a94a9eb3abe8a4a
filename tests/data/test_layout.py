"""Finding a dataset's splits and their agreement on classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rfdetr.data.findings import DatasetError
from rfdetr.data.layout import find_splits, load_index

Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]
NAME = "_annotations.coco.json"


def to_original_coco(root: Path) -> Path:
    (root / "annotations").mkdir()
    for split, folder in (("train", "train2017"), ("valid", "val2017")):
        (root / split).rename(root / folder)
        (root / folder / NAME).rename(root / "annotations" / f"instances_{folder}.json")
    shutil.rmtree(root / "test")
    return root


def test_exports_are_told_apart(tiny_coco: Path, tiny_yolo: Path) -> None:
    for root, kind in ((tiny_coco, "coco"), (tiny_yolo, "yolo")):
        layout = find_splits(root)
        assert layout.format == kind
        assert list(layout.splits) == ["train", "valid", "test"]
        assert len(load_index(layout, "valid")) == 4
    assert find_splits(str(tiny_yolo), "yolo").format == "yolo"


@pytest.mark.parametrize("name", ["valid", "val", "validation"])
def test_names_of_the_validation_split(tiny_coco: Path, name: str) -> None:
    (tiny_coco / "valid").rename(tiny_coco / name)
    assert len(load_index(find_splits(tiny_coco), "valid")) == 4


def test_the_original_coco_layout(tiny_coco: Path) -> None:
    layout = find_splits(to_original_coco(tiny_coco), "coco")
    assert list(layout.splits) == ["train", "valid"]
    assert load_index(layout, "valid").path(0) == tiny_coco / "val2017" / "0.jpg"
    with pytest.raises(DatasetError, match="pass dataset_file='coco'"):
        find_splits(tiny_coco)


def test_the_subsets_of_cvat(tiny_coco: Path) -> None:
    (tiny_coco / "annotations").mkdir()
    (tiny_coco / "images").mkdir()
    for split, subset in (("train", "Train"), ("valid", "Validation")):
        (tiny_coco / split / NAME).rename(tiny_coco / "annotations" / f"instances_{subset}.json")
        (tiny_coco / split).rename(tiny_coco / "images" / subset)
    shutil.rmtree(tiny_coco / "test")
    layout = find_splits(tiny_coco, "coco")
    assert list(layout.splits) == ["train", "valid"]
    assert load_index(layout, "valid").path(0) == tiny_coco / "images" / "Validation" / "0.jpg"
    with pytest.raises(DatasetError, match="pass dataset_file='coco'"):
        find_splits(tiny_coco)
    (tiny_coco / "annotations" / "instances_Validation.json").unlink()
    (tiny_coco / "annotations" / "instances_Train.json").rename(
        tiny_coco / "annotations" / "instances_default.json"
    )
    (tiny_coco / "images" / "Train").rename(tiny_coco / "images" / "default")
    lone = load_index(find_splits(tiny_coco), "train")
    assert lone.path(0) == tiny_coco / "images" / "default" / "0.jpg"
    (tiny_coco / "annotations" / "more.json").write_text("{}")
    for dataset_file in ("coco", "roboflow"):
        with pytest.raises(
            DatasetError, match=r"instances_default.json, more.json, of no split: divide the images"
        ):
            find_splits(tiny_coco, dataset_file)


def test_folders_of_splits_may_have_capitals(tiny_coco: Path) -> None:
    (tiny_coco / "valid").rename(tiny_coco / "Valid")
    assert load_index(find_splits(tiny_coco), "valid").path(0) == tiny_coco / "Valid" / "0.jpg"


def test_a_missing_split_and_a_missing_dataset_say_what_was_looked_for_and_found(
    tiny_coco: Path,
) -> None:
    shutil.rmtree(tiny_coco / "test")
    with pytest.raises(
        DatasetError, match=r"no 'test' split .*looked for test; found train, valid"
    ):
        load_index(find_splits(tiny_coco), "test")
    with pytest.raises(DatasetError, match=r"looked for data.yaml; found train/, valid/"):
        find_splits(tiny_coco, "yolo")
    with pytest.raises(
        DatasetError,
        match=r"looked for train/_annotations.coco.json .* or data.yaml .*; found nothing",
    ):
        (tiny_coco / "empty").mkdir()
        find_splits(tiny_coco / "empty")
    with pytest.raises(DatasetError, match="absent: no such folder"):
        find_splits(tiny_coco / "absent")


def test_splits_that_disagree_on_classes_show_the_difference(
    tiny_coco: Path, edit_coco: Edit
) -> None:
    train = load_index(find_splits(tiny_coco), "train")
    edit_coco(
        tiny_coco / "valid" / NAME, lambda content: content["categories"][3].update(name="crimson")
    )
    with pytest.raises(
        DatasetError, match=r"valid.*only in .*train split: \['red'\]; only here: \['crimson'\]"
    ):
        load_index(find_splits(tiny_coco), "valid", train.class_names)


def test_ids_may_differ_between_splits_and_labels_follow_the_given_names(
    tiny_coco: Path, edit_coco: Edit
) -> None:
    def renumber(content: dict[str, Any]) -> None:
        for record in content["categories"]:
            record["id"] += 50
        for record in content["annotations"]:
            record["category_id"] += 50

    before = load_index(find_splits(tiny_coco), "valid")
    edit_coco(tiny_coco / "valid" / NAME, renumber)
    after = load_index(find_splits(tiny_coco), "valid", ["red", "green", "blue"])
    assert after.class_names == ("red", "green", "blue")
    assert after.category_ids.tolist() == [53, 52, 51]
    assert (2 - after.labels).tolist() == before.labels.tolist()


def test_a_parent_that_only_train_uses_is_no_disagreement(tiny_coco: Path, edit_coco: Edit) -> None:
    edit_coco(
        tiny_coco / "train" / NAME, lambda content: content["annotations"][0].update(category_id=0)
    )
    layout = find_splits(tiny_coco)
    train = load_index(layout, "train")
    assert train.class_names == ("colours", "blue", "green", "red")
    valid = load_index(layout, "valid", train.class_names)
    assert valid.category_ids.tolist() == [0, 1, 2, 3]


def test_the_tiny_sets_hold_the_same_boxes(tiny_coco: Path, tiny_yolo: Path) -> None:
    coco, yolo = (load_index(find_splits(root), "train") for root in (tiny_coco, tiny_yolo))
    assert coco.class_names == yolo.class_names
    assert coco.boxes == pytest.approx(yolo.boxes, abs=1e-4)
    assert (
        json.loads((tiny_coco / "train" / NAME).read_text())["categories"][0]["name"] == "colours"
    )
