"""A dataset in another layout: the same boxes and outlines, what it cannot hold is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.test_annotated import assert_equal, to_cvat

from rfdetr.cli import main
from rfdetr.data.layout import find_splits, load_index
from rfdetr.doctor.convert import convert

NAME = "_annotations.coco.json"


def test_there_and_back_the_boxes_are_the_same(bccd_coco: Path, tmp_path: Path) -> None:
    written = convert(bccd_coco, tmp_path / "yolo", "yolo")
    assert written.splits == {"train": (205, 2804), "valid": (87, 1137), "test": (72, 945)}
    assert not written.findings.counts
    convert(tmp_path / "yolo", tmp_path / "coco", "coco")
    for split in written.splits:
        expected = load_index(find_splits(bccd_coco), split)
        for copy in ("yolo", "coco"):
            assert_equal(load_index(find_splits(tmp_path / copy), split), expected)
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        convert(bccd_coco, tmp_path / "coco")


def signed_area(part: np.ndarray) -> float:
    (x, y), (then_x, then_y) = part.T, np.roll(part, -1, axis=0).T
    return float((x * then_y - y * then_x).sum() / 2)


def test_outlines_go_along_and_what_yolo_cannot_hold_is_counted(
    tiny_coco: Path, edit_coco: Callable[..., None], tmp_path: Path
) -> None:
    runs = {"size": [48, 64], "counts": [48 * 10 + 5, 20, 48 * 54 - 25]}
    parts = [[0, 0, 8, 0, 8, 8, 0, 8], [20, 0, 24, 0, 24, 8], [40, 30, 50, 30, 50, 40]]

    def change(content: dict[str, Any]) -> None:
        first, second, third = content["annotations"][:3]
        first.update(segmentation=parts, bbox=[0, 0, 50, 40])
        second.update(segmentation=runs, bbox=[10, 5, 1, 20])
        third.update(iscrowd=1)

    edit_coco(tiny_coco / "train" / NAME, change)
    whole = load_index(find_splits(tiny_coco), "train", masks=None)
    for to, counts in (("coco", {"crowd": 1}), ("yolo", {"mask-as-box": 1, "crowd-left-out": 1})):
        written = convert(tiny_coco, tmp_path / to, to)  # type: ignore[arg-type]
        assert counts.items() <= written.findings.counts.items()
        left = to == "yolo"
        assert written.splits["train"] == (6, len(whole.boxes) - left)
        index = load_index(find_splits(tmp_path / to), "train", masks=None)
        rows = np.flatnonzero(~whole.crowd) if left else np.arange(len(whole.boxes))
        assert index.boxes == pytest.approx(whole.boxes[rows], abs=1e-3)
        image = int(np.searchsorted(whole.offsets, 0, side="right")) - 1
        (before,), (after,) = (x.outlines_of(image, slice(0, 1)) for x in (whole, index))
        assert before is not None and after is not None
        assert len(before.polygons) == 3 and len(after.polygons) == (1 if left else 3)
        area = sum(abs(signed_area(part)) for part in before.polygons)
        found = [signed_area(part) for part in after.polygons]
        assert abs(sum(map(abs, found))) == pytest.approx(area, abs=0.01)


def test_the_command_divides_and_merges(
    shared_tiny_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = load_index(find_splits(shared_tiny_coco), "train")
    for split in ("train", "test"):
        to_cvat(tmp_path / "cvat", split, load_index(find_splits(shared_tiny_coco), split))
    out = tmp_path / "out"
    arguments = ["convert", str(tmp_path / "cvat"), str(out), "--split", "--classes", "x=red+blue"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "train: " in told and "valid: " in told and "test: " in told
    layout = find_splits(out)
    parts = [load_index(layout, split) for split in ("train", "valid")]
    assert [len(part) for part in parts] != [6, 0] and sum(map(len, parts)) == 6
    assert parts[0].class_names == ("x",)
    assert sum(len(part.boxes) for part in parts) == int((whole.labels != 1).sum())
    assert all(path.is_symlink() for path in (out / "train").glob("*.png"))
    assert main(arguments) == 2
    content = json.loads((out / "train" / NAME).read_text())
    assert {record["category_id"] for record in content["annotations"]} == {1}
