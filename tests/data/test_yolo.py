"""YOLO folders: the forms of data.yaml and of label lines."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfdetr.data.findings import DatasetError, Findings
from rfdetr.data.formats.yolo import read_data_yaml, read_yolo
from rfdetr.data.index import DatasetIndex, build_index


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
    [
        "names: [blue, green, 'red']",
        "names:\n  0: blue\n  2: red\n  1: green",
        "names:\n- blue\n- green\n- red\nnc: 3",
    ],
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


@pytest.mark.parametrize(
    ("places", "told"),
    [
        ("train: trian/images", "trian/images"),
        ("train: /content/elsewhere/train/images", "/content/elsewhere/train/images"),
        ("path: ../old\ntrain: train/images", "../old/train/images"),
        ("path: .\ntrain: train/images", None),
        ("train: ../train/images", None),
        ("# no places at all", None),
    ],
)
def test_a_folder_that_stands_in_for_a_missing_one_is_told(
    tiny_yolo: Path, places: str, told: str | None
) -> None:
    text = f"{places}\nval: valid/images\nnames: [blue, green, red]\n"
    config, findings = read_data_yaml(rewrite(tiny_yolo, text) / "data.yaml"), Findings()
    assert len(read_yolo(config, "train", findings).names) == 6
    found = [one.found for one in findings.kept() if one.rule == "folder-other"]
    read = tiny_yolo / "train" / "images"
    assert found == ([f"{told} does not exist, {read} does"] if told else [])


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
    root = rewrite(
        tiny_yolo, "path: .\ntrain: images/train\nval: images/valid\nnames: [blue, green, red]\n"
    )
    assert len(index_of(root).boxes) > 0


def test_a_missing_test_split_is_none_and_a_missing_train_folder_an_error(tiny_yolo: Path) -> None:
    shutil.rmtree(tiny_yolo / "test")
    assert list(read_data_yaml(tiny_yolo / "data.yaml").places) == ["train", "valid"]
    shutil.rmtree(tiny_yolo / "train")
    with pytest.raises(
        DatasetError,
        match=r"data.yaml: train: '../train/images' does not exist; looked for .*/train/images",
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
def test_faults_of_a_label_file_name_it_and_the_line(
    tiny_yolo: Path, line: str, message: str
) -> None:
    (tiny_yolo / "train" / "labels" / "0.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DatasetError, match=f"labels/0.txt: line 2: .*{message}"):
        index_of(tiny_yolo)


BOX = "0 0.5 0.5 0.5 0.25"


@pytest.mark.parametrize(
    ("shape", "points"),
    [("[3, 2]", 3 * " .3 .4"), ("[4, 3]", 4 * " .3 .4 2"), ("[17, 3]", 17 * " .1 .2 0")],
)
def test_lines_with_key_points_give_their_boxes(tiny_yolo: Path, shape: str, points: str) -> None:
    for label in tiny_yolo.rglob("labels/*.txt"):
        label.write_text(BOX + points)
    with (tiny_yolo / "data.yaml").open("a") as file:
        file.write(f"kpt_shape: {shape}\n")
    index = index_of(tiny_yolo)
    np.testing.assert_allclose(index.boxes, [[16, 18, 48, 30]] * 4, atol=1e-4)
    for wrong in (BOX, BOX + points + " .5"):
        (tiny_yolo / "train" / "labels" / "1.txt").write_text(f"{BOX}{points}\n{wrong}\n")
        with pytest.raises(
            DatasetError, match=r"1.txt: line 2: \d+ numbers .* expected \d+ .*key points"
        ):
            index_of(tiny_yolo)


@pytest.mark.parametrize("shape", ["17", "[17, 4]", "[a, 2]", "[17]"])
def test_a_wrong_kpt_shape_is_named(tiny_yolo: Path, shape: str) -> None:
    with pytest.raises(
        DatasetError, match=r"data.yaml: kpt_shape is .*; expected \[points, 2 or 3\]"
    ):
        read_data_yaml(rewrite(tiny_yolo, f"names: [a, b, c]\nkpt_shape: {shape}\n") / "data.yaml")


def test_links_to_folders_are_followed_but_not_in_circles(tiny_yolo: Path, tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        shutil.move(tiny_yolo / "train" / kind, tmp_path / f"stored-{kind}")
        (tiny_yolo / "train" / kind).mkdir()
        (tiny_yolo / "train" / kind / "part").symlink_to(tmp_path / f"stored-{kind}")
    (tmp_path / "stored-images" / "again").symlink_to(tiny_yolo / "train" / "images")
    index = index_of(tiny_yolo)
    assert len(index) == 6 and len(index.boxes) == 7
    assert index.path(1) == tiny_yolo / "train" / "images" / "part" / "1.png"


@pytest.mark.parametrize(
    "name", ["._1.png", ".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/1.png"]
)
def test_what_systems_leave_behind_is_no_data(tiny_yolo: Path, name: str) -> None:
    left = tiny_yolo / "train" / "images" / name
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"\0")
    assert len(index_of(tiny_yolo)) == 6


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".mpo", ".ppm", ".pgm"])
def test_images_by_all_their_suffixes(tiny_yolo: Path, suffix: str) -> None:
    picture = tiny_yolo / "train" / "images" / "1.png"
    with Image.open(picture) as image:
        image.convert("L").save(
            picture.with_suffix(suffix), "PPM" if suffix in (".ppm", ".pgm") else "JPEG"
        )
    picture.unlink()
    index = index_of(tiny_yolo, findings=(findings := Findings()))
    assert (
        len(index) == 6 and index.path(1).suffix == suffix and "image-format" not in findings.counts
    )


def test_labelled_files_of_other_formats_are_told_by_count_and_suffix(
    tiny_yolo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tiny_yolo / "train" / "images"
    for name, new in (("1.png", "1.heic"), ("2.png", "2.heic"), ("3.png", "3.psd")):
        (images / name).rename(images / new)
    (images / "4.json").write_text("{}")  # what a tool keeps beside an image
    assert len(index_of(tiny_yolo)) == 3
    assert (
        "image-format" in caplog.text
        and f"2 .heic, 1 .psd; the first is {images / '1.heic'}" in caplog.text
    )


def test_two_images_with_one_label_file_are_an_error(tiny_yolo: Path) -> None:
    images = tiny_yolo / "train" / "images"
    Image.new("RGB", (64, 48)).save(images / "0.jpg")  # 0 has no label file
    assert len(index_of(tiny_yolo)) == 7
    Image.new("RGB", (64, 48)).save(images / "1.jpg")
    with pytest.raises(
        DatasetError, match=rf"labels/1.txt: it is that of {images}/1.jpg and of {images}/1.png"
    ):
        index_of(tiny_yolo)


@pytest.mark.parametrize(("lost", "told"), [(1, False), (2, True)])
def test_a_split_of_which_most_images_have_no_label_file_is_told(
    tiny_yolo: Path, lost: int, told: bool
) -> None:
    for label in sorted((tiny_yolo / "train" / "labels").iterdir())[
        :lost
    ]:  # images 0 and 4 have none
        label.unlink()
    index_of(tiny_yolo, findings=(findings := Findings()))
    found = [finding.found for finding in findings.kept() if finding.rule == "labels-few"]
    assert found == ["4 of 6 images have no label file"] * told


def test_keys_of_data_yaml_may_have_capitals(tiny_yolo: Path) -> None:
    text = "Train: train/images\nValidation: valid/images\nNames: [blue, green, red]\nNC: 3\n"
    assert len(index_of(rewrite(tiny_yolo, text), "valid")) == 4
    with pytest.raises(DatasetError, match="Train, train, names: some differ in capitals only"):
        read_data_yaml(rewrite(tiny_yolo, "Train: a\ntrain: b\nnames: [a]\n") / "data.yaml")


def test_names_that_are_not_utf8_or_written_with_backslashes(tiny_yolo: Path) -> None:
    for folder, suffix in (("images", ".png"), ("labels", ".txt")):
        place = os.fsencode(tiny_yolo / "train" / folder)
        os.rename(place + b"/1" + suffix.encode(), place + b"/caf\xe9" + suffix.encode())
    walked = index_of(tiny_yolo)
    (tiny_yolo / "list.txt").write_bytes(b".\\train\\images\\2.png\ntrain/images/caf\xe9.png\n")
    listed = index_of(
        rewrite(tiny_yolo, "train: list.txt\nval: .\\valid\\images\nnames: [blue, green, red]\n")
    )
    assert (len(walked), len(walked.boxes)) == (6, 7)
    assert [os.fsencode(listed.path(i).name) for i in range(2)] == [b"2.png", b"caf\xe9.png"]
    assert len(listed.boxes) == 3 and listed.fingerprint()


def test_no_label_folder_at_all_is_an_error(tiny_yolo: Path) -> None:
    shutil.rmtree(tiny_yolo / "train" / "labels")
    with pytest.raises(DatasetError, match=r"train: no label folder; expected .*train/labels"):
        index_of(tiny_yolo)
