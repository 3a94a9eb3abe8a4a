"""Figures as PNG files: metrics over epochs, precision-recall and F1 curves, confusion matrices.

None is made through pyplot: no window, no backend to choose, the same on a server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rfdetr.evaluation.f1 import CONFIDENCES
from rfdetr.evaluation.matching import Array
from rfdetr.evaluation.metrics import MASK_PREFIX, Metrics
from rfdetr.files import atomic_write

MOST_COLOURED = 20  # with more classes, curves are grey but for the best and the worst few
MOST_NUMBERED = 30  # with more classes, a confusion matrix has colours only, no numbers
BLUE, ORANGE, _GREEN, RED, _GREY = "#0b5fa5", "#d95f02", "#1b8a5a", "#b2182b", "#b8bcc2"
_DPI = 150
STYLE: dict[Any, Any] = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "axes.edgecolor": "#666666", "axes.titlesize": 11, "axes.titlelocation": "left",
    "axes.labelsize": 9.5, "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "font.size": 9,
    "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}  # fmt: skip
# The panels of the history by title; a line is the logged key, its label, colour and style.
_PANELS: dict[str, list[tuple[str, str, str, str]]] = {
    "Loss": [("train/loss", "train", BLUE, "-"), ("val/loss", "valid", ORANGE, "-")],
    "mAP on valid": [
        ("val/mAP_50_95", "50:95", BLUE, "-"),
        ("val/ema_mAP_50_95", "50:95, EMA weights", ORANGE, "-"),
        ("val/segm_mAP_50_95", "50:95, masks", _GREEN, "-"),
        ("val/ema_segm_mAP_50_95", "50:95, masks, EMA weights", RED, "-"),
        ("val/mAP_50", "50", BLUE, ":"),
        ("val/ema_mAP_50", "50, EMA weights", ORANGE, ":"),
    ],
    "On valid at its best threshold, IoU 0.5": [
        ("val/F1", "F1", BLUE, "-"),
        ("val/precision", "precision", ORANGE, "-"),
        ("val/recall", "recall", _GREEN, "-"),
    ],
    "Learning rate": [("train/lr", "largest of all groups", BLUE, "-")],
}


class Threshold(NamedTuple):
    """A confidence, and the split whose mean F1 is highest there."""

    value: float  # in [0, 1]; nan where no detection is right
    split: str


def plot_history(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write `history_figure` as a PNG file."""
    with mpl.rc_context(STYLE):
        _save(history_figure(history), path)


def plot_metrics(
    metrics: Metrics, folder: Path, split: str, chosen: Metrics | None = None, prefix: str = ""
) -> None:
    """Write pr_curve.png, f1_curve.png, confusion_matrix.png and confusion_matrix_normalized.png.

    Titles name `split`, whose figures `metrics` are. `chosen` are the figures of the valid split,
    whose best threshold a plot of another split shows: one chosen on the images that it judges
    would flatter them. Names of files start with `prefix`, those of masks' plots with `segm_`.
    """
    source, origin = (metrics, split) if chosen is None else (chosen, "valid")
    threshold = Threshold(source.overall["best_threshold"], origin)
    with mpl.rc_context(STYLE):
        figures = {
            "pr_curve": pr_figure(metrics, split),
            "f1_curve": f1_figure(metrics, split, threshold),
            "confusion_matrix": confusion_figure(metrics, split, threshold, False),
            "confusion_matrix_normalized": confusion_figure(metrics, split, threshold, True),
        }
        for name, figure in figures.items():
            _save(figure, folder / f"{prefix}{name}.png")
    if metrics.masks is not None:
        plot_metrics(metrics.masks, folder, split, chosen and chosen.masks, MASK_PREFIX)


def history_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Losses, mAP, F1 and learning rate over epochs, from a dict of logged keys per epoch.

    `epoch` counts from 0. A key that is missing, None or nan in some epochs (evaluation every few
    epochs) is joined across them. The panels share the axis of epochs; where a line has one point,
    its legend gives the value.
    """
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    epochs = [row["epoch"] + 1 for row in history] or [1]
    panels = figure.subplots(2, 2, sharex=True).flat
    for axes, (title, lines) in zip(panels, _PANELS.items(), strict=True):
        for key, label, colour, style in lines:
            points = [(row["epoch"] + 1, row[key]) for row in history if row.get(key) is not None]
            points = [(epoch, value) for epoch, value in points if np.isfinite(value)]
            if points:
                one = len(points) == 1
                label = f"{label} {points[0][1]:.4g}" if one else label
                size = 7 if one else 3 if len(points) <= 30 else 0
                axes.plot(*np.transpose(points), f"o{style}", c=colour, ms=size, label=label)
        axes.set(title=title, xlabel="epoch", xlim=(min(epochs) - 0.5, max(epochs) + 0.5))
        axes.tick_params(labelbottom=True)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if not axes.lines:
            axes.text(0.5, 0.5, "not logged", color="#888", transform=axes.transAxes, ha="center")
            continue
        if title != "Loss":
            axes.set_ylim(0, max(1.05 * axes.get_ylim()[1], 1e-9))
        below: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.17)}
        columns = 2 if len(axes.lines) == 4 else 3
        axes.legend(**below, ncols=columns, borderpad=0, columnspacing=1.2)
    return figure


def pr_figure(metrics: Metrics, split: str) -> Figure:
    """Interpolated precision over recall on `split`, per class and in the mean."""
    figure, axes = _curve_axes(f"Precision over recall on {split}, IoU 0.5", "recall", "precision")
    recall = np.linspace(0, 1, metrics.pr_precision.shape[1])
    _draw_mean(axes, recall, metrics.pr_precision, metrics.overall["mAP_50"])
    ranks = np.array([row["AP50"] for row in metrics.per_class])
    legend = "average precision at IoU 0.5"
    _draw_classes(axes, recall, metrics.pr_precision, ranks, metrics, legend)
    return figure


def f1_figure(metrics: Metrics, split: str, threshold: Threshold) -> Figure:
    """F1 on `split` over the confidence, per class and in the mean, which `threshold` marks."""
    title = f"F1 over confidence on {split}, IoU 0.5"
    figure, axes = _curve_axes(title, "confidence threshold", "F1")
    curves = metrics.sweep.curves.f1
    mean = _draw_mean(axes, CONFIDENCES, curves, metrics.overall["F1"])
    at, origin = threshold
    if np.isfinite(at):
        exact = metrics.overall["F1"]  # the curve has a point per thousandth only
        reached = exact if origin == split else float(np.interp(at, CONFIDENCES, mean))
        label = f"threshold {at:.3f}, best on {origin}: {reached:.3f}"
        axes.plot([at] * 2, [0, reached], "k--o", markevery=[1], lw=0.9, label=label, zorder=11)
    legend = "highest F1, each at its own threshold"
    _draw_classes(axes, CONFIDENCES, curves, metrics.sweep.class_f1, metrics, legend)
    return figure


def confusion_figure(metrics: Metrics, split: str, at: Threshold, normalized: bool) -> Figure:
    """Detections on `split` from the threshold `at`. Rows are true classes; normalised, a row sums
    to 1 and shows what became of the class's objects, or which classes the false detections name.
    """
    counts = metrics.confusion(at.value)
    values = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) if normalized else counts
    names = [short(row["name"]) for row in metrics.per_class] + ["background"]
    size = float(np.clip(0.42 * len(names), 3.4, 13))
    figure = Figure(figsize=(size + 2.6, size + 1.6), layout="constrained")
    axes = figure.subplots()
    # Counts of rare and common classes differ by orders of magnitude: the square root shows both.
    norm = Normalize(0, 1) if normalized else PowerNorm(0.5, 0, max(float(counts.max()), 1.0))
    image = axes.imshow(values, cmap="Blues", norm=norm)
    ticks = range(len(names))
    axes.set(xticks=ticks, yticks=ticks, xlabel="predicted class", ylabel="true class")
    font = float(np.clip(260 / len(names), 5, 9))
    axes.set_xticklabels(names, rotation=90 if len(names) > 6 else 0, fontsize=font)
    axes.set_yticklabels(names, fontsize=font)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for border in (axes.axhline, axes.axvline):  # sets background apart
        border(len(names) - 1.5, color="#666666", linewidth=0.8)
    for (row, column), value in np.ndenumerate(values):
        if value and len(names) <= MOST_NUMBERED:
            text = f"{value:.2f}" if normalized else f"{value}"
            colour = "white" if norm(value) > 0.55 else "#222222"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)
    kind = "share of the true class" if normalized else "counts"
    where = f"confidence ≥ {at.value:.3f} (best F1 on {at.split})"
    title = f"Confusion on {split}, {kind}\n{where}\nIoU ≥ 0.5, whatever the class"
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03).outline.set_visible(False)
    return figure


def _curve_axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.6, 5.4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(0, 1.005), ylim=(0, 1.02))
    return figure, axes


def _draw_mean(axes: Axes, x: Array, curves: Array, value: float) -> Array:
    """The mean of the curves (K, C) over the classes with objects, which it returns; else nan."""
    defined = curves[~np.isnan(curves).all(axis=1)]
    mean: Array = defined.mean(axis=0) if len(defined) else np.full(len(x), np.nan)
    axes.plot(x, mean, label=_label("all classes", value), color="black", linewidth=2.4, zorder=10)
    return mean


def _draw_classes(
    axes: Axes, x: Array, curves: Array, ranks: Array, metrics: Metrics, legend: str
) -> None:
    """One line per class with objects, in order of rank, and the legend beside them.

    Of many classes only the five best and the five worst have colours and names.
    """
    order = [label for label in np.argsort(-ranks, kind="stable") if np.isfinite(ranks[label])]
    if len(order) == 1:
        order = []  # the line of all classes is this one
    named = order if len(order) <= MOST_COLOURED else order[:5] + order[-5:]
    grey: dict[str, Any] = {"color": _GREY, "linewidth": 0.6}
    for label in order:
        if label not in named:
            axes.plot(x, curves[label], alpha=0.7, **grey)
    colours = mpl.colormaps["tab10" if len(named) <= 10 else "tab20"]
    for number, label in enumerate(named):
        name = _label(metrics.per_class[label]["name"], ranks[label])
        axes.plot(x, curves[label], color=colours(number), linewidth=1.2, label=name)
    if len(order) > len(named):
        axes.plot([], [], label=f"the {len(order) - len(named)} classes between them", **grey)
    axes.legend(title=legend, loc="upper left", bbox_to_anchor=(1.01, 1.0), alignment="left")


def _label(name: str, value: float) -> str:
    return short(name) if np.isnan(value) else f"{short(name)}  {value:.3f}"


def short(name: str) -> str:
    """Names as they are, `$` included: never read as mathematics."""
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    atomic_write(path, lambda stream: figure.savefig(stream, format="png", dpi=_DPI))
