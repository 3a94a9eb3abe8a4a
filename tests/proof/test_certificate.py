"""Certificates, of real models on real (drawn) images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rfdetr import RFDETRMini, RFDETRSegMini
from rfdetr.errors import InputError
from rfdetr.proof.agreement import Agreement, Found, Labelled, agreement
from rfdetr.proof.certificate import LEAST, Certificate, Reference, certify

FACTS = {"engine": "torch", "dtype": "float32"}


def compared(one: RFDETRMini, other: RFDETRMini, folder: Path, **settings: float) -> Certificate:
    labelled = Labelled.open(folder, masks=one.model_config.segmentation_head)
    reference = Reference.of(one.model, labelled)
    return certify(reference, other.model, FACTS, turns=range(1), **settings)  # type: ignore[arg-type]


def found(*rows: tuple[float, int, tuple[float, ...]]) -> Found:
    """The detections of an image from (score, label, box)."""
    scores, labels, boxes = zip(*rows, strict=True) if rows else ((), (), ())
    tensors = torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)
    boxes_xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"scores": tensors[0], "labels": tensors[1], "boxes": boxes_xyxy}


BOX = (10.0, 10.0, 50.0, 50.0)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param([(0.9, 1, BOX)], [(0.9, 1, BOX)], (1, 1, 1, 1, 0, 0, 0), id="the same"),
        pytest.param(
            [(0.9, 1, BOX)],
            [(0.895, 1, (10.0, 10.5, 50.0, 50.0))],
            (1, 1, 1, 1, 0, 0.5, 0.005),
            id="within both",
        ),
        pytest.param(
            [(0.9, 1, BOX)],
            [(0.9, 1, (10.0, 12.0, 50.0, 50.0))],
            (1, 1, 0, 0, 0, 2, 0),
            id="another place",
        ),
        pytest.param(
            [(0.9, 1, BOX)], [(0.8, 1, BOX)], (1, 1, 0, 0, 0, 0, 0.1), id="another confidence"
        ),
        pytest.param([(0.9, 1, BOX)], [(0.9, 2, BOX)], (1, 1, 0, 0, 2, 0, 0), id="another class"),
        pytest.param([(0.9, 1, BOX)], [], (1, 0, 0, None, 1, 0, 0), id="missed"),
        pytest.param([(0.2, 1, BOX)], [], (0, 0, None, None, 0, 0, 0), id="below the threshold"),
        pytest.param(
            [(0.305, 1, BOX)], [(0.296, 1, BOX)], (1, 0, 1, None, 0, 0, 0.009), id="on the border"
        ),
        pytest.param(
            [(0.9, 1, BOX), (0.5, 1, BOX)],
            [(0.9, 1, BOX)],
            (2, 1, 0.5, 1, 1, 0, 0),
            id="each is the like of one",
        ),
    ],
)
def test_agreement_counts_what_both_have_within_the_tolerances(
    one: list[tuple[float, int, tuple[float, ...]]],
    other: list[tuple[float, int, tuple[float, ...]]],
    expected: tuple[float, ...],
) -> None:
    result = agreement([found(*one), found()], [found(*other), found()])
    assert result == pytest.approx(Agreement(*expected), abs=1e-6)  # type: ignore[arg-type]


def test_a_model_agrees_with_itself_and_the_certificate_says_how_that_was_seen(
    trained: RFDETRMini, drawn: Path
) -> None:
    certificate = compared(trained, trained, drawn)
    assert certificate.passed and certificate.loss == 0
    content = json.loads(certificate.to_json())
    assert content["accuracy"]["boxes"]["before"]["mAP_50_95"] > LEAST
    assert content["accuracy"]["boxes"] == {
        "before": content["accuracy"]["boxes"]["after"],
        "after": content["accuracy"]["boxes"]["before"],
        "loss": 0,
    }
    assert content["agreement"]["reference_matched"] == 1
    assert content["agreement"]["reference_detections"] > 5
    assert content["data"] | {"fingerprint": ""} == {
        **{"dataset": "set", "split": "valid", "images": 3, "of": 3, "fingerprint": ""},
    }
    assert all(content["latency_ms"][name]["median"] > 0 for name in ("reference", "exported"))
    assert content["memory_mib"] == dict.fromkeys(
        ("reference", "exported"), "not measured: the model is in no file"
    )
    assert content["versions"]["torch"] == torch.__version__
    assert content["machine"]["processor"] and content["machine"]["threads"] > 0
    assert set(content) == {
        *("schema", "passed", "max_loss", "models", "data", "accuracy", "agreement"),
        *("latency_ms", "memory_mib", "machine", "versions"),
    }
    assert certificate.rows()[-1] == (
        "verdict",
        "passed: 0.00 points of mAP 50:95 lost, 0.5 allowed",
    )


def test_damaged_weights_lose_and_do_not_pass_unless_so_much_is_allowed(
    trained: RFDETRMini, damaged: RFDETRMini, drawn: Path
) -> None:
    certificate = compared(trained, damaged, drawn)
    assert not certificate.passed and certificate.loss > 5
    assert not json.loads(certificate.to_json())["passed"] and not certificate.short()["passed"]
    assert certificate.agreement.largest_box_difference > 1
    assert certificate.rows()[-1][1].startswith("not passed")
    assert compared(trained, damaged, drawn, max_loss=99).passed


def test_random_weights_prove_nothing(trained: RFDETRMini, drawn: Path) -> None:
    torch.manual_seed(0)
    random = RFDETRMini(pretrain_weights=None, num_classes=110, class_names=trained.class_names)
    with pytest.raises(InputError, match=r"nothing can be proven.*Random or untrained weights"):
        compared(random, random, drawn)


def test_models_of_other_classes_or_sizes_are_not_compared(
    trained: RFDETRMini, drawn: Path
) -> None:
    with pytest.raises(InputError, match="other classes"):
        compared(trained, RFDETRMini(num_classes=3, class_names=["a", "b", "c"]), drawn)
    with pytest.raises(InputError, match="another size"):
        compared(trained, RFDETRMini(resolution=192), drawn)


def test_masks_are_compared_too(drawn: Path) -> None:
    model = RFDETRSegMini()
    certificate = compared(model, model, drawn)
    assert certificate.accuracy["masks"].before["mAP_50_95"] > LEAST
    assert "mAP 50:95 of masks" in dict(certificate.rows())


def test_images_are_spread_over_the_split(drawn: Path) -> None:
    assert Labelled.open(drawn, 2).numbers == (0, 2)
    assert Labelled.open(drawn, None).numbers == (0, 1, 2)
    with pytest.raises(InputError, match="images is 0"):
        Labelled.open(drawn, 0)
