"""One picture of a dataset's labels: how many of each class, how large, where, and how crowded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from rfdetr.config.fields import input_size, size_text
from rfdetr.data.index import DatasetIndex
from rfdetr.evaluation.matching import Array
from rfdetr.evaluation.plots import BLUE, ORANGE, RED, STYLE, short

MOST_CLASSES = 30  # with more, the commonest and the rarest are shown
MOST_BOXES = 200_000  # of larger sets, every so many boxes are drawn


def labels_picture(
    splits: Mapping[str, DatasetIndex],
    names: Sequence[str],
    *,
    resolution: int | Sequence[int],
    patch_size: int,
    num_queries: int,
) -> Image.Image:
    """Four panels on the labels of `splits`, train first: objects by class of each split; of train
    their sizes as a network of that `resolution` sees them, their places, and objects an image.

    Lines mark what the network cannot see well, less than a patch, and cannot find, more than its
    queries. Crowds, which are not learned, do not count.
    """
    train = next(iter(splits.values()))
    single = np.flatnonzero(~train.crowd)
    chosen = single[:: max(1, -(-len(single) // MOST_BOXES))]
    image = np.searchsorted(train.offsets, chosen, side="right") - 1
    size = input_size(resolution)
    shape = np.maximum(train.sizes[image][:, ::-1], 1)  # width, height
    low, high = (train.boxes[chosen, at : at + 2] / shape for at in (0, 2))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 8.6), dpi=120, layout="constrained")
        (classes, sizes), (places, crowding) = figure.subplots(2, 2)
        _draw_classes(classes, splits, names)
        _draw_sizes(sizes, (high - low) * size[::-1], size, patch_size)
        cells = int(np.clip(len(chosen) ** 0.5 / 2, 8, 40))
        _heat(places, (low + high) / 2, np.linspace(0, 1, cells + 1))
        places.set(title="Centres of the boxes in train, as shares of the image", aspect="equal")
        places.set(xlabel="from the left", ylabel="from the top")
        places.invert_yaxis()
        _draw_crowding(crowding, train, num_queries)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return Image.fromarray(pixels).convert("RGB")


def _draw_classes(axes: Axes, splits: Mapping[str, DatasetIndex], names: Sequence[str]) -> None:
    counts = {
        split: np.bincount(index.labels[~index.crowd], minlength=len(names))
        for split, index in splits.items()
    }
    order = np.argsort(-next(iter(counts.values())), kind="stable")
    left_out = len(order) - MOST_CLASSES
    if left_out > 0:
        order = np.concatenate((order[: MOST_CLASSES // 2], order[-MOST_CLASSES // 2 :]))
    rows, thick = np.arange(len(order)), 0.8 / len(counts)
    for number, (split, count) in enumerate(counts.items()):
        at, colour = rows + (number - (len(counts) - 1) / 2) * thick, (BLUE, ORANGE)[number % 2]
        label = f"{split}: {len(splits[split]):,} images, {count.sum():,} objects"
        bars = axes.barh(at, count[order], thick, color=colour, label=label)
        if len(order) <= 12:
            texts = [f"{value:,}" for value in count[order]]
            axes.bar_label(bars, texts, padding=2, fontsize=7.5)
    font = float(np.clip(200 / max(len(order), 1), 5, 9))
    axes.set_yticks(rows, [short(names[label]) for label in order], fontsize=font)
    axes.set(title="Objects by class", xlim=(0, 1.15 * max(1, *(c.max() for c in counts.values()))))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    more = f"{left_out} classes in the middle are left out" if left_out > 0 else ""
    axes.set_xlabel(more or "objects")
    axes.legend(loc="lower right", frameon=True, edgecolor="none")


def _draw_sizes(axes: Axes, sizes: Array, size: tuple[int, int], patch_size: int) -> None:
    """Widths and heights (m, 2) in pixels of the network's input, which has (height, width) `size`,
    on scales of equal ratios.
    """
    title = f"Box sizes in train, in pixels of the network's input ({size_text(size)})"
    most = max(size)
    least = min(max(float(sizes.min(initial=most)), 1.0), patch_size / 2)
    cells = int(np.clip(len(sizes) ** 0.5, 16, 48))
    edges = np.geomspace(least, most, cells + 1)
    _heat(axes, sizes.clip(least, most), edges)
    axes.set(xscale="log", yscale="log", xlabel="width", ylabel="height", title=title)
    ticks = [side for side in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if side >= least]
    ticks = [side for side in ticks if side <= most]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [str(side) for side in ticks])
        axis.set_ticks([], minor=True)
    small = float((sizes < patch_size).all(axis=1).mean()) if len(sizes) else 0.0
    axes.plot(*([least, patch_size, patch_size], [patch_size, patch_size, least]), color=RED, lw=1)
    note = f"{small:.1%} of the boxes are smaller\nthan a patch of {patch_size} pixels (red)"
    axes.text(0.98, 0.03, note, transform=axes.transAxes, ha="right", color=RED, fontsize=8.5)


def _draw_crowding(axes: Axes, index: DatasetIndex, num_queries: int) -> None:
    """How many images of a split have how many objects."""
    objects = np.diff(np.concatenate(([0], np.cumsum(~index.crowd)))[index.offsets])
    most = int(objects.max(initial=1))
    edges = np.arange(-0.5, most + 1.5) if most <= 60 else np.linspace(-0.5, most + 0.5, 41)
    axes.hist(objects, edges.tolist(), color=BLUE, rwidth=0.9)
    empty, middle = int((objects == 0).sum()), float(np.median(objects)) if len(objects) else 0
    title = f"Objects in an image of train: median {middle:g}, most {most:,}; {empty:,} empty"
    axes.set(title=title, xlabel="objects", ylabel="images")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if most > num_queries / 2:
        label = f"the model finds {num_queries} at most"
        axes.axvline(num_queries, color=RED, lw=1, label=label)
        axes.legend(loc="upper right")


def _heat(axes: Axes, points: Array, edges: Array) -> None:
    """How many of the points (m, 2) lie in each cell; the colours' scale is the square root."""
    counts = np.histogram2d(points[:, 0], points[:, 1], [edges, edges])[0].T
    norm = PowerNorm(0.5, 0, max(float(counts.max()), 1.0))
    shown = np.ma.masked_equal(counts, 0)
    mesh = axes.pcolormesh(edges, edges, shown, cmap="viridis_r", norm=norm)
    ticks = MaxNLocator(5, integer=True)
    bar = axes.figure.colorbar(mesh, ax=axes, fraction=0.046, pad=0.03, ticks=ticks)
    bar.outline.set_visible(False)
    bar.set_label("boxes in a cell", fontsize=8.5)
