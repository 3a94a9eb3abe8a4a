"""YOLO folders: the forms of data.yaml and of label lines."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from rfdetr.data.findings import DatasetError, Findings
from rfdetr.data.index import DatasetIndex, build_index
from rfdetr.data.yolo import read_data_yaml, read_yolo


def index_of(root: Path, split: str = "train", findings: Findings | None = None) -> DatasetIndex:
    return build_index(read_yolo(read_data_yaml(root / "data.yaml"), split, findings))


def rewrite(root: Path, text: str) -> Path:
    (root / "data.yaml").write_text(text)
    return root


def test_the_blood_cells_are_those_of_the_coco_form(bccd_yolo: Path, bccd_coco: Path) -> None:
    from rfdetr.data.layout import find_splits, load_index

    yolo = load_index(find_splits(bccd_yolo), "train")
    coco = load_index(find_splits(bccd_coco), "train")
    assert (len(yolo), len(yolo.boxes), yolo.class_names) == (40, 583, coco.class_names)
    rows = {coco.path(i).name: coco.rows(i) for i in range(len(coco))}
    for i in range(len(yolo)):
        same = rows[yolo.path(i).name]
        np.testing.assert_allclose(yolo.boxes[yolo.rows(i)], coco.boxes[same], atol=1e-3)
        assert yolo.labels[yolo.rows(i)].tolist() == coco.labels[same].tolist()


def test_images_without_a_label_file_have_no_objects(tiny_yolo: Path) -> None:
    index = index_of(tiny_yolo, findings=(findings := Findings()))
    assert len(index) == 6 and np.diff(index.offsets)[0] == 0
    assert findings.counts == {"label-missing": 2}


@pytest.mark.parametrize(
    "names",
    ["names: [blue, green, 'red']", "names:\n  0: blue\n  2: red\n  1: green", "names:\n- blue\n- green\n- red\nnc: 3"],
)
def test_names_are_a_list_or_a_map(tiny_yolo: Path, names: str) -> None:
    root = rewrite(tiny_yolo, f"train: train/images\nval: valid/images\n{names}\n")
    assert index_of(root).class_names == ("blue", "green", "red")


def test_names_that_yaml_would_take_for_other_things_stay_names(tiny_yolo: Path) -> None:
    root = rewrite(tiny_yolo, "train: train/images\nval: valid/images\nnames: [no, 007, null]\n")
    assert index_of(root).class_names == ("no", "007", "null")


@pytest.mark.parametrize(
    "places",
    [
        "train: ../train/images\nval: ../valid/images",
        "train: train/images\nval: valid/images",
        "train: ./train/images/\nvalid: ./valid/images/",
        "train: train\nvalidation: valid",
        "train: {root}/train/images\nval: {root}/valid/images",
        "path: {root}\ntrain: train/images\nval: valid/images",
        "path: .\ntrain: [train/images]\nval: [valid/images]",
        "train: /content/elsewhere/train/images\nval: /content/elsewhere/valid/images",
        "# no places at all",
    ],
)
def test_the_styles_of_paths_that_exports_write(tiny_yolo: Path, places: str) -> None:
    root = rewrite(tiny_yolo, places.format(root=tiny_yolo) + "\nnames: [blue, green, red]\n")
    assert len(index_of(root)) == 6
    assert len(index_of(root, "valid")) == 4
    assert len(index_of(root).boxes) > 0


def test_several_folders_join_and_text_files_list_images(tiny_yolo: Path) -> None:
    shutil.copytree(tiny_yolo / "test", tiny_yolo / "more")
    (tiny_yolo / "some.txt").write_text("./valid/images/1.png\nvalid/images/3.png\n\n")
    text = "train: [train/images, more/images]\nval: some.txt\nnames: [blue, green, red]\n"
    root = rewrite(tiny_yolo, text)
    assert len(index_of(root)) == 9
    assert [index_of(root, "valid").path(i).name for i in range(2)] == ["1.png", "3.png"]
    assert len(index_of(root, "valid").boxes) == 1 + 3


def test_images_and_labels_as_the_outer_folders(tiny_yolo: Path) -> None:
    for kind in ("images", "labels"):
        for split in ("train", "valid"):
            (tiny_yolo / kind).mkdir(exist_ok=True)
            (tiny_yolo / split / kind).rename(tiny_yolo / kind / split)
    root = rewrite(tiny_yolo, "path: .\ntrain: images/train\nval: images/valid\nnames: [blue, green, red]\n")
    assert len(index_of(root).boxes) > 0


def test_a_missing_test_split_is_none_and_a_missing_train_folder_an_error(tiny_yolo: Path) -> None:
    shutil.rmtree(tiny_yolo / "test")
    assert list(read_data_yaml(tiny_yolo / "data.yaml").places) == ["train", "valid"]
    shutil.rmtree(tiny_yolo / "train")
    with pytest.raises(
        DatasetError, match=r"data.yaml: train: '../train/images' does not exist; looked for .*/train/images"
    ):
        read_data_yaml(tiny_yolo / "data.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, b]\nnc: 3", "nc is 3, but 2 names are listed: a, b"),
        ("nc: 3", "'names' is None"),
        ("names: {0: a, 2: b}", "'names' has ids 0, 2; expected 0 to 1"),
        ("names: [a, b, a]", r"\['a'\] occur more than once"),
        ("names: [a", "not a valid YAML file"),
        ("a, b", "expected keys"),
    ],
)
def test_faults_of_data_yaml_are_named(tiny_yolo: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=f"data.yaml: .*{message}"):
        read_data_yaml(rewrite(tiny_yolo, text) / "data.yaml")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 0.5 0.5 0.5 0.25", [16, 18, 48, 30]),
        ("0.0\t0.5 0.5  1 1 ", [0, 0, 64, 48]),
        ("2 0.25 0.5 0.75 0.25 0.5 1", [16, 12, 48, 48]),
        ("1 0.9 0.9 0.4 0.4", [44.8, 33.6, 64, 48]),
    ],
)
def test_label_lines_become_boxes(tiny_yolo: Path, line: str, expected: list[float]) -> None:
    (tiny_yolo / "train" / "labels" / "0.txt").write_text(f"\n{line}\n\n")
    index = index_of(tiny_yolo)
    np.testing.assert_allclose(index.boxes[index.rows(0)], [expected], atol=1e-4)
    assert index.labels[0] == int(float(line.split()[0]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "3 numbers after the class"),
        ("0 0.5 0.5 0.5 0.5 0.9", "5 numbers after the class"),
        ("cat 0.5 0.5 0.5 0.5", "expected numbers only"),
        ("3 0.5 0.5 0.5 0.5", "class 3; data.yaml has 0 to 2"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5"),
        ("0 320 240 64 48", "expected numbers relative to the image"),
        ("0 0.5 nan 0.5 0.5", "expected numbers relative to the image"),
    ],
)
def test_faults_of_a_label_file_name_it_and_the_line(tiny_yolo: Path, line: str, message: str) -> None:
    (tiny_yolo / "train" / "labels" / "0.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DatasetError, match=f"labels/0.txt: line 2: .*{message}"):
        index_of(tiny_yolo)


def test_no_label_folder_at_all_is_an_error(tiny_yolo: Path) -> None:
    shutil.rmtree(tiny_yolo / "train" / "labels")
    with pytest.raises(DatasetError, match=r"train: no label folder; expected .*train/labels"):
        index_of(tiny_yolo)
