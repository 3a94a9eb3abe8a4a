"""Folders as annotation tools write them: the same scenes as in COCO give equal records."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from pycocotools import mask as mask_api

from rfdetr.data.findings import DatasetError, Findings
from rfdetr.data.index import DatasetIndex
from rfdetr.data.layout import find_splits, load_index
from rfdetr.geometry.rle import rle_dict

SIZE = (48, 64)  # of the images drawn here


def to_voc(root: Path, split: str, index: DatasetIndex) -> None:
    for image in range(len(index)):
        path, (height, width) = index.path(image), index.sizes[image]
        objects = "".join(
            f"<object><name>{index.class_names[label]}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
            f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
            for label, (a, b, c, d) in objects_of(index, image)
        )
        (root / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / split / path.name)
        (root / split / f"{path.stem}.xml").write_text(
            f"<annotation><filename>{path.name}</filename><size><width>{width}</width>"
            f"<height>{height}</height></size>{objects}</annotation>"
        )


def to_labelme(root: Path, split: str, index: DatasetIndex) -> None:
    for image in range(len(index)):
        path, (height, width) = index.path(image), index.sizes[image].tolist()
        shapes = [
            {
                "label": index.class_names[label],
                "points": [[c, b], [a, d]],
                "shape_type": "rectangle",
            }
            for label, (a, b, c, d) in objects_of(index, image)
        ]
        content = {"version": "5.0", "shapes": shapes, "imagePath": path.name, "imageData": None}
        content |= {"imageHeight": height, "imageWidth": width}
        (root / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / split / path.name)
        (root / split / f"{path.stem}.json").write_text(json.dumps(content))


def to_cvat(root: Path, split: str, index: DatasetIndex) -> None:
    subset = split.capitalize()
    (root / "images" / subset).mkdir(parents=True, exist_ok=True)
    images = ""
    for image in range(len(index)):
        path, (height, width) = index.path(image), index.sizes[image]
        shutil.copy(path, root / "images" / subset / path.name)
        boxes = "".join(
            f'<box label="{index.class_names[label]}" xtl="{a}" ytl="{b}" xbr="{c}" ybr="{d}"/>'
            for label, (a, b, c, d) in objects_of(index, image)
        )
        images += (
            f'<image id="{image}" name={quoteattr(path.name)} subset="{subset}" width="{width}" '
            f'height="{height}">{boxes}</image>'
        )
    file = root / "annotations.xml"
    before = file.read_text() if file.exists() else "<annotations></annotations>"
    file.write_text(before.replace("</annotations>", f"{images}</annotations>"))


def to_label_studio(root: Path, split: str, index: DatasetIndex) -> None:
    tasks = []
    (root / split / "images").mkdir(parents=True, exist_ok=True)
    for image in range(len(index)):
        path, (height, width) = index.path(image), index.sizes[image].tolist()
        shutil.copy(path, root / split / "images" / path.name)
        result = [
            {
                "type": "rectanglelabels", "original_width": width, "original_height": height,
                "value": {
                    "x": 100 * a / width, "y": 100 * b / height, "width": 100 * (c - a) / width,
                    "height": 100 * (d - b) / height, "rotation": 0,
                    "rectanglelabels": [index.class_names[label]],
                },
            }
            for label, (a, b, c, d) in objects_of(index, image)
        ]  # fmt: skip
        address = f"/data/upload/1/0a1b2c3d-{path.name}"
        tasks.append({"id": image, "data": {"image": address}, "annotations": [{"result": result}]})
    (root / split / "export.json").write_text(json.dumps(tasks))


def objects_of(index: DatasetIndex, image: int) -> list[tuple[int, list[float]]]:
    rows = index.rows(image)
    return list(zip(index.labels[rows].tolist(), index.boxes[rows].tolist(), strict=True))


WRITERS: dict[str, Callable[[Path, str, DatasetIndex], None]] = {
    "voc": to_voc, "labelme": to_labelme, "cvat": to_cvat, "label studio": to_label_studio,
}  # fmt: skip


def assert_equal(found: DatasetIndex, expected: DatasetIndex) -> None:
    assert found.class_names == expected.class_names
    order = sorted(range(len(found)), key=lambda image: found.path(image).name)
    wanted = sorted(range(len(expected)), key=lambda image: expected.path(image).name)
    for image, known in zip(order, wanted, strict=True):
        assert found.path(image).name == expected.path(known).name
        assert found.sizes[image].tolist() == expected.sizes[known].tolist()
        ours, theirs = objects_of(found, image), objects_of(expected, known)
        assert [label for label, _ in ours] == [label for label, _ in theirs]
        for (_, box), (_, right) in zip(ours, theirs, strict=True):
            assert box == pytest.approx(right, abs=1e-3)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_scenes_as_in_coco(kind: str, shared_tiny_coco: Path, tmp_path: Path) -> None:
    coco = find_splits(shared_tiny_coco)
    for split in coco.splits:
        WRITERS[kind](tmp_path, split, load_index(coco, split))
    layout = find_splits(tmp_path)
    assert (layout.format, list(layout.splits)) == (kind, ["train", "valid", "test"])
    for split in coco.splits:
        assert_equal(load_index(layout, split), load_index(coco, split))


@pytest.mark.parametrize("kind", WRITERS)
def test_the_blood_cells(kind: str, bccd_coco: Path, tmp_path: Path) -> None:
    expected = load_index(find_splits(bccd_coco), "test")
    WRITERS[kind](tmp_path, "train", expected)
    assert_equal(load_index(find_splits(tmp_path), "train"), expected)


@pytest.fixture
def one(shared_tiny_coco: Path, tmp_path: Path) -> Path:
    """A folder with the image 1.png alone."""
    shutil.copy(shared_tiny_coco / "train" / "1.png", tmp_path / "1.png")
    return tmp_path


def index_of(folder: Path, masks: bool = False) -> tuple[DatasetIndex, Findings]:
    findings = Findings(checking=False)
    return load_index(find_splits(folder), "train", None, findings, masks), findings


def pixels(index: DatasetIndex, row: int) -> np.ndarray:
    (outline,) = index.outlines_of(0, np.array([row]))
    assert outline is not None
    return np.asarray(mask_api.decode(rle_dict(outline.to_rle(), *SIZE)))


def voc(one: Path, objects: str, head: str = "") -> None:
    (one / "1.xml").write_text(f"<annotation verified='yes'>{head}{objects}</annotation>")


def box(name: str, *sides: Any, more: str = "") -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)
    bounds = "".join(f"<{tag}>{side}</{tag}>" for tag, side in tags)
    return f"<object><name>{name}</name><bndbox>{bounds}</bndbox>{more}</object>"


def test_voc_counts_from_one_where_it_says_so_and_difficult_objects_are_crowds(one: Path) -> None:
    difficult = "<difficult>1</difficult><part><name>p</name></part>"
    objects = box("cat", 1, 1, 64, 48) + box("cat", 3, 4, 20.5, 30, more=difficult)
    voc(one, objects, "<source><database>The VOC2007 Database</database></source>")
    index, _ = index_of(one)
    assert index.boxes.tolist() == [[0, 0, 64, 48], [2, 3, 20.5, 30]]
    assert index.crowd.tolist() == [False, True]
    voc(one, objects)
    assert index_of(one)[0].boxes.tolist() == [[1, 1, 64, 48], [3, 4, 20.5, 30]]


def test_the_lists_of_voc_divide_its_images(shared_tiny_coco: Path, tmp_path: Path) -> None:
    index = load_index(find_splits(shared_tiny_coco), "train")
    to_voc(tmp_path, "Annotations", index)
    (tmp_path / "JPEGImages").mkdir()
    for path in (*tmp_path.glob("Annotations/*.jpg"), *tmp_path.glob("Annotations/*.png")):
        path.rename(tmp_path / "JPEGImages" / path.name)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("0\n1\n2\n")
    (lists / "val.txt").write_text("3 1\n4 -1\n")
    layout = find_splits(tmp_path)
    findings = Findings()
    assert [len(load_index(layout, s, None, findings)) for s in ("train", "valid")] == [3, 2]
    assert [Path(finding.record).name for finding in findings.kept()] == ["5.png"]
    assert findings.counts == {"image-unlisted": 1}
    (lists / "train.txt").write_text("5\n")
    train = load_index(find_splits(tmp_path), "train")
    assert [train.path(image).name for image in range(len(train))] == ["5.png"]


ENTITIES = """<!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY file SYSTEM "file:///etc/hostname">]>"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{ENTITIES}<annotation><filename>&b;&file;</filename></annotation>", "document type"),
        ("<annotation><object>", "not a valid XML file"),
        ("<!--<annotation >--><other/>", "root element is <other>, expected <annotation>"),
    ],
)
def test_xml_that_is_not_read(one: Path, text: str, told: str) -> None:
    (one / "1.xml").write_text(text)
    _, findings = index_of_nothing(one)
    (finding,) = findings.kept()
    assert finding.rule == "dataset-unreadable" and told in finding.found
    assert finding.file == str(one / "1.xml")


def index_of_nothing(folder: Path) -> tuple[None, Findings]:
    findings = Findings()
    with pytest.raises(DatasetError, match="list no images"):
        load_index(find_splits(folder), "train", None, findings)
    return None, findings


@pytest.mark.parametrize("kind", ["voc", "labelme", "label studio"])
def test_pictures_without_annotations_are_told(
    kind: str, shared_tiny_coco: Path, tmp_path: Path
) -> None:
    index = load_index(find_splits(shared_tiny_coco), "train")
    WRITERS[kind](tmp_path, "train", index)
    folder = next(tmp_path.rglob("*.png")).parent
    for name in ("new.png", "._new.png"):
        shutil.copy(index.path(1), folder / name)
    found, findings = index_of(tmp_path)
    assert len(found) == len(index) and findings.counts == {"image-unlisted": 1}
    assert findings.kept()[0].record == str(folder / "new.png")


def test_one_odd_file_neither_hides_the_format_nor_is_read_past(one: Path) -> None:
    content = {"shapes": [], "imagePath": "1.png", "imageHeight": 48, "imageWidth": 64}
    (one / "1.json").write_text(json.dumps(content))
    (one / "0.json").write_text('["a"]')
    assert find_splits(one).format == "labelme"
    with pytest.raises(DatasetError, match=r"0\.json: .*expected an object with 'shapes'"):
        load_index(find_splits(one), "train")
    (one / "0.json").unlink()
    (one / "1.json").unlink()
    voc(one, box("cat", 1, 1, 9, 9))
    (one / "0.xml").write_text("")
    with pytest.raises(DatasetError, match=r"0\.xml: not a valid XML file"):
        load_index(find_splits(one), "train")


def test_a_folder_of_faulty_files_alone_says_what_is_wrong_with_them(one: Path) -> None:
    tasks: list[Any] = [{"id": 6, "data": {"image": "/upload/1.png"}, "annotations": []}]
    (one / "project.json").write_text(json.dumps(tasks))
    with pytest.raises(DatasetError, match=r"list no images\n.*task 6: .*without a finished"):
        load_index(find_splits(one), "train")
    tasks = [{"id": 7, "data": {"text": "none"}, "annotations": []}]
    (one / "project.json").write_text(json.dumps(tasks))
    with pytest.raises(DatasetError, match=r"task 7: .*expected the address of an image"):
        load_index(find_splits(one), "train")
    signed = "https://store.example/1.png?X-Expires=60"
    tasks = [{"id": 8, "data": {"image": signed}, "annotations": [{"result": []}]}]
    (one / "project.json").write_text(json.dumps(tasks))
    assert [len(index_of(one)[0]), index_of(one)[1].counts.total()] == [1, 0]


def test_faulty_objects_name_file_and_record_and_the_rest_is_read(one: Path) -> None:
    faulty = box("cat", "x", 1, 2, 3) + box("", 1, 1, 2, 2) + box("cat", 1, "nan", 2, 2)
    voc(one, f"{faulty}<object><name>cat</name></object>{box('dog', 1, 1, 9, 9)}")
    index, findings = index_of(one)
    assert index.class_names == ("dog",) and index.boxes.tolist() == [[1, 1, 9, 9]]
    assert findings.counts == {"annotation-entry": 3, "box-not-finite": 1}
    assert [finding.record for finding in findings.kept()] == [
        f"1.xml, object {at}" for at in (1, 2, 4, 3)
    ]
    with pytest.raises(DatasetError, match=r"1\.xml: 1\.xml, object 1: .*expected numbers"):
        load_index(find_splits(one), "train")
    voc(one, box("dog", 70, 1, 90, 9))
    (finding,) = index_of(one)[1].kept()
    assert (finding.rule, finding.record) == ("box-outside", "1.png, object 1")


def test_shapes_of_labelme(one: Path) -> None:
    def shape(kind: str, *points: list[float], group: int | None = None) -> dict[str, Any]:
        return {"label": "a", "points": points, "shape_type": kind, "group_id": group}

    shapes = [
        shape("circle", [30, 20], [30, 30]),
        shape("polygon", [0, 0], [8, 0], [8, 8], [0, 8], group=3),
        shape("polygon", [20, 0], [24, 0], [24, 8], group=3),
        shape("point", [4, 4]),
        shape("polygon", [1, 1], [2, 2]),
    ]
    content = {"shapes": shapes, "imagePath": r"..\1.png", "imageHeight": 48, "imageWidth": 64}
    (one / "annotations").mkdir()
    (one / "annotations" / "1.json").write_text(json.dumps(content))
    index, findings = index_of(one, masks=True)
    assert index.boxes.tolist() == [pytest.approx([20, 10, 40, 30]), [0, 0, 24, 8]]
    assert pixels(index, 0).sum() == pytest.approx(math.pi * 100, rel=0.02)
    assert pixels(index, 1).sum() == pytest.approx(64 + 16, abs=4)
    assert findings.counts == {"shape-kind": 1, "annotation-entry": 1}


def test_shapes_of_cvat(one: Path) -> None:
    shapes = """
      <tag label="night"/><ellipse label="a" cx="1" cy="1" rx="2" ry="2"/>
      <box label="a" xtl="20" ytl="20" xbr="40" ybr="30" rotation="90"/>
      <polygon label="b" points="0,0;8,0;8,8" group_id="0"/>
      <mask label="b" left="10" top="4" width="3" height="2" rle="1,2,2,1"/>
      <mask label="b" left="10" top="4" width="3" height="2" rle="1,2"/>"""
    image = f'<image id="0" name="1.png" width="64" height="48">{shapes}</image>'
    (one / "annotations.xml").write_text(
        f"<annotations>{image}<image id='1' width='64'/></annotations>"
    )
    index, findings = index_of(one, masks=True)
    assert index.class_names == ("a", "b")
    assert index.boxes.tolist() == [
        pytest.approx([25, 15, 35, 35]), [0, 0, 8, 8], [11, 4, 13, 6],
    ]  # fmt: skip
    assert np.argwhere(pixels(index, 2)).tolist() == [[4, 11], [4, 12], [5, 12]]
    assert findings.counts == {"shape-kind": 1, "outline-rle": 1, "image-entry": 1}


def packed(values: np.ndarray) -> list[int]:
    """Label Studio's run lengths: values of 8 bits, lengths of 4, 8, 12 or 16 bits."""
    bits = f"{len(values):032b}{7:05b}{3:04b}{7:04b}{11:04b}{15:04b}"
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for start, end in itertools.pairwise(edges):
        if end - start < 3:  # as they are
            bits += f"0{0:02b}{end - start - 1:04b}"
            bits += "".join(f"{value:08b}" for value in values[start:end].tolist())
        else:
            bits += f"1{3:02b}{end - start - 1:016b}{int(values[start]):08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def test_shapes_of_label_studio(one: Path) -> None:
    drawn = np.zeros((*SIZE, 4), np.uint8)
    drawn[5:9, 6:16, 3] = 255
    drawn[20, 30] = 255

    def region(kind: str, labels: list[str] | None = None, **value: Any) -> dict[str, Any]:
        value |= {kind: labels} if labels else {}
        sides = {"original_width": 64, "original_height": 48, "id": str(len(value))}
        return {"type": kind, "value": value, **sides}

    turned = {"x": 50, "y": 50, "width": 25, "height": 12.5, "rotation": 90}
    result = [
        region("rectanglelabels", ["a"], **turned),
        region("polygonlabels", ["b"], points=[[0, 0], [12.5, 0], [12.5, 50]]),
        region("brushlabels", ["b"], format="rle", rle=packed(drawn.ravel())),
        region("brushlabels", ["b"], rle=packed(drawn.ravel())[:40]),
        region("polygonlabels", ["b"], points=[[0, 0], [12.5, 0], [12.5]]),
        region("ellipselabels", ["b"], x=1, y=1, radiusX=2, radiusY=2),
        region("choices", choices=["night"]),
    ]
    tasks = [
        {"id": 5, "data": {"image": "/data/local-files/?d=some%20where/1.png"},
         "annotations": [{"result": [], "was_cancelled": True}, {"result": []},
                         {"result": result, "ground_truth": True}]},
        {"id": 6, "data": {"image": "/data/upload/2.png"}, "annotations": []},
        {"id": 7, "data": {"text": "none"}},
    ]  # fmt: skip
    (one / "project.json").write_text(json.dumps(tasks))
    index, findings = index_of(one, masks=True)
    assert len(index) == 1 and index.class_names == ("a", "b")
    assert index.boxes.tolist() == [
        pytest.approx([26, 24, 32, 40]), [0, 0, 8, 24], [6, 5, 31, 21],
    ]  # fmt: skip
    assert (pixels(index, 2) == (drawn[..., 3] > 0)).all()
    told = {"image-entry": 1, "image-unfinished": 1, "annotation-more": 1}
    assert findings.counts == {**told, "outline-rle": 1, "shape-kind": 2, "annotation-entry": 1}
