"""The documentation site is strict: what leads to nothing, or to a network, is told."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rfdetr.config import TrainConfig

REPOSITORY = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("docs", REPOSITORY / "scripts" / "docs.py")
assert SPEC and SPEC.loader
docs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(docs)
FAULTY = "[a](other.md#nowhere) [b](nowhere.md) ![c](nowhere.png) [d][rfdetr.Nowhere]\n"


def test_a_build_with_faults_tells_each_and_fails(tmp_path: Path) -> None:
    settings = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    settings |= {"docs_dir": "pages", "site_dir": "site", "nav": ["index.md", "gone.md"]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text(FAULTY)
    (tmp_path / "pages" / "other.md").write_text("# Other\n")
    command = [sys.executable, "-m", "mkdocs", "build"]  # strict by mkdocs.yml
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 1
    told = [line for line in built.stderr.splitlines() if "WARNING" in line]
    for fault in ("#nowhere", "nowhere.md", "nowhere.png", "rfdetr.Nowhere", "gone.md", "nav"):
        assert any(fault in line for line in told), (fault, told)


def test_what_the_build_lets_through_is_found_in_its_pages(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="here">A</h1><a href="#here"></a><a href="deep/b.html#there"></a>'
        '<a href="https://example.org"></a><img src="data:,"><a href="deep/b.html#nowhere"></a>'
        '<img src="gone.png"><script src="https://example.org/a.js"></script>'
        '<link href="//example.org/a.css" rel="stylesheet">'
    )
    (tmp_path / "deep" / "b.html").write_text('<p id="there"><a href="../index.html"></a></p>')
    (tmp_path / "a.css").write_text("@font-face { src: url('https://example.org/font') }")
    told = [line.partition(": ")[2] for line in docs.faults_of(tmp_path)]
    assert sorted(told) == [
        "loads //example.org/a.css",
        "loads https://example.org/a.js",
        "loads https://example.org/font",
        "no anchor deep/b.html#nowhere",
        "no file gone.png",
    ]


@pytest.mark.parametrize(
    ("field", "cells"),
    [
        ("epochs", ["int ≥ 1", "`100`"]),
        ("drop_path", ["float ≥ 0, < 1", "`0.0`"]),
        ("lr_scheduler", ['`"step"`, `"cosine"`', '`"step"`']),
        ("minutes", ["float > 0 or None", "`None`"]),
        ("dataset_dir", ["str or dict", "needed"]),
    ],
)
def test_a_field_is_told_with_type_range_and_default(field: str, cells: list[str]) -> None:
    rows = [line.split(" | ") for line in docs.fields(TrainConfig)]
    (row,) = [row for row in rows if row[0] == f"| `{field}`"]
    assert row[1:3] == cells and len(row[3]) > 10


def test_every_command_and_finding_is_told() -> None:
    commands, findings = "\n".join(docs.commands()), "\n".join(docs.findings())
    assert all(f"## rfdetr {verb}\n" in commands for verb in ("train", "check", "verify-resume"))
    assert "--grad-accum-steps" in commands and "| `split-leak` | error |" in findings


def test_links_to_the_readme_lead_to_the_first_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs.gather(tmp_path / "docs")
    pages: dict[str, Any] = {p.name: p.read_text() for p in (tmp_path / "docs").rglob("*.md")}
    assert "](export.md)" in pages["index.md"] and "](docs/" not in pages["index.md"]
    assert "](index.md#the-data)" in pages["data.md"]
    assert not any(docs.INSERT.search(text) for text in pages.values())


def test_pictures_are_small() -> None:
    sizes = [path.stat().st_size for path in (REPOSITORY / "docs" / "pictures").iterdir()]
    assert sizes and max(sizes) <= 60_000 and sum(sizes) <= 600_000
