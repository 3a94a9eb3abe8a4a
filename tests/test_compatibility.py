"""The page of compatibility holds: its tables are those of the code. (Its blocks run with those of
all pages.)
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).parents[1] / "scripts" / "compatibility.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compatibility", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compatibility = load_script()
PAGE = compatibility.PAGE.read_text()
BLOCKS = compatibility.blocks(PAGE)


def test_the_page_holds_what_the_script_prints() -> None:
    assert compatibility.generated(PAGE) == PAGE, "run scripts/compatibility.py --write"


def test_every_published_keyword_has_a_row() -> None:
    for call, keywords in compatibility.KEYWORDS.items():
        for keyword in keywords if call in compatibility.CALLS else ():
            assert f"\n| `{keyword}` | " in PAGE, (call, keyword)


def test_nine_of_ten_blocks_run() -> None:
    run = [block for block in BLOCKS if not block.verdict.startswith("does not")]
    assert len(BLOCKS) >= 30
    assert len(run) >= 0.9 * len(BLOCKS)
    assert len({block.name for block in BLOCKS}) == len(BLOCKS)
