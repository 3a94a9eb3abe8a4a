"""What one model costs in each engine and precision, for batches of each size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rfdetr.console import with_progress
from rfdetr.data.images import decode_image
from rfdetr.inference.predictor import Predictor
from rfdetr.proof.agreement import Labelled, judge
from rfdetr.proof.measuring import TURNS, Loading, file_size, latencies, peak_memory

if TYPE_CHECKING:
    from rfdetr.evaluation.metrics import Metrics


class Candidate(NamedTuple):
    """A model to measure, or the reason why it cannot be."""

    facts: dict[str, Any]
    """engine, dtype, queries, layers: what its rows begin with."""
    predictor: Predictor | None = None
    loading: Loading | None = None
    """How a process of its own opens it, and which file that is."""
    reason: str | None = None


def measure(
    candidates: Sequence[Candidate],
    batches: Sequence[int],
    images: Sequence[Path],
    labelled: Labelled | None = None,
    turns: int = TURNS,
) -> list[dict[str, Any]]:
    """A row for each candidate and batch, as plain values for JSON; one with a "reason" for each
    candidate that cannot be measured.

    Milliseconds of a batch: of the whole `predict` of its files, and of the engine alone. The rows
    take turns (see `latencies`). `images` are repeated to fill a batch; with `labelled` ones, each
    candidate's mAP is beside its cost.
    """
    models = {n: one.predictor for n, one in enumerate(candidates) if one.predictor is not None}
    judged = {} if labelled is None else {n: judge(one, labelled) for n, one in models.items()}
    keys = [(n, batch) for n in models for batch in batches]
    memory = {}
    for n, batch in with_progress(keys, "Memory", len(keys)):
        memory[n, batch] = peak_memory(candidates[n].loading, _batch(images, 0, batch))
    calls: dict[tuple[int, int, str], Callable[[int], object]] = {}
    for n, batch in keys:
        calls[n, batch, "predict_ms"] = partial(_predict, models[n], images, batch)
        pixels = models[n].preprocess([decode_image(path) for path in _batch(images, 0, batch)])
        calls[n, batch, "engine_ms"] = partial(_run_engine, models[n], pixels)
    times = latencies(calls, with_progress(range(turns), "Timing", turns))
    rows = []
    for n, candidate in enumerate(candidates):
        for batch in batches if n in models else ():
            both = {name: times[n, batch, name] for name in ("predict_ms", "engine_ms")}
            row = {**candidate.facts, "batch": batch}
            row |= {name: one._asdict() for name, one in both.items()}
            row["images_per_second"] = round(1e3 * batch / both["predict_ms"].median, 2)
            row["memory_mib"] = memory[n, batch]
            if candidate.loading is not None:
                row["file_bytes"] = file_size(candidate.loading.file)
            if n in judged:
                row |= accuracy_of(judged[n].metrics)
            rows.append(row)
        if n not in models:
            rows.append({**candidate.facts, "reason": candidate.reason})
    return rows


def accuracy_of(metrics: Metrics) -> dict[str, float | None]:
    """mAP of boxes and, under names that begin with "segm_", of masks."""
    names = ("mAP_50_95", "mAP_50")
    parts = {"": metrics} | ({"segm_": metrics.masks} if metrics.masks is not None else {})
    return {
        prefix + name: round(one.overall[name], 5)
        for prefix, one in parts.items()
        for name in names
    }


def _batch(images: Sequence[Path], number: int, size: int) -> list[Path]:
    """The images from a number on, from the first again after the last."""
    return list(islice(cycle(images), number % len(images), number % len(images) + size))


def _predict(model: Predictor, images: Sequence[Path], size: int, number: int) -> None:
    model.predict(_batch(images, number, size), 0.5, size)


def _run_engine(model: Predictor, pixels: Tensor, _: int) -> None:
    with torch.inference_mode():
        model.engine()(pixels)[0].cpu()  # waits for a GPU
