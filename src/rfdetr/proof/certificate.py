"""Certificates: that an exported model finds what its original finds in labelled images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rfdetr.errors import InputError
from rfdetr.inference.predictor import Predictor
from rfdetr.proof.agreement import Agreement, Judged, Labelled, agreement, judge
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
            "loss": round(self.loss, 3) + 0.0,  # which -0.0 becomes 0.0 by
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


class Reference(NamedTuple):
    """A model that exports are compared with, and what it finds in labelled images."""

    model: Predictor
    labelled: Labelled
    judged: Judged

    @classmethod
    def of(cls, model: Predictor, labelled: Labelled) -> Reference:
        """Judges `model`. Raises `InputError` where it finds next to nothing: near-equal
        confidences come in any order, so random or untrained weights show no loss, or any.
        """
        judged = judge(model, labelled)
        for kind, figures in _figures(judged.metrics).items():
            if not figures["mAP_50_95"] >= LEAST:  # true for NaN
                raise InputError(
                    f"nothing can be proven: the model has {100 * figures['mAP_50_95']:.1f} "
                    f"points of mAP 50:95 ({kind}) on {len(labelled.numbers)} images of "
                    f"{labelled.folder}. Random or untrained weights, which have less than "
                    f"{100 * LEAST:g}, show no loss: train the model, or give images of its classes"
                )
        return cls(model, labelled, judged)


def certify(
    reference: Reference,
    exported: Predictor,
    facts: Mapping[str, Any],
    loading: tuple[Loading | None, Loading | None] = (None, None),
    *,
    max_loss: float = MAX_LOSS,
    turns: Iterable[int] = range(TURNS),
) -> Certificate:
    """Compares a model with the one that it is meant to be, in the reference's images.

    `facts` (engine, dtype, ...) are what the certificate says of it, `loading` how a process of its
    own opens reference and exported model, to measure their memory.
    """
    models = {_ONE: reference.model, _OTHER: exported}
    if reference.model.labels != exported.labels or reference.model.size != exported.size:
        raise InputError("the exported model has other classes, or another size, than its original")
    judged = judge(exported, reference.labelled)
    before, after = (_figures(one.metrics) for one in (reference.judged, judged))
    paths = reference.labelled.paths()
    calls = {
        name: lambda number, model=model: model.predict(paths[number % len(paths)])
        for name, model in models.items()
    }
    return Certificate(
        accuracy={kind: Change(before[kind], after[kind]) for kind in before},
        agreement=agreement(reference.judged.found, judged.found),
        latency_ms=latencies(calls, turns),
        memory_mib={
            name: peak_memory(how, paths[:1]) for name, how in zip(models, loading, strict=True)
        },
        models={_ONE: {"engine": "torch", "dtype": "float32"}, _OTHER: dict(facts)},
        data=reference.labelled.facts(),
        machine=machine(reference.model.device),
        versions=versions(),
        max_loss=max_loss,
    )


def _figures(metrics: Metrics) -> dict[str, dict[str, float]]:
    """Those of boxes and, where there are any, of masks."""
    kinds = {"boxes": metrics} | ({} if metrics.masks is None else {"masks": metrics.masks})
    return {kind: {name: one.overall[name] for name in _FIGURES} for kind, one in kinds.items()}


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in figures.items()}
