from __future__ import annotations

import json
from pathlib import Path

import pytest

from rfdetr.config import VARIANTS
from rfdetr.weights.download import BUNDLED, PUBLISHED


def test_registry_is_the_published_list_without_key_points(golden_dir: Path) -> None:
    rows = json.loads((golden_dir / "weights.json").read_text())
    expected = {
        (row["file"], row["url"], row["md5"]) for row in rows if "keypoint" not in row["file"]
    }
    assert {tuple(file) for file in PUBLISHED.values()} == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_starts_from_a_known_file(variant: str) -> None:
    name = VARIANTS[variant]().pretrain_weights
    assert name in (BUNDLED if variant.endswith("mini") else PUBLISHED)
