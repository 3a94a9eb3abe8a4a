"""The dataset doctor: every planted fault is found, none is invented, and the corrected copy is
clean.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from rfdetr.config import RFDETRMiniConfig
from rfdetr.data import check
from rfdetr.data.findings import RULES, DatasetError, Findings
from rfdetr.data.layout import find_splits, load_index
from rfdetr.data.likeness import ImageFacts, near_pairs
from rfdetr.doctor.check import LARGE_LABELS, Report
from rfdetr.doctor.fix import fix
from rfdetr.doctor.labels import crossing
from rfdetr.synthetic.generate import DEMO_CLASSES, generate

NAME = "_annotations.coco.json"
PINCHED = [30, 30, 40, 30, 40, 40, 30, 40, 40, 50, 20, 50, 30, 40]  # (30, 40) twice
Content = dict[str, Any]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("doctor") / "clean", 30, DEMO_CLASSES[:2], seed=5)


@pytest.fixture
def damaged(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "damaged"))


@contextmanager
def edited(root: Path, split: str = "train") -> Iterator[Content]:
    path = root / split / NAME
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content))


def look(root: Path) -> Report:
    return check(root, model=RFDETRMiniConfig(), processes=1)


def rules_of(report: Report, *severities: str) -> set[str]:
    return {
        rule
        for rule in report.findings.counts
        if RULES[rule].severity in (severities or ("error", "warning"))
    }


def box_of(entry: Content) -> list[float]:
    box: list[float] = entry["bbox"]
    return box


# Of the content of train's annotation file, and its folder.
Plant = Callable[[Content, Path], object]


def entry(row: int, **fields: Any) -> Plant:
    """Changes fields of an annotation, to what a function makes of the content where one is."""

    def plant(c: Content, _: Path) -> None:
        for key, value in fields.items():
            c["annotations"][row][key] = value(c) if callable(value) else value

    return plant


def number(row: int, place: int, value: object) -> Plant:
    """Changes one number of a box."""
    return lambda c, _: c["annotations"][row]["bbox"].__setitem__(place, value)


def add(key: str, record: object) -> Plant:
    return lambda c, _: c[key].append(record)


def again(key: str, row: int, **fields: object) -> Plant:
    """Adds a record like another one."""
    return lambda c, _: c[key].append({**c[key][row], **fields})


def file(name: str, change: Callable[..., object], *arguments: object) -> Plant:
    return lambda _, train: change(train / name, *arguments)


def size(c: Content, row: int) -> list[int]:
    image = next(image for image in c["images"] if image["id"] == c["annotations"][row]["image_id"])
    return [image["width"], image["height"]]


def corners(c: Content, row: int) -> list[float]:
    return [share * side for share in (0.6, 0.7) for side in size(c, row)]


def outline(row: int, polygon: list[int]) -> Plant:
    return entry(row, segmentation=[polygon])


def widened(c: Content, _: Path) -> None:
    c["images"][19]["width"] = 999


def copied(c: Content, train: Path) -> None:
    shutil.copy(train / "000014.jpg", train / "000015.jpg")
    resize(c, 14, 15)


def leaked(_: Content, train: Path) -> None:
    shutil.copy(train / "000016.jpg", valid(train))


def nearly_leaked(_: Content, train: Path) -> None:
    darker(train / "000017.jpg", valid(train, 1))


def escaped(c: Content, train: Path) -> None:
    Image.effect_noise((64, 64), 90).convert("RGB").save(train.parents[1] / "elsewhere.png")
    c["images"].append({"id": 778, "file_name": "../../elsewhere.png"})


def cut(path: Path, missing: int = 1000) -> None:
    path.write_bytes(path.read_bytes()[:-missing])


def deep(path: Path) -> None:
    with Image.open(path) as image:
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 16).save(path, "PNG")


def saved(path: Path, form: str, mode: str = "RGB") -> None:
    with Image.open(path) as image:
        image.convert(mode).save(path, form)


def turned(path: Path, orientation: int = 3) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.save(path, exif=exif)


def animated(path: Path) -> None:
    with Image.open(path) as image:
        image.save(path, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)])


def resize(c: Content, first: int, second: int) -> None:
    c["images"][second].update({side: c["images"][first][side] for side in ("width", "height")})


def valid(train: Path, position: int = 0) -> Path:
    """A valid picture to be written over; its record loses the size."""
    with edited(train.parent, "valid") as content:
        record = content["images"][position]
        del record["width"], record["height"]
        path: Path = train.parent / "valid" / record["file_name"]
    return path


def darker(source: Path, target: Path) -> None:
    with Image.open(source) as image:
        image.point([value * 9 // 10 for value in range(256)] * 3).save(target, quality=60)


OTHER_RLE, DAMAGED_RLE = {"size": [4, 4], "counts": [8, 8]}, {"size": [4, 4], "counts": "~"}
PARENT = {"id": 90, "name": "shape", "supercategory": "none"}
BOW_TIE = [10, 10, 30, 30, 30, 10, 10, 30]


# Each plants one fault in train and names the rule and the record that must be found.
COCO_FAULTS: dict[str, tuple[Plant, str, str]] = {
    "box of three numbers": (entry(0, bbox=[1, 2, 3]), "annotation-entry", "id 1 "),
    "text in a box": (number(1, 2, "9"), "annotation-entry", "id 2 "),
    "entry is a number": (add("annotations", 5), "annotation-entry", "number"),
    "unknown image": (entry(2, image_id=10**6), "annotation-unknown-image", "id 3"),
    "unknown category": (entry(3, category_id=99), "annotation-unknown-category", "id 4"),
    "NaN": (number(4, 0, float("nan")), "box-not-finite", "id 5"),
    "infinity": (number(5, 3, float("inf")), "box-not-finite", "id 6"),
    "zero width": (number(6, 2, 0), "box-no-size", "id 7 "),
    "negative height": (number(7, 3, -5), "box-no-size", "id 8 "),
    "outside": (number(8, 0, 5000), "box-outside", "id 9 "),
    "reaching out": (entry(9, bbox=[-4, 3, 40, 40]), "box-clipped", "id 10 "),
    "xyxy": (entry(10, bbox=lambda c: corners(c, 10), area=900), "box-likely-xyxy", "id 11 "),
    "whole image": (entry(11, bbox=lambda c: [0, 0, *size(c, 11)]), "box-whole-image", "id 12 "),
    "box twice": (again("annotations", 12, id=9000), "box-repeated", "id 9000 "),
    "area": (entry(13, area=-1), "box-area", "id 14 "),
    "id twice": (entry(15, id=15), "annotation-id-repeated", "id 15"),
    "crowd flag": (entry(16, iscrowd=7), "crowd-flag", "id 17"),
    "crowd": (entry(17, iscrowd=1), "crowd", "id 18 "),
    "tiny object": (entry(18, bbox=[20, 20, 2, 2], area=4), "box-tiny", ""),
    "outline elsewhere": (outline(18, [0, 0, 9, 0, 9, 9]), "outline-apart", "id 19 "),
    "polygon of 2 points": (outline(19, [1, 1, 5, 5]), "outline-points", "id 20"),
    "odd polygon": (outline(20, [1, 1, 5, 5, 9, 1, 4]), "outline-numbers", "id 21"),
    "polygon outside": (outline(21, [1, 1, 900, 1, 900, 9]), "outline-outside", "id 22"),
    "pinched": (outline(25, PINCHED), "outline-touching", "id 26"),
    "bow-tie": (outline(22, BOW_TIE), "outline-crossing", "id 23"),
    "RLE of another size": (entry(23, segmentation=OTHER_RLE), "outline-rle", "id 24"),
    "damaged RLE": (entry(24, segmentation=DAMAGED_RLE), "outline-rle", "id 25"),
    "image record": (add("images", {"id": None, "file_name": "x.jpg"}), "image-entry", "number"),
    "image id twice": (again("images", 0, file_name="000001.jpg"), "image-id-repeated", "id 0"),
    "file listed twice": (again("images", 0, id=777), "image-listed-twice", "777"),
    "path": (escaped, "path-outside", "id 778"),
    "other size": (widened, "image-size-differs", "000019.jpg"),
    "missing file": (file("000008.jpg", Path.unlink), "image-missing", "000008.jpg"),
    "no image": (file("000009.jpg", Path.write_text, "x"), "image-unreadable", "000009.jpg"),
    "truncated": (file("000010.jpg", cut), "image-truncated", "000010.jpg"),
    "no end marker": (file("000020.jpg", cut, 2), "image-end-missing", "000020.jpg"),
    "sideways": (file("000021.jpg", turned, 6), "image-boxes-turned", "000021.jpg"),
    "16 bits": (file("000006.jpg", deep), "image-deep", "000006.jpg"),
    "extension": (file("000011.jpg", saved, "PNG"), "image-extension", "000011.jpg"),
    "mode": (file("000012.jpg", saved, "JPEG", "CMYK"), "image-mode", "000012.jpg"),
    "turned": (file("000013.jpg", turned), "image-turned", "000013.jpg"),
    "unlisted": (file("extra.png", Image.new("RGB", (9, 9)).save), "image-unlisted", "extra.png"),
    "copy": (copied, "image-copy", "000015.jpg"),
    "leak": (leaked, "split-leak", "000016.jpg"),
    "near leak": (nearly_leaked, "split-leak-near", "000017.jpg"),
    "animation": (file("000018.jpg", animated), "image-animated", "000018.jpg"),
    "parent": (add("categories", PARENT), "category-parent", "90"),
}


def test_the_check_is_found_in_both_rooms() -> None:
    from rfdetr import doctor

    assert doctor.check is check and doctor.Report is Report


def test_a_clean_set_has_no_findings(clean: Path) -> None:
    report = look(clean)
    assert set(report.findings.counts) <= {"box-tiny", "outline-touching"}, [
        str(finding) for finding in report.findings.kept()[:5]
    ]
    assert report.as_record()["images"] == {"train": 22, "valid": 4, "test": 4}


@pytest.mark.parametrize("name", COCO_FAULTS)
def test_a_planted_fault_is_found_where_it_is(damaged: Path, name: str) -> None:
    plant, rule, record = COCO_FAULTS[name]
    with edited(damaged) as content:
        plant(content, damaged / "train")
    report = look(damaged)
    assert any(record in finding.record for finding in report.of(rule)), dict(
        report.findings.counts
    )


@pytest.mark.parametrize("pictures", ["synthetic", "blood cells"])
def test_all_faults_at_once_are_all_found(
    pictures: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if pictures == "synthetic":
        root: Path = request.getfixturevalue("damaged")
    else:
        root = renumbered(request.getfixturevalue("bccd_coco"), tmp_path / "cells")
    before = look(root)
    with edited(root) as content:
        for plant, _, _ in COCO_FAULTS.values():
            plant(content, root / "train")
    report = look(root)
    missed = {
        name
        for name, (_, rule, record) in COCO_FAULTS.items()
        if not any(record in finding.record for finding in report.of(rule))
    }
    assert not rules_of(before) and len(COCO_FAULTS) >= 30 and not missed
    fix(report, tmp_path / "fixed")
    left = rules_of(look(tmp_path / "fixed"), "error")
    # Which are for a person to decide.
    assert left <= {
        "image-id-repeated",
        "image-size-differs",
        "outlines-apart",
    }


def renumbered(source: Path, root: Path) -> Path:
    """Fifty of the blood-cell pictures, named and numbered like the synthetic ones."""
    for split, count in (("train", 40), ("valid", 10)):
        content = json.loads((source / split / NAME).read_text())
        images = content["images"][:count]
        number = {image["id"]: i for i, image in enumerate(images)}
        entries = [entry for entry in content["annotations"] if entry["image_id"] in number]
        (root / split).mkdir(parents=True)
        for i, image in enumerate(images):
            shutil.copy(source / split / image["file_name"], root / split / f"{i:06d}.jpg")
            image.update(id=i, file_name=f"{i:06d}.jpg")
        for i, entry in enumerate(entries):
            entry.update(id=i + 1, image_id=number[entry["image_id"]])
        categories = [{**category, "supercategory": "shape"} for category in content["categories"]]
        content = {"images": images, "annotations": entries, "categories": categories}
        (root / split / NAME).write_text(json.dumps(content))
    return root


def test_a_corrected_copy_trains_and_the_originals_are_untouched(
    damaged: Path, tmp_path: Path
) -> None:
    names = (
        "text in a box", "unknown category", "NaN", "zero width", "outside", "reaching out", "xyxy",
        "box twice", "area", "id twice", "crowd flag", "polygon of 2 points", "polygon outside",
        "damaged RLE", "image record", "path", "missing file", "truncated", "leak",
    )  # fmt: skip
    with edited(damaged) as content:
        for name in names:
            COCO_FAULTS[name][0](content, damaged / "train")
    before = {path: path.read_bytes() for path in sorted(damaged.rglob("*")) if path.is_file()}
    report = look(damaged)
    with pytest.raises(DatasetError, match="errors in the dataset"):
        load_index(find_splits(damaged), "train")
    changes, shares = fix(report, tmp_path / "fixed")
    assert [(share.split, share.images, share.images_kept) for share in shares] == [
        ("train", 24, 20), ("valid", 4, 4), ("test", 4, 4)]  # fmt: skip
    text_of = {change.rule: change.change for change in changes}
    assert {COCO_FAULTS[name][1] for name in names} <= set(text_of)
    assert text_of["crowd-flag"] == "iscrowd is now 0"
    assert text_of["box-clipped"].startswith("bbox is now [0, 3, 36, 40]")
    again = look(tmp_path / "fixed")
    # Where a box was moved from its outline.
    assert rules_of(again) <= {"outline-apart"}, dict(again.findings.counts)
    assert (
        tmp_path / "fixed" / "train" / "000000.jpg"
    ).resolve() == damaged / "train" / "000000.jpg"
    assert {
        path: path.read_bytes() for path in sorted(damaged.rglob("*")) if path.is_file()
    } == before
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        fix(report, tmp_path / "fixed")


def in_corners(content: Content) -> None:
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x, y, x + w, y + h]


def test_a_set_in_xyxy_is_recognised_refused_and_converted(
    clean: Path, damaged: Path, tmp_path: Path
) -> None:
    with edited(damaged) as content:
        in_corners(content)
    with pytest.raises(DatasetError, match="x1 y1 x2 y2"):
        load_index(find_splits(damaged), "train")
    fix(look(damaged), tmp_path / "fixed")
    found, wanted = (load_index(find_splits(root), "train") for root in (tmp_path / "fixed", clean))
    np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-4)


def test_a_file_in_xyxy_with_other_faults_is_converted_and_corrected(
    clean: Path, damaged: Path, tmp_path: Path
) -> None:
    faults = (
        "box of three numbers",
        "entry is a number",
        "unknown category",
        "NaN",
        "odd polygon",
        "id twice",
    )
    with edited(damaged) as content:
        in_corners(content)
        for name in faults:
            COCO_FAULTS[name][0](content, damaged / "train")
        del content["annotations"][30]["bbox"]
        content["annotations"][31]["bbox"][2] += (
            1000  # fits no reading; after the conversion it is clipped
        )
        content["annotations"][32]["bbox"][:2] = [-5, -5]
    changes, _ = fix(look(damaged), tmp_path / "fixed")
    assert {"boxes-xyxy", "annotation-entry", "box-not-finite", "annotation-id-repeated"} <= {
        c.rule for c in changes
    }
    assert not rules_of(look(tmp_path / "fixed"), "error")
    found, wanted = (
        json.loads((root / "train" / NAME).read_text())["annotations"]
        for root in (tmp_path / "fixed", clean)
    )
    boxes = {entry["id"]: entry for entry in wanted}
    known = [entry for entry in found if entry["id"] in boxes]
    same = [entry for entry in known if entry["bbox"] == pytest.approx(boxes[entry["id"]]["bbox"])]
    assert len(same) >= len(wanted) - 9 and all(
        entry["area"] == boxes[entry["id"]]["area"] for entry in same
    )


@pytest.mark.parametrize("proof", ["area", "outline"])
def test_boxes_that_area_or_outline_prove_right_are_not_taken_for_xyxy(
    tiny_coco: Path, tmp_path: Path, proof: str
) -> None:
    # Of 64 x 48 pixels.
    rows = [
        (40, 30, 60, 40),
        (20, 20, 50, 40),
        (30, 20, 60, 45),
        (10, 5, 30, 40),
        (5, 6, 8, 9),
    ]
    with edited(tiny_coco) as content:
        first = content["annotations"][0]
        content["annotations"] = []
        for i, (x, y, w, h) in enumerate(rows):
            ring = [x, y, x + w, y, x + w, y + h, x, y + h]
            shape = {"area": w * h} if proof == "area" else {"area": w * h * 0.8}
            shape["segmentation"] = [] if proof == "area" else [ring]
            box = {"id": i, "image_id": i % 6 + 1, "bbox": [x, y, w, h]}
            content["annotations"].append({**first, **box, **shape})
    findings = Findings()
    load_index(find_splits(tiny_coco), "train", findings=findings)
    assert not {"boxes-xyxy", "box-likely-xyxy"} & {
        *findings.counts,
        *look(tiny_coco).findings.counts,
    }
    assert findings.counts["box-clipped"] == 3
    changes, _ = fix(look(tiny_coco), tmp_path / "fixed")
    assert {change.rule for change in changes} <= {"box-clipped", "outline-outside"}
    with edited(tiny_coco) as content:  # without the proof the same numbers are corners
        for entry in content["annotations"]:
            entry["area"], entry["segmentation"] = 1, []
    assert look(tiny_coco).of("boxes-xyxy")


def test_most_outlines_elsewhere_are_an_error_and_what_a_box_hides_is_none(tiny_coco: Path) -> None:
    def outlined(place: Callable[[float, float, float, float], list[float]]) -> Report:
        with edited(tiny_coco) as content:
            for entry in content["annotations"]:
                left, top, right, bottom = place(*entry["bbox"])
                entry["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
        return look(tiny_coco)

    assert not rules_of(outlined(lambda x, y, w, h: [x + 1, y - 1, x + w + 1, y + h - 1])) & {
        "outline-apart"
    }
    assert not rules_of(outlined(lambda x, y, w, h: [x, y, x + w / 4, y + h / 4])) & {
        "outline-apart"
    }
    assert len(outlined(lambda x, y, w, h: [y, x, y + h, x + w]).of("outlines-apart")) == 1
    with pytest.raises(DatasetError, match=r"most outlines show other places"):
        load_index(find_splits(tiny_coco), "train", masks=True)
    assert len(load_index(find_splits(tiny_coco), "train").boxes) == 7


def test_a_copy_that_would_lose_a_split_or_most_of_one_is_refused(
    damaged: Path, tmp_path: Path
) -> None:
    (damaged / "valid" / NAME).write_text("{")
    with pytest.raises(
        ValueError, match=r"lose most of valid \(cannot be read\); nothing was written.*--force"
    ):
        fix(look(damaged), tmp_path / "fixed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]
    # Every picture of valid in test, too.
    shutil.copytree(damaged / "test", damaged / "valid", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"lose most of valid \(0 of 4 images, 0 of \d+ boxes\)"):
        fix(look(damaged), tmp_path / "fixed")
    changes, shares = fix(look(damaged), tmp_path / "fixed", force=True)
    assert (
        shares[1][:3] == ("valid", 4, 0)
        and sum(change.rule == "split-leak" for change in changes) == 4
    )


def test_a_split_with_other_classes_stays_in_the_copy(damaged: Path, tmp_path: Path) -> None:
    with edited(damaged, "valid") as content:
        content["categories"][0]["name"] = "other"
    _, shares = fix(look(damaged), tmp_path / "fixed")
    assert [share.split for share in shares] == ["train", "valid", "test"]
    assert look(tmp_path / "fixed").of("classes-differ")


def test_good_parts_of_an_outline_stay(damaged: Path, tmp_path: Path) -> None:
    good = [10, 10, 30, 10, 30, 30, 10, 30]
    with edited(damaged) as content:
        content["annotations"][0].update(
            bbox=[10, 10, 20, 20], segmentation=[good, [1, 1, 2, 2], [1, 2, 3, 4, 5, 6, 7]]
        )
        content["annotations"][1]["segmentation"] = [
            [-20, 5, -10, 5, -10, 9],
            [-9, 0, 9, 0, 9, 9],
            [1, 1, 5, 5],
        ]
    fix(look(damaged), tmp_path / "fixed")
    entries = json.loads((tmp_path / "fixed" / "train" / NAME).read_text())["annotations"]
    assert [entry["segmentation"] for entry in entries[:2]] == [[good], [[0, 0, 9, 0, 9, 9]]]


def test_a_copy_keeps_the_boxes_of_text_ids_and_names_with_backslashes(
    damaged: Path, tmp_path: Path
) -> None:
    before = load_index(find_splits(damaged), "train")
    with edited(damaged) as content:
        for entry in content["annotations"]:
            entry["image_id"] = str(entry["image_id"])
        for image in content["images"]:
            image["file_name"] = f".\\{image['file_name']}"
    fix(look(damaged), tmp_path / "fixed")
    copy = load_index(find_splits(tmp_path / "fixed"), "train")
    assert len(copy) == len(before) and np.array_equal(copy.boxes, before.boxes)


def test_a_yolo_copy_keeps_key_points_and_other_keys(tiny_yolo: Path, tmp_path: Path) -> None:
    for label in tiny_yolo.rglob("labels/*.txt"):
        label.write_text("0 0.95 0.5 0.2 0.1 1.2 .5 2\n")
    with (tiny_yolo / "data.yaml").open("a") as stream:
        stream.write("kpt_shape: [1, 3]\nlicense: CC0\n")
    fix(look(tiny_yolo), tmp_path / "fixed")
    content = yaml.safe_load((tmp_path / "fixed" / "data.yaml").read_text())
    assert (content["kpt_shape"], content["license"]) == ([1, 3], "CC0")
    assert content["train"] == "train/images"
    label = next((tmp_path / "fixed" / "train" / "labels").glob("*.txt"))
    assert label.read_text() == "0 0.925 0.5 0.15 0.1 1.2 .5 2\n"
    copy = load_index(find_splits(tmp_path / "fixed"), "train", findings=(findings := Findings()))
    assert len(copy.boxes) == 4 and "label-line" not in findings.counts


YOLO_FAULTS: dict[str, tuple[str, str]] = {
    "three numbers": ("0 0.5 0.5 0.5", "label-line"),
    "words": ("cat 0.5 0.5 0.1 0.1", "label-line"),
    "odd polygon": ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1", "label-line"),
    "unknown class": ("3 0.5 0.5 0.1 0.1", "label-class"),
    "pixels": ("0 320 240 60 40", "label-range"),
    "NaN": ("0 nan 0.5 0.1 0.1", "label-range"),
    "no size": ("1 0.5 0.5 0 0.1", "box-no-size"),
    "outside": ("1 1.5 0.5 0.1 0.1", "box-outside"),
    "reaching out": ("1 0.95 0.5 0.2 0.1", "box-clipped"),
    "bow-tie": ("2 0.2 0.2 0.6 0.6 0.6 0.2 0.2 0.6", "outline-crossing"),
    "whole image": ("2 0.5 0.5 1 1", "box-whole-image"),
}


def test_faults_of_a_yolo_set_are_found_and_corrected(tiny_yolo: Path, tmp_path: Path) -> None:
    before = rules_of(look(tiny_yolo))
    assert before <= {"class-missing"}
    labels = tiny_yolo / "train" / "labels"
    (labels / "0.txt").write_text("".join(f"{line}\n" for line, _ in YOLO_FAULTS.values()))
    (labels / "stray.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (labels / "3.txt").write_text("0 0.5 0.5 0.1 0.1\n" * 2)
    report = look(tiny_yolo)
    for number, (_, rule) in enumerate(YOLO_FAULTS.values(), 1):
        assert any(f.at == number and f.file == str(labels / "0.txt") for f in report.of(rule)), (
            number,
            rule,
        )
    assert report.of("label-orphan")[0].file == str(labels / "stray.txt")
    assert report.of("box-repeated")[0].record == "line 2"
    assert {f.file for f in report.of("label-missing")} >= {str(labels / "4.txt")}
    fix(report, tmp_path / "fixed", force=True)
    again = look(tmp_path / "fixed")
    assert rules_of(again) - before == {"outline-crossing"}  # which nobody but a person can redraw
    assert len(again.indexes["train"]) == 6


def test_files_that_cannot_be_read_are_findings_with_line_and_column(
    damaged: Path, tiny_yolo: Path
) -> None:
    (damaged / "valid" / NAME).write_text('{"images": [,]}')
    shutil.rmtree(damaged / "test")
    report = look(damaged)
    assert "line 1 column 13" in report.of("dataset-unreadable")[0].found
    (tiny_yolo / "data.yaml").write_text("train: [a\nnames: x")
    assert "line 2, column" in look(tiny_yolo).of("dataset-unreadable")[0].found
    (tiny_yolo / "data.yaml").unlink()
    assert "no dataset found" in look(tiny_yolo).of("dataset-unreadable")[0].found


def test_splits_and_classes_are_compared(damaged: Path) -> None:
    with edited(damaged) as content:
        rare = content["categories"][0]["id"]
        content["annotations"] = [
            entry for entry in content["annotations"] if entry["category_id"] != rare
        ]
    shutil.rmtree(damaged / "valid")
    report = look(damaged)
    assert report.of("valid-missing")[0].record == "split valid"
    assert [finding.record for finding in report.of("class-missing")] == [
        f"class {content['categories'][0]['name']}"
    ]
    with edited(damaged, "test") as content:
        content["categories"][0]["name"] = "other"
    assert "only here: ['other']" in look(damaged).of("classes-differ")[0].found


def test_more_objects_than_queries_and_a_rare_class(damaged: Path) -> None:
    with edited(damaged) as content:
        many = content["annotations"][0]
        others = [
            entry for entry in content["annotations"] if entry["category_id"] != many["category_id"]
        ]
        content["annotations"] = [many, others[0]]
        content["annotations"] += [
            {**many, "id": 5000 + i, "bbox": [i % 100, i // 100, 30, 30]}
            for i in range(RFDETRMiniConfig().num_queries * 12)
        ]
    report = look(damaged)
    assert report.of("objects-over-queries")[0].record == "000000.jpg"
    assert report.of("class-imbalance")


@pytest.mark.parametrize(
    ("points", "rule"),
    [
        ([(0, 0), (4, 0), (4, 4), (0, 4)], None),
        ([(0, 0), (4, 4), (4, 0), (0, 4)], "crossing"),
        ([(0, 0), (0, 0), (4, 0), (4, 4), (4, 4)], None),
        ([(0, 0), (4, 0), (4, 4), (0, 4), (0, 0)], None),  # closed by its first corner
        ([(0, 0), (2, 0), (4, 0), (4, 4), (0, 4)], None),  # a corner on a straight side
        ([(0, 0), (9, 0), (9, 9), (8, 1), (7, 9), (6, 1), (0, 9)], None),
        ([(0, 0), (9, 0), (9, 9), (8, -1), (0, 9)], "crossing"),
        ([(0, 0), (9, 0), (9, 9), (8, 0), (0, 9)], "touching"),  # a corner on an edge
        ([(0, 0), (4, 0), (2, 2), (4, 4), (0, 4), (2, 2)], "touching"),  # a pinched ring
        ([(0, 0), (4, 0), (4, 4), (4, 8), (4, 4), (0, 4)], "touching"),  # a spike
    ],
)
def test_polygons_that_meet_themselves(points: list[tuple[int, int]], rule: str | None) -> None:
    found = crossing(np.array(points, np.float64))
    assert (found and found[0]) == (rule and f"outline-{rule}")


def test_the_fingerprint_knows_a_picture_again_and_no_other() -> None:
    rng = np.random.default_rng(0)
    prints = [rng.integers(0, 200, 256, np.uint8) for _ in range(20)]
    looks = [
        ImageFacts(digest=bytes([i]), fingerprint=one.tobytes()) for i, one in enumerate(prints)
    ]
    others = [
        ImageFacts(digest=b"other", fingerprint=(prints[7] + 20).tobytes()),
        ImageFacts(fingerprint=bytes(256)),
        ImageFacts(),
    ]
    assert list(near_pairs(looks, others)) == [(7, 0)]


def test_an_error_message_shows_the_ten_worst_of_all_rules() -> None:
    findings = Findings(limit=10)
    marked = {"box-not-finite": np.ones(50, bool)}
    findings.add_rows(marked, lambda row: ("a.json", f"annotation id {row}", "", row))
    findings.add("image-missing", "a.json", "gone.jpg")
    findings.add("box-clipped", "a.json", "annotation id 7")
    with pytest.raises(
        DatasetError, match=r"51 errors(.|\n)*id 0:(.|\n)*gone.jpg(.|\n)*id 8:(.|\n)*and 41 more"
    ) as error:
        findings.stop_on_errors("set")
    assert str(error.value).count("\n") == 11 and "box-clipped" not in str(error.value)


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_the_blood_cells_have_no_errors(form: str, request: pytest.FixtureRequest) -> None:
    report = check(request.getfixturevalue(f"bccd_{form}"), processes=2)
    assert not report.findings.counts


def test_very_large_images_and_label_files_are_told(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rfdetr.data.likeness.LARGE_PIXELS", 60_000)  # of 25,600 to 102,400
    monkeypatch.setitem(LARGE_LABELS, "coco", 1000)
    sizes = [Image.open(path).size for path in clean.rglob("*.jpg")]
    large = sum(width * height > 60_000 for width, height in sizes)
    counts = check(clean, processes=1).findings.counts
    assert 0 < large < len(sizes)
    assert (counts["image-large"], counts["labels-large"]) == (large, 3)


def test_a_copy_leaves_out_images_that_share_an_id(damaged: Path, tmp_path: Path) -> None:
    """Whose boxes are whose is not known; a record of a missing file is no link to nowhere."""
    with edited(damaged) as content:
        shared = content["images"][3]
        content["images"] += [{**shared, "file_name": "gone.jpg"}] * 2
        boxes = sum(entry["image_id"] == shared["id"] for entry in content["annotations"])
        total = len(content["annotations"])
    changes, shares = fix(look(damaged), tmp_path / "fixed")
    assert sum(change.rule in {"image-id-repeated", "image-missing"} for change in changes) == 3
    train = next(share for share in shares if share.split == "train")
    assert (train.images - train.images_kept, train.boxes_kept) == (3, total - boxes)
    assert all(path.exists() for path in (tmp_path / "fixed").rglob("*"))
    assert not rules_of(look(tmp_path / "fixed"), "error")


def test_a_copy_leaves_out_images_whose_labels_are_no_text(tiny_yolo: Path, tmp_path: Path) -> None:
    label = tiny_yolo / "train" / "labels" / "1.txt"
    label.write_bytes(label.read_text().encode("utf-16"))
    changes, shares = fix(look(tiny_yolo), tmp_path / "fixed")
    assert [change.record for change in changes if "no UTF-8" in change.change] == [
        "train/images/1.png"
    ]
    train = next(share for share in shares if share.split == "train")
    assert train.images_kept == train.images - 1 and train.boxes_kept < train.boxes
    assert not rules_of(look(tmp_path / "fixed"), "error")
