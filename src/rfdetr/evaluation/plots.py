"""Figures as PNG files: metrics over epochs, precision-recall and F1 curves, confusion matrices.

Figures are made as objects, never through pyplot: no window, no backend to choose, the same on a
server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rfdetr.evaluation.f1 import CONFIDENCES
from rfdetr.evaluation.matching import Array
from rfdetr.evaluation.metrics import MASKS, Metrics
from rfdetr.files import atomic_write

MOST_COLOURED = 20
"""With more classes than this, curves are grey but for the best and the worst few."""
MOST_NUMBERED = 30
"""With more classes than this, a confusion matrix has colours only, no numbers."""

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0b5fa5", "#d95f02", "#1b8a5a", "#b2182b", "#b8bcc2"
_WHOLE: dict[str, Any] = {"color": "black", "linewidth": 2.4, "zorder": 10}
_DPI = 150
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "font.size": 9,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}

# Panel: title, and per line the logged key, its label, colour and style.
_Line = tuple[str, str, str, str]
_PANELS: list[tuple[str, list[_Line]]] = [
    ("Loss", [("train/loss", "train", _BLUE, "-"), ("val/loss", "valid", _ORANGE, "-")]),
    (
        "mAP on valid",
        [
            ("val/mAP_50_95", "50:95", _BLUE, "-"),
            ("val/ema_mAP_50_95", "50:95, EMA weights", _ORANGE, "-"),
            ("val/segm_mAP_50_95", "50:95, masks", _GREEN, "-"),
            ("val/ema_segm_mAP_50_95", "50:95, masks, EMA weights", _RED, "-"),
            ("val/mAP_50", "50", _BLUE, ":"),
            ("val/ema_mAP_50", "50, EMA weights", _ORANGE, ":"),
        ],
    ),
    (
        "On valid at its best threshold, IoU 0.5",
        [
            ("val/F1", "F1", _BLUE, "-"),
            ("val/precision", "precision", _ORANGE, "-"),
            ("val/recall", "recall", _GREEN, "-"),
        ],
    ),
    ("Learning rate", [("train/lr", "largest of all groups", _BLUE, "-")]),
]


class Threshold(NamedTuple):
    """A confidence, in [0, 1] or nan where no detection is right, and the split whose F1 it makes
    highest.
    """

    value: float
    split: str


def plot_history(history: Sequence[Mapping[str, Any]], path: str | PathLike[str]) -> None:
    """Write `history_figure` as a PNG file."""
    with mpl.rc_context(_STYLE):
        _save(history_figure(history), path)


def plot_metrics(
    metrics: Metrics, directory: str | PathLike[str], split: str, chosen: Metrics | None = None
) -> None:
    """Write pr_curve.png, f1_curve.png, confusion_matrix.png and confusion_matrix_normalized.png.

    Titles name `split`, whose figures `metrics` are. `chosen` are the figures of the valid split,
    whose best threshold a plot of another split shows: one chosen on the images that it judges
    would flatter them. Plots of masks, if there are any, are called the same after `segm_`.
    """
    with mpl.rc_context(_STYLE):
        for start, shown, source in (
            ("", metrics, chosen),
            (MASKS, metrics.masks, chosen and chosen.masks),
        ):
            if shown is None:
                continue
            best = (source or shown).overall["best_threshold"]
            threshold = Threshold(best, split if source is None else "valid")
            for name, figure in (
                ("pr_curve", pr_figure(shown, split)),
                ("f1_curve", f1_figure(shown, split, threshold)),
                ("confusion_matrix", confusion_figure(shown, split, threshold, normalized=False)),
                (
                    "confusion_matrix_normalized",
                    confusion_figure(shown, split, threshold, normalized=True),
                ),
            ):
                _save(figure, Path(directory, f"{start}{name}.png"))


def history_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Losses, mAP, F1 and learning rate over epochs, from one dict of logged keys per epoch
    (`epoch` counts from 0).

    A key that is missing, None or nan in some epochs (evaluation every few epochs) is joined across
    them. The panels share the axis of epochs; where a line has one point, its legend gives the
    value.
    """
    figure = _new_figure(11, 7.6)
    epochs = [row["epoch"] + 1 for row in history] or [1]
    for axes, (title, lines) in zip(figure.subplots(2, 2, sharex=True).flat, _PANELS, strict=True):
        for key, label, colour, style in lines:
            _draw_history(axes, history, key, {"label": label, "color": colour, "linestyle": style})
        axes.set(title=title, xlabel="epoch", xlim=(min(epochs) - 0.5, max(epochs) + 0.5))
        axes.tick_params(labelbottom=True)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        if title != "Loss" and axes.lines:
            axes.set_ylim(0, max(1.05 * axes.get_ylim()[1], 1e-9))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if axes.lines:
            columns = 2 if len(axes.lines) == 4 else 3
            place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.17)}
            axes.legend(**place, ncols=columns, borderpad=0, columnspacing=1.2)
        else:
            axes.text(
                0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color="#888888"
            )
    return figure


def _draw_history(
    axes: Axes, history: Sequence[Mapping[str, Any]], key: str, style: dict[str, Any]
) -> None:
    points = [(row["epoch"] + 1, row[key]) for row in history if row.get(key) is not None]
    points = [(epoch, value) for epoch, value in points if np.isfinite(value)]
    if points:
        if len(points) == 1:
            style["label"] += f" {points[0][1]:.4g}"
        size = 7 if len(points) == 1 else 3 if len(points) <= 30 else 0
        axes.plot(*zip(*points, strict=True), marker="o", markersize=size, **style)


def pr_figure(metrics: Metrics, split: str) -> Figure:
    """Interpolated precision over recall on `split`, per class and in the mean."""
    ranks = np.array([row["AP50"] for row in metrics.per_class])
    figure, axes = _curve_axes(f"Precision over recall on {split}, IoU 0.5", "recall", "precision")
    recall = np.linspace(0, 1, metrics.pr_precision.shape[1])
    axes.plot(
        recall,
        _mean(metrics.pr_precision),
        label=_label("all classes", metrics.overall["mAP_50"]),
        **_WHOLE,
    )
    _draw_classes(axes, recall, metrics.pr_precision, ranks, metrics)
    _legend_beside(axes, "average precision at IoU 0.5")
    return figure


def f1_figure(metrics: Metrics, split: str, threshold: Threshold) -> Figure:
    """F1 on `split` over the confidence threshold, per class and in the mean, with `threshold` and
    the F1 there.
    """
    sweep = metrics.sweep
    figure, axes = _curve_axes(
        f"F1 over confidence on {split}, IoU 0.5", "confidence threshold", "F1"
    )
    mean = _mean(sweep.curves.f1)
    axes.plot(CONFIDENCES, mean, label=_label("all classes", metrics.overall["F1"]), **_WHOLE)
    if np.isfinite(threshold.value):
        own = threshold.split == split
        reached = (
            metrics.overall["F1"] if own else float(np.interp(threshold.value, CONFIDENCES, mean))
        )
        marked: dict[str, Any] = {
            "color": "black",
            "linewidth": 0.9,
            "linestyle": "--",
            "marker": "o",
            "zorder": 11,
        }
        label = f"threshold {threshold.value:.3f}, best on {threshold.split}: {reached:.3f}"
        axes.plot([threshold.value] * 2, [0, reached], markevery=[1], label=label, **marked)
    _draw_classes(axes, CONFIDENCES, sweep.curves.f1, sweep.class_f1, metrics)
    _legend_beside(axes, "highest F1, each at its own threshold")
    return figure


def _draw_classes(axes: Axes, x: Array, curves: Array, ranks: Array, metrics: Metrics) -> None:
    """One line per class with objects, in order of rank; of many classes only the five best and
    worst have colours.
    """
    order = [label for label in np.argsort(-ranks, kind="stable") if np.isfinite(ranks[label])]
    if len(order) == 1:
        return  # the line of all classes is this one
    named = order if len(order) <= MOST_COLOURED else order[:5] + order[-5:]
    colours = dict(zip(named, _distinct_colours(len(named)), strict=True))
    for label in order:
        if label not in colours:
            axes.plot(x, curves[label], color=_GREY, linewidth=0.6, alpha=0.7)
    for label, colour in colours.items():
        name = _label(metrics.per_class[label]["name"], ranks[label])
        axes.plot(x, curves[label], color=colour, linewidth=1.2, label=name)
    if len(order) > len(named):
        axes.plot(
            [],
            [],
            color=_GREY,
            linewidth=0.6,
            label=f"the {len(order) - len(named)} classes between them",
        )


def confusion_figure(
    metrics: Metrics, split: str, threshold: Threshold, normalized: bool
) -> Figure:
    """Detections of at least `threshold` on `split`.

    Rows are true classes; normalised, a row sums to 1 and shows what became of the class's objects
    (of the background's: which classes the false detections name).
    """
    counts = metrics.confusion(threshold.value)
    names = [_short(row["name"]) for row in metrics.per_class] + ["background"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(0.42 * len(names), 3.4, 13))
    figure = _new_figure(size + 2.6, size + 1.6)
    axes = figure.subplots()
    # Counts of rare and common classes differ by orders of magnitude: the square root keeps both
    # visible.
    norm = Normalize(0, 1) if normalized else PowerNorm(0.5, 0, max(float(counts.max()), 1.0))
    image = axes.imshow(shares if normalized else counts, cmap="Blues", norm=norm)
    axes.set(
        xticks=range(len(names)),
        yticks=range(len(names)),
        xlabel="predicted class",
        ylabel="true class",
    )
    font = float(np.clip(260 / len(names), 5, 9))
    axes.set_xticklabels(names, rotation=90 if len(names) > 6 else 0, fontsize=font)
    axes.set_yticklabels(names, fontsize=font)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for border in (axes.axhline, axes.axvline):  # sets background apart
        border(len(names) - 1.5, color="#666666", linewidth=0.8)
    if len(names) <= MOST_NUMBERED:
        _write_numbers(axes, counts, shares if normalized else None, norm)
    kind = "share of the true class" if normalized else "counts"
    where = f"confidence ≥ {threshold.value:.3f} (best F1 on {threshold.split})"
    axes.set_title(
        f"Confusion on {split}, {kind}\n{where}\nIoU ≥ 0.5, whatever the class", fontsize=10
    )
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03).outline.set_visible(False)
    return figure


def _write_numbers(axes: Axes, counts: Array, shares: Array | None, norm: Normalize) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            value = count if shares is None else shares[row, column]
            text = f"{count}" if shares is None else f"{value:.2f}"
            colour = "white" if norm(value) > 0.55 else "#222222"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curve_axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = _new_figure(8.6, 5.4)
    axes = figure.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(0, 1.005), ylim=(0, 1.02))
    return figure, axes


def _legend_beside(axes: Axes, title: str) -> None:
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.01, 1.0), alignment="left")


def _distinct_colours(count: int) -> list[Any]:
    cycle = mpl.colormaps["tab10" if count <= 10 else "tab20"]
    return [cycle(k) for k in range(count)]


def _label(name: str, value: float) -> str:
    return _short(name) if np.isnan(value) else f"{_short(name)}  {value:.3f}"


def _short(name: str) -> str:
    """Names as they are, `$` included: never read as mathematics."""
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")


def _mean(curves: Array) -> Any:
    """Over the classes with objects; nan if there is none."""
    defined = curves[~np.isnan(curves).reshape(len(curves), -1).all(axis=1)]
    return defined.mean(axis=0) if len(defined) else np.full(curves.shape[1:], np.nan)


def _save(figure: Figure, path: str | PathLike[str]) -> None:
    atomic_write(path, lambda stream: figure.savefig(stream, format="png", dpi=_DPI))
