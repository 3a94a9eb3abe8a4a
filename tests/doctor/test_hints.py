"""Hints that a user has confirmed correct a copy of the data, in both layouts; others are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rfdetr.cli import main
from rfdetr.data.layout import find_splits, load_index

IMAGE = 3  # of train, with three objects


def place(root: Path, number: int, image: int = IMAGE) -> dict[str, Any]:
    """Class and box of an object, as a hint has them."""
    index = load_index(find_splits(root), "train")
    row = index.rows(image).start + number
    x, y, right, bottom = index.boxes[row].tolist()
    name = index.class_names[index.labels[row]]
    return {"class": name, "box": [x, y, right - x, bottom - y]}


def write_hints(root: Path, **changes: Any) -> Path:
    """A hint of each kind, all set to apply, and one that is not."""
    index = load_index(find_splits(root), "train")
    image = str(index.path(IMAGE).relative_to(index.root))
    labels = [place(root, number) for number in range(3)]
    other = next(name for name in index.class_names if name != labels[0]["class"])
    free = {"class": "red", "box": [1, 1, 8, 9], "score": 0.9}
    hints = [
        {"kind": "swapped", "label": labels[0], "found": {**labels[0], "class": other}},
        {"kind": "badly placed", "label": labels[1], "found": {**labels[1], "box": [2, 3, 20, 11]}},
        {"kind": "spurious", "label": labels[2], "found": None},
        {"kind": "overlooked", "label": None, "found": free},
        {
            "kind": "overlooked",
            "label": None,
            "found": {**free, "box": [30, 30, 9, 9]},
            "apply": False,
        },
    ]
    common = {"split": "train", "image": image, "apply": True, "probability": 0.5}
    content = {"schema_version": 1, "hints": [{**common, **hint, **changes} for hint in hints]}
    path = root.parent / "label_hints.json"
    path.write_text(json.dumps(content))
    return path


def check_copy(root: Path, copy: Path) -> None:
    before, after = (load_index(find_splits(at), "train") for at in (root, copy))
    first, own = before.rows(IMAGE), after.rows(IMAGE)
    assert len(after.boxes) == len(before.boxes)  # one gone, one new
    told = {tuple(round(x) for x in box) for box in after.boxes[own].tolist()}
    kept = tuple(round(x) for x in before.boxes[first][0].tolist())
    assert told == {kept, (2, 3, 22, 14), (1, 1, 9, 10)}
    swapped = [
        label
        for box, label in zip(after.boxes[own].tolist(), after.labels[own], strict=True)
        if tuple(round(x) for x in box) == kept
    ]
    assert swapped != [before.labels[first][0]]
    rest = [at for at in range(len(before)) if at != IMAGE]
    assert all(
        (before.boxes[before.rows(at)] == pytest.approx(after.boxes[after.rows(at)], abs=1e-3))
        for at in rest
    )


@pytest.mark.parametrize("layout", ["coco", "yolo"])
def test_confirmed_hints_change_the_copy_and_nothing_else(
    layout: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = request.getfixturevalue(f"tiny_{layout}")
    hints = write_hints(root)
    main(["check", str(root), "--fix", str(tmp_path / "copy"), "--hints", str(hints)])
    out = capsys.readouterr().out
    assert all(f"hint-{kind}" in out for kind in ("swapped", "badly-placed", "spurious"))
    assert out.count("hint-overlooked") == 1
    check_copy(root, tmp_path / "copy")


def refusal(root: Path, hints: Path, capsys: pytest.CaptureFixture[str]) -> str:
    copy = root.parent / "copy"
    assert main(["check", str(root), "--fix", str(copy), "--hints", str(hints)]) == 2
    assert not copy.exists()
    return capsys.readouterr().err


def test_hints_that_do_not_fit_the_data_are_refused(
    tiny_coco: Path, capsys: pytest.CaptureFixture[str], edit_coco: Callable[..., None]
) -> None:
    assert "no such image" in refusal(tiny_coco, write_hints(tiny_coco, image="gone.jpg"), capsys)
    assert "none of its 5 hints is set" in refusal(
        tiny_coco, write_hints(tiny_coco, apply=False), capsys
    )
    hints = write_hints(tiny_coco)

    def move(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry["bbox"][0] += 15

    edit_coco(tiny_coco / "train" / "_annotations.coco.json", move)
    assert "a label that is not there" in refusal(tiny_coco, hints, capsys)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "no file of label hints"),
        ("{", "cannot be read as JSON"),
        ('{"hints": [{"kind": "odd"}]}', "no file of label hints"),
    ],
)
def test_other_files_are_no_hints(
    tiny_coco: Path, tmp_path: Path, text: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hints.json"
    path.write_text(text)
    assert told in refusal(tiny_coco, path, capsys)


def test_hints_need_a_copy(tiny_coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tiny_coco), "--hints", str(write_hints(tiny_coco))]) == 2
    assert "--fix NEW_FOLDER" in capsys.readouterr().err
