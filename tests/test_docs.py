"""The guide holds: the tests it names exist, every statement has one, and its code runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rfdetr.config import RFDETRMiniConfig, TrainConfig
from rfdetr.training import RFDETRDataModule, build_trainer

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "custom-training.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
TABLES = PAGE.read_text().partition("## Statement and test")[2]
ROWS = [
    line
    for line in TABLES.splitlines()
    if line.startswith("|") and "|---" not in line and not line.endswith("| test |")
]


def test_every_test_that_is_named_exists() -> None:
    places = sorted(set(NAMED.findall(PAGE.read_text())))
    assert places
    sources = {file: (TESTS / file).read_text() for file, _ in places}
    missing = [(file, name) for file, name in places if f"\ndef {name}(" not in sources[file]]
    assert missing == []


def test_no_statement_is_without_a_test() -> None:
    assert len(ROWS) > 80
    assert [row for row in ROWS if not NAMED.search(row)] == []


def class_of_block(name: str) -> type[Any]:
    """The class that a block of the guide makes, in ten lines at most."""
    block = re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block
    assert len(block[1].strip().splitlines()) <= 10
    names: dict[str, Any] = {"__name__": "guide"}
    exec(compile(block[1], str(PAGE), "exec"), names)
    (own,) = (one for one in names.values() if isinstance(one, type) and one.__module__ == "guide")
    return own


def test_the_data_module_of_the_guide_augments_nothing(make_tiny_coco: Callable[..., Path]) -> None:
    own = class_of_block("no augmentation")
    data = make_tiny_coco({"train": 2, "valid": 2})
    train = TrainConfig(dataset_dir=data, num_workers=0, batch_size=2)
    model = RFDETRMiniConfig(resolution=64)
    views = []
    for kind in (own, RFDETRDataModule):
        dataset = kind(model, train).train_dataloader().dataset
        views.append([dataset[epoch, 1, 64][0].tolist() for epoch in range(4)])
    assert all(view == views[0][0] for view in views[0])
    assert any(view != views[1][0] for view in views[1])


def test_the_loss_term_of_the_guide_trains(
    make_tiny_coco: Callable[..., Path], tmp_path: Path
) -> None:
    own = class_of_block("a loss term")
    size = {"resolution": 64, "hidden_dim": 32, "sa_nheads": 4, "ca_nheads": 4, "dec_layers": 1}
    queries = {"num_queries": 10, "num_select": 10, "group_detr": 2, "num_classes": 3}
    model = RFDETRMiniConfig(**size, **queries, dim_feedforward=64, pretrain_weights=None)
    data = make_tiny_coco({"train": 2, "valid": 2})
    batches = {"batch_size": 2, "grad_accum_steps": 1, "num_workers": 0, "multi_scale": False}
    train = TrainConfig(dataset_dir=data, output_dir=tmp_path, epochs=1, **batches)
    trainer = build_trainer(train, model)
    trainer.fit(own(model, train), RFDETRDataModule(model, train))
    terms = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("train/loss")
    }
    assert terms["train/loss_area"] > 0
    parts = [
        value
        for name, value in terms.items()
        if name != "train/loss" and not name.endswith("_step")
    ]
    assert terms["train/loss"] == pytest.approx(sum(parts), rel=1e-4)
