"""The counting behind `make lint`: what passes a limit is seen."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "house.py"
SOURCE = '''"""A room."""

TABLE = {"by table": lambda: 1}


def used(x):  # a trailing comment is no line of notes
    """Two
    lines."""
    # one more
    return _hop(x) + _twice(x) + _twice(x) + len([_in_table])


def _hop(x):
    return x


def _twice(x):
    return x


def _in_table(x):
    return x


def _long(x):
    x += 1
    x += 1
    x += 1
    x += 1
    x += 1
    return x


TOTAL = _long(1)
WIDE = "{wide}"
'''


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, over a package of one file in one room."""
    spec = importlib.util.spec_from_file_location("house", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "house", module)
    spec.loader.exec_module(module)
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "file.py").write_text(SOURCE.replace("{wide}", "w" * 100))
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    return module


def test_lines_are_counted_by_room(house: ModuleType) -> None:
    lines = SOURCE.splitlines()
    filled = sum(bool(line.strip()) for line in lines)
    assert house.figures_by_room() == {"room": (1, len(lines), filled, 4, 1, 5)}


def test_a_short_private_function_with_one_caller_is_a_hop(house: ModuleType) -> None:
    (line,) = (n for n, text in enumerate(SOURCE.splitlines(), 1) if text.startswith("def _hop"))
    assert house.short_hops() == [f"room/file.py:{line} _hop"]


def test_a_passed_limit_fails(
    house: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["house.py", "--no-walks"])
    monkeypatch.setattr(house, "MOST_LINES", {"room": 10})
    monkeypatch.setattr(house, "LONGEST", 20)
    assert house.main()
    told = capsys.readouterr().out
    assert f"room has {len(SOURCE.splitlines())} lines" in told
    assert "room has 1 lines wider than 100" in told
    assert f"room/file.py has {len(SOURCE.splitlines())} lines: split it" in told
    assert "_hop has one caller" in told
