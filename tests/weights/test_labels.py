"""The logit of a file's first class: really trained heads in both layouts, and what a file or a
user says.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rfdetr import RFDETR
from rfdetr.config import RFDETRMiniConfig
from rfdetr.losses.criterion import Criterion
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector
from rfdetr.weights.labels import given_names, logits_by_name
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import read_checkpoint

NAMES = ["cat", "dog", "owl"]


def config(num_classes: int) -> RFDETRMiniConfig:
    tiny: dict[str, int] = {"resolution": 64, "hidden_dim": 32, "sa_nheads": 4, "ca_nheads": 4}
    tiny |= {"dim_feedforward": 64, "dec_layers": 1, "num_queries": 10, "group_detr": 3}
    tiny |= {"num_classes": num_classes, "num_select": 10 * (num_classes + 1)}
    return RFDETRMiniConfig(**tiny, pretrain_weights=None)


@pytest.fixture(scope="module")
def trained() -> Callable[[int, int], Detector]:
    """`trained(num_classes, first)`: a detector after a few steps on labels that count from
    `first`.
    """
    known: dict[tuple[int, int], Detector] = {}

    def train(num_classes: int, first: int) -> Detector:
        torch.manual_seed(0)
        detector = build_detector(config(num_classes)).train()
        optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
        criterion = Criterion(group_detr=3)
        for _ in range(40):
            targets = [
                {
                    "labels": torch.randint(num_classes, (6,)) + first,
                    "boxes": torch.rand(6, 4) * 0.4 + 0.2,
                }
                for _ in range(2)
            ]
            sum(criterion(detector(torch.randn(2, 3, 64, 64)), targets).values()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return detector.eval()

    return lambda *key: known[key] if key in known else known.setdefault(key, train(*key))


@pytest.fixture
def write(trained: Callable[[int, int], Detector], tmp_path: Path) -> Callable[..., Path]:
    """`write(num_classes, first, **args)`: the file of such a detector, as the published package
    wrote it.
    """

    def file(num_classes: int, first: int, average: bool = False, **args: Any) -> Path:
        model = to_published(trained(num_classes, first).state_dict())
        known = {
            **config(num_classes).model_dump(),
            "class_names": NAMES[:num_classes],
            "dataset_file": "roboflow",
        }
        content = {
            "model": model,
            "args": argparse.Namespace(**{**known, "pretrain_weights": None, **args}),
        }
        torch.save({**content, **({"ema_model": model} if average else {})}, tmp_path / "old.pth")
        return tmp_path / "old.pth"

    return file


def rows(detector: Any) -> torch.Tensor:
    return detector.class_head.bias.detach()


@pytest.mark.parametrize(
    "num_classes",
    [1, pytest.param(2, marks=pytest.mark.scheduled), 3],
)
@pytest.mark.parametrize("first", [0, 1])
def test_trained_heads_show_where_their_classes_begin(
    num_classes: int,
    first: int,
    trained: Callable[..., Detector],
    write: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same names belong to the logits that were trained, in `predict`, and the last class is
    reported.
    """
    model = RFDETR.from_checkpoint(write(num_classes, first))
    assert model.class_names == NAMES[:num_classes]
    assert torch.equal(
        rows(model.model.model)[:num_classes],
        rows(trained(num_classes, first))[first:][:num_classes],
    )
    found = model.predict(torch.rand(3, 64, 64), threshold=0.0)
    assert Counter(found.data["class_name"].tolist()) == dict.fromkeys(NAMES[:num_classes], 10)
    warnings = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert len(warnings) == first  # that it counts from 1 is found, not told
    assert all(
        "old.pth" in text and f"class_names={dict(enumerate(NAMES[:num_classes]))}" in text
        for text in warnings
    )


def test_the_averaged_weights_of_a_file_move_with_the_others(write: Callable[..., Path]) -> None:
    file = read_checkpoint(write(3, 1, average=True))
    assert file.first_class == 1
    for name in ("class_embed.weight", "transformer.enc_out_class_embed.2.bias"):
        assert torch.equal(file.model[name], file.extra["ema_model"][name])


@pytest.mark.parametrize(
    "said",
    [
        {"class_names": {1: "cat", 2: "dog"}},
        {"class_names": {"0": "cat", "1": "dog"}},
        {"class_names": ["cat", "dog"], "rfdetr_version": "1.6.0"},
        {"class_names": ["cat", "dog"], "dataset_file": "yolo"},
        {"class_names": ["cat", "dog"], "resize": "bilinear-antialias-square"},
    ],
    ids=str,
)
def test_what_a_file_says_is_believed(
    said: dict[str, Any], write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Even of heads that look otherwise."""
    from_one = 1 in said["class_names"]
    assert read_checkpoint(write(2, 1 - from_one, **said)).first_class == from_one
    assert not caplog.records


@pytest.mark.parametrize(
    ("version", "first"), [("1.4.2", 1), ("1.5", 1), ("1.10.0", 0), ("2.0", 0)]
)
def test_old_versions_leave_it_to_the_heads(
    version: str, first: int, write: Callable[..., Path]
) -> None:
    assert read_checkpoint(write(2, 1, rfdetr_version=version)).first_class == first


def test_heads_that_show_nothing_are_taken_to_begin_at_zero_with_a_warning(
    write: Callable[..., Path], trained: Callable[..., Detector], caplog: pytest.LogCaptureFixture
) -> None:
    path = write(2, 0)
    content = torch.load(path, weights_only=False)
    for name, tensor in content["model"].items():
        if "class_embed" in name and name.endswith("bias"):
            tensor.fill_(-4.6)
    torch.save(content, path)
    assert read_checkpoint(path).first_class == 0
    (record,) = caplog.records
    assert "'cat': it is taken to be logit 0" in record.getMessage()
    assert "class_names={1: 'cat', 2: 'dog'}" in record.getMessage()


@pytest.mark.parametrize("first", [0, 1])
def test_names_that_are_given_win(
    first: int,
    write: Callable[..., Path],
    trained: Callable[..., Detector],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Counted from where the user says, whatever the heads look like."""
    path, names = write(2, 1 - first), dict(enumerate(["x", "y"], first))
    for model in (
        RFDETR.from_checkpoint(path, class_names=names),
        RFDETR(pretrain_weights=path, class_names=names),
    ):
        assert model.class_names == ["x", "y"]
        assert torch.equal(rows(model.model.model)[:2], rows(trained(2, 1 - first))[first:][:2])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert RFDETR.from_checkpoint(path, class_names=["x", "y"]).class_names == ["x", "y"]
    with pytest.raises(
        ValueError, match="class_names has 3 names, but the model has num_classes=2"
    ):
        RFDETR.from_checkpoint(path, class_names=["x", "y", "z"])


@pytest.mark.parametrize("names", [{2: "a", 3: "b"}, {0: "a", 2: "b"}, {}, [], "ab"])
def test_names_with_gaps_are_refused(names: Any) -> None:
    with pytest.raises(
        ValueError, match="expected a list of names, or a dict that numbers them from 0 or 1"
    ):
        given_names(names)


def test_the_bundled_heads_show_that_their_last_logit_is_spare() -> None:
    """A long training: the bias of that logit is the lowest by far in each head."""
    for name in ("rf-detr-mini", "rf-detr-seg-mini"):
        path = Path(__file__).parents[2] / "src" / "rfdetr" / "weights" / f"{name}.safetensors"
        for tensor, bias in read_checkpoint(path).model.items():
            if "class_embed" in tensor and tensor.endswith("bias"):
                assert bias.argmin() == len(bias) - 1 and bias.sort().values.diff()[0] > 0.1


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("cat", ["Cat", "cats", "cat"], "cat"),
        ("Cat", ["cats", "cat", "CAT"], "cat"),
        ("Cats", ["dog", "cat"], "cat"),
        ("cat", ["dog", "Cats"], "Cats"),
        ("Buses", ["car", "bus"], "bus"),
        ("berry", ["Berries"], "Berries"),
        ("box", ["Boxes"], "Boxes"),
        ("bus", ["bu", "buss", "buse"], "buss"),
        ("car", ["care", "cart"], None),
        ("glass", ["glasses", "class"], "glasses"),
        ("as", ["A", "a"], None),
        ("cat", [], None),
        ("", ["s", "cat"], None),
    ],
)
def test_names_agree_exactly_else_but_for_case_else_but_for_a_plural(
    name: str, known: list[str], found: str | None
) -> None:
    logits = logits_by_name(["-", name], dict(enumerate(known, 3)))
    assert logits == ({} if found is None else {1: 3 + known.index(found)})
