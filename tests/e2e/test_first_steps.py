"""How good the bundled weights are after ten optimizer steps, by what they were fitted to: another
count of queries, classes of their own names or of other ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rfdetr import RFDETRMini
from rfdetr.synthetic import generate

KNOWN = ("drop", "disc", "arc", "bean", "kite", "shield")  # among the 110 classes of the weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., float]:
    """mAP 50:95 on the 40 training pictures of a model that saw each once; `rename` is what becomes
    of the names in the labels.
    """
    folder = tmp_path_factory.mktemp("first-steps")
    shapes = {"classes": KNOWN, "distractors": ("crescent", "fish", "heart", "leaf")}
    made = generate(folder / "data", 57, plain=True, **shapes)

    def score(rename: str = "{}", **settings: Any) -> float:
        name = f"{rename}-{settings}"
        data = Path(shutil.copytree(made, folder / f"data {name}"))
        for labels in data.rglob("*.json"):
            text = labels.read_text()
            for kind in KNOWN:
                text = text.replace(f'"{kind}"', f'"{rename.format(kind)}"')
            labels.write_text(text)
        model = RFDETRMini(**settings)
        model.train(
            dataset_dir=data, output_dir=folder / f"run {name}", epochs=1, batch_size=4,
            grad_accum_steps=1, seed=0, num_workers=0, multi_scale=False, run_test=False,
            compute_val_loss=False,
        )  # fmt: skip
        found = model.evaluate(data, "train", num_workers=0)
        return float(found.overall["mAP_50_95"])

    return score


@pytest.mark.scheduled
def test_other_counts_of_queries_are_about_as_good(trained: Callable[..., float]) -> None:
    """Of 100 in the file: measured were 0.404 with them, 0.399 with 150, 0.381 with 60. New queries
    drawn at random reach 0.03, rows taken across the groups 0.37.
    """
    equal = trained()
    assert equal > 0.3
    assert trained(num_queries=150) > 0.95 * equal
    assert trained(num_queries=60) > 0.88 * equal


@pytest.mark.scheduled
def test_classes_that_the_weights_know_by_name_need_not_be_learnt(
    trained: Callable[..., float],
) -> None:
    assert trained("{}s") > 1.5 * trained("shape {}")
