"""The page of `rfdetr check --report`: what is shown of each finding, and how much of many."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rfdetr.cli import main
from rfdetr.doctor import check, pictures
from rfdetr.doctor.pictures import Finder, write_pictures
from rfdetr.errors import InputError

Edit = Callable[..., None]


@pytest.fixture
def faulty(make_tiny_coco: Callable[..., Path], edit_coco: Edit) -> Path:
    """A set with one fault of many kinds."""
    data = make_tiny_coco({"train": 8, "valid": 4}, "<faulty>")

    def spoil(content: dict[str, Any]) -> None:
        boxes = [record["bbox"] for record in content["annotations"]]
        boxes[0][0] = 5000.0  # outside
        boxes[1][2] = 0.0  # no size
        boxes[2][2] += 1000.0  # clipped
        content["annotations"][3]["category_id"] = 99
        for box in boxes[4:7]:
            box[2:] = [1.0, 1.0]  # tiny

    edit_coco(data / "train" / "_annotations.coco.json", spoil)
    images = sorted(path for path in (data / "train").iterdir() if path.suffix != ".json")
    shutil.copy(images[6], data / "valid" / sorted((data / "valid").glob("*.jpg"))[0].name)
    return data


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"<h2 id=([\w-]+)>", page)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def images_in(html: str) -> list[np.ndarray]:
    found = re.findall(r"data:image/webp;base64,([\w+/=]+)", html)
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in found
    ]


def has_mark(image: np.ndarray) -> bool:
    red = (image[..., 0] > 150) & (image[..., 1] < 70) & (image[..., 2] < 70)
    return int(red.sum()) > 20


def test_each_finding_has_its_picture_with_the_box(faulty: Path, tmp_path: Path) -> None:
    report = check(faulty, processes=1)
    write_pictures(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<faulty>" not in page and "&lt;faulty&gt;" in page
    found = sections(page)
    assert found.keys() == {rule for rule, count in report.findings.counts.items() if count}
    for rule in ("box-outside", "box-no-size", "box-clipped"):
        (image,) = images_in(found[rule])
        assert has_mark(image) and max(image.shape) == pictures.SIDE, rule
    assert len(images_in(found["box-tiny"])) >= 3
    assert len(images_in(found["split-leak"])) >= 1
    assert "1 found, 0 shown; 1 without a picture" in found["annotation-unknown-category"]
    assert "src=" not in re.sub(r'src="data:[^"]+"', "", page) and "http" not in page


def test_a_box_is_found_where_the_file_has_it(faulty: Path) -> None:
    report = check(faulty, processes=1)
    finder = Finder(report)
    (clipped,) = report.of("box-clipped")
    shown = finder.find(clipped)
    records = report.records["train"]
    row = int(np.flatnonzero(records.boxes["place"] == clipped.at)[0])
    assert shown is not None
    assert shown.path.name == records.names[records.boxes["image"][row]]
    assert shown.boxes == [records.boxes["xyxy"][row].tolist()]
    for tiny in report.of("box-tiny"):
        shown = finder.find(tiny)
        assert shown is not None and len(shown.boxes) >= 1
    (leak, *_) = report.of("split-leak")
    shown = finder.find(leak)
    assert shown is not None and shown.twin is not None
    assert (shown.path.parent.name, shown.twin.parent.name) == ("train", "valid")


def test_boxes_of_yolo_files_are_in_pixels(tiny_yolo: Path) -> None:
    label = sorted((tiny_yolo / "train" / "labels").glob("*.txt"))[0]
    first, *rest = label.read_text().splitlines()
    label.write_text("\n".join([first, "0 0.95 0.5 0.3 0.2", *rest]) + "\n")
    report = check(tiny_yolo, processes=1)
    (clipped,) = report.of("box-clipped")
    shown = Finder(report).find(clipped)
    assert shown is not None and shown.path.stem == label.stem
    with Image.open(shown.path) as image:
        width, height = image.size
    wanted = [0.8 * width, 0.4 * height, 1.1 * width, 0.6 * height]
    assert shown.boxes[0] == pytest.approx(wanted)


def test_of_many_some_are_shown_and_the_rest_is_counted(
    faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "PER_RULE", 2)
    monkeypatch.setattr(pictures, "MOST_LISTED", 1)
    report = check(faulty, processes=1)
    count = report.findings.counts["box-tiny"]
    write_pictures(report, tmp_path / "page.html")
    tiny = sections((tmp_path / "page.html").read_text())["box-tiny"]
    assert len(images_in(tiny)) == 2
    assert f"{count} found, 2 shown; {count - 2} without a picture" in tiny
    assert f"and {count - 1} more" in tiny
    monkeypatch.setattr(pictures, "MOST_BYTES", 1)
    write_pictures(report, tmp_path / "small.html")
    assert len(images_in((tmp_path / "small.html").read_text())) == 1


def test_nothing_is_written_over(
    faulty: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.html exists"):
        write_pictures(check(faulty, processes=1), tmp_path / "mine.html")
    quick = ["check", str(faulty), "--processes=1"]
    assert main([*quick, "--report", "mine.html"]) == 2
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert main([*quick, "--report"]) == 1 == main([*quick, "--report", "--json"])
    assert {path.name for path in tmp_path.glob("*.html")} == {
        "mine.html", "<faulty>-check.html", "<faulty>-check-2.html",
    }  # fmt: skip
    assert "the pictures are in <faulty>-check.html" in capsys.readouterr().out
