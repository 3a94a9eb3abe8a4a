"""`rfdetr check` on the command line: tables, JSON, exit codes, the corrected copy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rfdetr.cli import main

Edit = Callable[..., None]


@pytest.fixture
def balanced(make_tiny_coco: Callable[..., Path]) -> Path:
    """Enough pictures for every colour to be in both splits."""
    return make_tiny_coco({"train": 8, "valid": 16})


def break_one(content: dict[str, Any]) -> None:
    content["annotations"][0]["category_id"] = 99
    content["annotations"][1]["bbox"][2] = 0


def test_a_clean_set_is_said_to_be_clean(
    balanced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(balanced), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["errors"], report["warnings"]) == (0, 0) and report["images"] == {
        "train": 8,
        "valid": 16,
    }


def test_a_name_that_is_not_utf8_and_a_file_outside_are_named(
    balanced: Path, edit_coco: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (balanced / "train" / "0.jpg").rename(balanced.parent / name)
    edit_coco(
        balanced / "train" / "_annotations.coco.json",
        lambda c: c["images"][0].update(file_name=f"../../{name}"),
    )
    assert main(["check", str(balanced)]) == 1
    out = capsys.readouterr().out
    assert "error" in out and "path-outside" in out and "caf\\udce9.jpg is not in" in out


def test_errors_are_shown_by_rule_with_examples_and_exit_with_1(
    balanced: Path, edit_coco: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_coco(balanced / "train" / "_annotations.coco.json", break_one)
    assert main(["check", str(balanced)]) == 1
    out, err = capsys.readouterr()
    assert (
        "annotation-unknown-category" in out
        and "annotation id 1: image_id 2, category_id 99" in out
    )
    assert "1 error in the dataset" in err and err.count("\n") == 1


def test_the_corrected_copy_is_written_and_clean(
    balanced: Path, edit_coco: Edit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_coco(balanced / "train" / "_annotations.coco.json", break_one)
    assert main(["check", str(balanced), "--fix", str(tmp_path / "fixed"), "--json"]) == 1
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert {change["rule"] for change in changes} == {"annotation-unknown-category", "box-no-size"}
    assert main(["check", str(tmp_path / "fixed")]) == 0
    assert main(["check", str(balanced), "--fix", str(tmp_path / "fixed")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--model", "nan"], "did you mean 'nano'"), (["--processes", "many"], "processes")],
)
def test_wrong_options_exit_with_2(
    tiny_coco: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tiny_coco), *arguments]) == 2
    assert message in capsys.readouterr().err.lower()
