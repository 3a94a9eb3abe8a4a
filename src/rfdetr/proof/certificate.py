"""Certificates: that an exported model finds what its original finds in labelled images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rfdetr.errors import InputError
from rfdetr.inference.predictor import Predictor
from rfdetr.proof.agreement import Agreement, Labelled, agreement, judge
from rfdetr.proof.measuring import (
    TURNS,
    Latency,
    Loading,
    latencies,
    machine,
    peak_memory,
    versions,
)

if TYPE_CHECKING:
    from rfdetr.evaluation.metrics import Metrics

SCHEMA = 1
MAX_LOSS = 0.5
"""Points of mAP 50:95 that an export may lose."""
LEAST = 0.05
"""mAP 50:95 of a reference below which nothing is proven: such a model is random or untrained."""
_FIGURES = {"mAP_50_95": "mAP 50:95", "mAP_50": "mAP 50"}
_ONE, _OTHER = "reference", "exported"


class Change(NamedTuple):
    """Figures from 0 to 1 of the reference and of the exported model, by name."""

    before: dict[str, float]
    after: dict[str, float]

    @property
    def loss(self) -> float:
        """Points (hundredths) of mAP 50:95 that are lost; negative where some are won."""
        return 100 * (self.before["mAP_50_95"] - self.after["mAP_50_95"])


@dataclass(frozen=True)
class Certificate:
    """What was compared, on what, and what came out."""

    accuracy: dict[str, Change]
    """Of "boxes" and, for a segmentation model, "masks"."""
    agreement: Agreement
    latency_ms: dict[str, Latency]
    """Of a whole `predict` of one image's file, "reference" and "exported"."""
    memory_mib: dict[str, float | str]
    """Peak of a process that predicts one image; text says why it is not known."""
    models: dict[str, dict[str, Any]]
    data: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    max_loss: float = MAX_LOSS

    @property
    def loss(self) -> float:
        """The most points of mAP 50:95 lost, of boxes or of masks."""
        return max(change.loss for change in self.accuracy.values())

    @property
    def passed(self) -> bool:
        """Whether no more than `max_loss` points are lost."""
        return self.loss <= self.max_loss

    def short(self) -> dict[str, Any]:
        """What an artifact says of it inside."""
        kinds = self.accuracy.items()
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "loss": round(self.loss, 3),
            "max_loss": self.max_loss,
            **{kind: [_rounded(change.before), _rounded(change.after)] for kind, change in kinds},
            "matched": [self.agreement.reference_matched, self.agreement.exported_matched],
            **{name: self.data[name] for name in ("split", "images", "fingerprint")},
        }

    def to_json(self) -> str:
        """One object, indented; figures from 0 to 1, as in results.json."""
        accuracy = {
            kind: {"before": _rounded(change.before), "after": _rounded(change.after)}
            | {"loss": round(change.loss, 3)}
            for kind, change in self.accuracy.items()
        }
        content = {
            "schema": SCHEMA,
            "passed": self.passed,
            "max_loss": self.max_loss,
            "models": self.models,
            "data": self.data,
            "accuracy": accuracy,
            "agreement": self.agreement._asdict(),
            "latency_ms": {name: value._asdict() for name, value in self.latency_ms.items()},
            "memory_mib": self.memory_mib,
            "machine": self.machine,
            "versions": self.versions,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each line to show."""
        both = self.agreement
        lines = [
            (
                f"{label} of {kind}",
                f"{100 * change.before[name]:.2f} -> {100 * change.after[name]:.2f} points",
            )
            for kind, change in self.accuracy.items()
            for name, label in _FIGURES.items()
        ]
        shares = ("none" if x is None else f"{x:.1%}" for x in both[2:4])
        counts = f"{both.reference_detections} and {both.exported_detections} detections"
        lines.append(
            ("same", f"{' and '.join(shares)} of {counts}; {both.unpaired} without a like")
        )
        largest = f"{both.largest_box_difference:.3g} pixels"
        lines.append(
            ("differ by", f"{largest}, {both.largest_confidence_difference:.3g} confidence")
        )
        one, other = (self.latency_ms[name] for name in (_ONE, _OTHER))
        slow = f"p95 {one.p95:.1f} -> {other.p95:.1f}"
        lines.append(("predict", f"{one.median:.1f} -> {other.median:.1f} ms, {slow}"))
        sizes = [f"{x:.0f} MiB" if isinstance(x, float) else x for x in self.memory_mib.values()]
        lines.append(("peak memory", " -> ".join(dict.fromkeys(sizes))))
        seen = f"{self.data['images']} of {self.data['of']} images of {self.data['split']}"
        lines.append(("measured on", f"{seen}, {self.data['dataset']}"))
        loss = round(self.loss, 2) + 0.0  # which -0.0 becomes 0.0 by
        verdict = "passed" if self.passed else "not passed"
        allowed = f"{loss:.2f} points of mAP 50:95 lost, {self.max_loss:g} allowed"
        return [*lines, ("verdict", f"{verdict}: {allowed}")]


class Side(NamedTuple):
    """One of the two models that are compared."""

    model: Predictor
    facts: Mapping[str, Any]
    """What the certificate says of it: engine, dtype, ..."""
    loading: Loading | None = None
    """How a process of its own opens it, to measure its memory."""


def certify(
    reference: Side,
    exported: Side,
    labelled: Labelled,
    *,
    max_loss: float = MAX_LOSS,
    turns: Iterable[int] = range(TURNS),
) -> Certificate:
    """Compares two models, which are meant to be the same one, on labelled images.

    Raises `InputError` where the reference finds next to nothing: near-equal confidences come in
    any order, so random or untrained weights show no loss, or any.
    """
    sides = {_ONE: reference, _OTHER: exported}
    models = {name: side.model for name, side in sides.items()}
    if reference.model.labels != exported.model.labels:
        raise InputError("the exported model has other classes than its reference")
    judged = judge(models, labelled)
    accuracy = _changes(*(one.metrics for one in judged.values()))
    for kind, change in accuracy.items():
        if not change.before["mAP_50_95"] >= LEAST:  # true for NaN
            raise InputError(
                f"nothing can be proven: the model has {100 * change.before['mAP_50_95']:.1f} "
                f"points of mAP 50:95 ({kind}) on {len(labelled.numbers)} images of "
                f"{labelled.folder}. Random or untrained weights, which have less than "
                f"{100 * LEAST:g}, show no loss: train the model, or give images of its classes"
            )
    paths = labelled.paths()
    calls = {
        name: lambda number, model=model: model.predict(paths[number % len(paths)])
        for name, model in models.items()
    }
    return Certificate(
        accuracy=accuracy,
        agreement=agreement(*(one.found for one in judged.values())),
        latency_ms=latencies(calls, turns),
        memory_mib={name: peak_memory(side.loading, paths[:1]) for name, side in sides.items()},
        models={name: dict(side.facts) for name, side in sides.items()},
        data=labelled.facts(),
        machine=machine(reference.model.device),
        versions=versions(),
        max_loss=max_loss,
    )


def _changes(before: Metrics, after: Metrics) -> dict[str, Change]:
    """The figures of boxes and, where there are any, of masks."""
    pairs = {"boxes": (before, after)}
    if before.masks is not None and after.masks is not None:
        pairs["masks"] = before.masks, after.masks
    return {
        kind: Change(*({name: one.overall[name] for name in _FIGURES} for one in pair))
        for kind, pair in pairs.items()
    }


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in figures.items()}
