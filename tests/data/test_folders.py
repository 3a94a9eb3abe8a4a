"""Folders as data: classes taken and merged, several folders, a valid split that is kept back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rfdetr.data.division import SHARE, choose
from rfdetr.data.findings import DatasetError, Findings
from rfdetr.data.folders import Folders, LeftOut
from rfdetr.data.layout import find_splits, load_index
from rfdetr.data.loaders import EpochSampler

NAME = "_annotations.coco.json"
Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]


@pytest.mark.parametrize("layout", ["tiny_coco", "tiny_yolo"])
def test_classes_are_taken_and_merged(layout: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(layout)
    whole = load_index(find_splits(folder), "train")
    folders = Folders(folder, classes={"warm": ["red"], "cold": ["green", "blue"]})
    merged = folders.index("train")
    assert merged.class_names == ("warm", "cold")
    assert merged.labels.tolist() == [0 if label == 2 else 1 for label in whole.labels]
    assert (merged.boxes == whole.boxes).all() and not folders.left_out["train"].objects
    some = Folders(folder, classes={"red": ["red"]})
    index = some.index("train")
    red = whole.labels == 2
    assert len(index) == len(whole) == 6
    assert (index.boxes == whole.boxes[red]).all() and not index.labels.any()
    image = np.repeat(np.arange(6), np.diff(whole.offsets))
    assert np.diff(index.offsets).tolist() == np.bincount(image[red], minlength=6).tolist()
    emptied = len(set(image.tolist()) - set(image[red].tolist()))
    assert some.left_out["train"] == LeftOut(int((~red).sum()), len(red), emptied, 6)
    with pytest.raises(DatasetError, match="no class 'gren'; did you mean 'green'"):
        Folders(folder, classes={"gren": ["gren"]}).index("train")


def test_the_classes_of_a_model_are_taken_where_the_data_have_them(tiny_coco: Path) -> None:
    known = {"warm": ["red", "orange"], "green": ["lime"]}
    index = Folders(tiny_coco, classes=known, known=True).index("test")
    assert index.class_names == ("warm", "green")
    with pytest.raises(DatasetError, match="none of those of the model: x"):
        Folders(tiny_coco, classes={"x": ["y"]}, known=True).index("test")


def outlined(content: dict[str, Any]) -> None:
    for record in content["annotations"]:
        x, y, w, h = record["bbox"]
        record["segmentation"] = [[x, y, x + w, y, x + w, y + h]]


def test_several_folders_are_one_with_united_classes(
    make_tiny_coco: Callable[..., Path], edit_coco: Edit
) -> None:
    first, second = make_tiny_coco(name="new"), make_tiny_coco({"train": 5}, name="old")

    def rename(content: dict[str, Any]) -> None:
        outlined(content)
        content["categories"][1]["name"], content["categories"][3]["name"] = "red", "pink"

    edit_coco(first / "train" / NAME, outlined)
    edit_coco(second / "train" / NAME, rename)
    folders = Folders({first: 1.0, second: 0.5})
    both = folders.index("train", masks=True)
    alone = [load_index(find_splits(f), "train", masks=True) for f in (first, second)]
    old = Folders(second).index("train")
    assert both.class_names == ("blue", "green", "red", "pink")
    assert folders.counts["train"] == [6, len(old)] and len(both) == 6 + len(old) < 11
    assert all(both.path(image).is_file() for image in range(len(both)))
    assert (both.boxes[: len(alone[0].boxes)] == alone[0].boxes).all()
    names = [both.class_names[label] for label in both.labels[len(alone[0].boxes) :].tolist()]
    assert names == [old.class_names[label] for label in old.labels.tolist()]
    for image in range(len(both)):
        rows = both.rows(image)
        for box, outline in zip(both.boxes[rows], both.outlines_of(image, rows), strict=True):
            assert outline is not None
            x, y, right, bottom = box.tolist()
            assert outline.polygons[0].tolist() == [[x, y], [right, y], [right, bottom]]
    assert folders.index("test").class_names == both.class_names  # old has no test
    assert str(folders) == f"{first} (COCO), {second} (COCO) at 0.5"


def test_an_epoch_draws_its_share_of_each_folder() -> None:
    sampler = EpochSampler(7, shuffle=True, seed=3, taken=[(5, 5), (8, 2)], at_least=10)
    epochs = []
    for epoch in range(30):
        sampler.set_epoch(epoch)
        epochs.append([key[1] for key in sampler])
        assert epochs[-1] == [key[1] for key in sampler]
    for images in epochs:
        assert len(images) == 10
        first, again = images[:7], images[7:]
        assert sorted(image for image in first if image < 5) == [0, 1, 2, 3, 4]
        assert len([image for image in first if 5 <= image < 13]) == 2
        assert {image - 13 for image in again} <= set(first)
    assert {image for images in epochs for image in images[:7]} == set(range(13))


def like_scenes(folder: Path) -> None:
    """Makes image 5 nearly the same as image 3, and 0 a copy of 4."""
    shutil.copy(folder / "train" / "4.jpg", folder / "train" / "0.jpg")
    picture = Image.open(folder / "train" / "3.png").point(lambda value: min(value + 3, 255))
    picture.save(folder / "train" / "5.png")


def test_a_missing_valid_split_is_kept_back_of_train(
    make_tiny_coco: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_tiny_coco({"train": 20})
    like_scenes(folder)
    folders, findings = Folders(folder), Findings()
    assert folders.splits == ["train", "valid"]
    train, valid = (folders.index(split, findings) for split in ("train", "valid"))
    names = [{index.file_name(i) for i in range(len(index))} for index in (train, valid)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 20
    assert len(valid) in (4, 5, 6)
    for pair in ({"3.png", "5.png"}, {"0.jpg", "4.jpg"}):
        assert pair <= names[0] or pair <= names[1]
    (division,) = folders.divisions.values()
    assert division.alike == 4
    assert {*train.labels.tolist()} == {*valid.labels.tolist()} == {0, 1, 2}
    whole = load_index(find_splits(folder), "train")
    assert len(train.boxes) + len(valid.boxes) == len(whole.boxes)
    assert Folders(folder).index("valid").fingerprint() == valid.fingerprint()
    record = tmp_path / "split.json"
    content = json.loads(folders.as_record() or b"")
    content["folders"][str(folder)]["valid"] = ["7.png"]
    record.write_text(json.dumps(content))
    again = Folders(folder, record=record).index("valid")
    assert [again.file_name(image) for image in range(len(again))] == ["7.png"]
    record.write_text("[]")
    with pytest.raises(DatasetError, match=r"split\.json: not the record .*delete it"):
        Folders(folder, record=record)


def test_one_picture_cannot_be_divided(make_tiny_coco: Callable[..., Path]) -> None:
    folder = make_tiny_coco({"train": 3})
    for name in ("0.jpg", "2.jpg"):
        shutil.copy(folder / "train" / "1.png", folder / "train" / name)
    with pytest.raises(ValueError, match="3 images are of one picture"):
        Folders(folder).index("valid")


def test_every_class_of_two_groups_is_in_both_parts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = rng.integers(1, 6, 60)
        shows = rng.choice(9, 60, p=[0.5, *[0.15, 0.1, 0.1, 0.05, 0.03, 0.03, 0.02, 0.02]])
        shows = shows[:, None] == np.arange(8)  # one class, or none
        has = np.concatenate((shows * sizes[:, None], sizes[:, None]), axis=1)
        back = choose(has)
        for column in has[:, :-1].T:
            if (column > 0).sum() > 1:
                assert column[back].any() and column[~back].any()
        assert has[back, -1].sum() / has[:, -1].sum() == pytest.approx(SHARE, abs=0.06)
    lone = choose(np.eye(3, 4, dtype=np.int64) + np.eye(4)[[3, 3, 3]].astype(np.int64))
    assert lone.sum() == 1
