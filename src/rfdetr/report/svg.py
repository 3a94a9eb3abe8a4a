"""Drawings of a report's page, as inline SVG whose colours are the page's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

WIDTH, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 34  # of the frame around the lines


class Line(NamedTuple):
    """One line of a chart; `style` is a CSS class of the page: "a", "b", "c", "d"."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str


def chart(
    title: str, lines: Sequence[Line], x_name: str, *, top: float = 0.0, mark: float | None = None
) -> str:
    """Lines over x with a legend below; y from 0 to at least `top`; `mark` is a vertical line. The
    legend tells a line's last value where it is what came last, at the end of the epochs.
    """
    lines = [line for line in lines if line.points]
    xs = [x for line in lines for x, _ in line.points] or [0.0, 1.0]
    low, high = min(xs), max(xs)
    low, high = (low, high) if low < high else (low - 1, high + 1)
    most = max([top, *(y for line in lines for _, y in line.points)]) or 1.0
    ticks = nice_ticks(most)
    most = max(most, ticks[-1])

    def x(value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

    def y(value: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - value / most)

    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in ticks
    ]
    inside = (low + tick for tick in nice_ticks(high - low))
    inside = (float(round(tick)) if high - low >= 5 else tick for tick in inside)
    margin = 0.12 * (high - low)  # beside the ends
    for value in sorted({low, high, *(t for t in inside if low + margin < t < high - margin)}):
        anchor = "end" if value == high else "start" if value == low else "middle"
        parts.append(
            f'<text class="tick" x="{x(value):.1f}" y="{HEIGHT - 18}" text-anchor="{anchor}">'
            f"{value:g}</text>"
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{x_name}</text>'
    )
    if mark is not None:
        parts.append(
            f'<line class="mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{_TOP}" '
            f'y2="{HEIGHT - _BOTTOM}"/>'
        )
    for line in lines:
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        if len(line.points) <= 30:
            parts += [
                f'<circle class="dot {line.style}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5"/>'
                for a, b in line.points
            ]
    last = [f" {line.points[-1][1]:.3g}" if x_name == "epoch" else "" for line in lines]
    legend = "".join(
        f'<span class="key {line.style}">{escape(line.name)}{value}</span>'
        for line, value in zip(lines, last, strict=True)
    )
    told = "; ".join(f"{line.name}: {line.points[-1][1]:.3g} at the end" for line in lines)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}. {told}")}">'
        f'{"".join(parts)}</svg><div class="keys">{legend}</div></figure>'
    )


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """A bar from 0 to 1 for each row of (name, share, note)."""
    cells = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td class=bar>{bar(share)}</td>"
        f"<td class=num>{escape(note)}</td></tr>"
        for name, share, note in rows
    )
    return f"<table class=bars><caption>{escape(title)}</caption>{cells}</table>"


def bar(share: float) -> str:
    """A bar of this share of its place; the figure is told beside it."""
    width = 100 * min(max(share, 0), 1)
    return (
        '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="8"/><rect class="fill" width="{width:.1f}" '
        'height="8"/></svg>'
    )


def overlay(size: Sequence[int], boxes: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Boxes over a picture of (width, height): labels green, what was found red and dashed; those
    that the picture is about are thick and, where they are few, named.
    """
    named = sum(box["stressed"] for box in boxes) <= 4
    shapes, texts = [], []
    for box in sorted(boxes, key=lambda one: one["stressed"]):
        left, top, right, bottom = box["box"]
        score = f" {box['score']:.2f}" if "score" in box else ""
        text = f"{names[box['class']]}{score}"
        style = box["of"] + " stressed" * box["stressed"]
        shapes.append(
            f'<rect class="{style}" x="{left}" y="{top}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}"><title>{escape(text)}</title></rect>'
        )
        if box["stressed"] and named:
            # Names of labels stand above their boxes, those of detections below.
            y = max(top - 4, 12) if box["of"] == "label" else min(bottom + 13, size[1] - 4)
            x = min(max(left, 3), max(size[0] - 8 * len(text), 3))
            texts.append(f'<text class="{box["of"]}" x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>')
    return (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" aria-hidden="true">{"".join(shapes + texts)}</svg>'
    )


def nice_ticks(most: float) -> list[float]:
    """0 and three to five round numbers up to about `most`: 0.34 gives 0, 0.1, 0.2, 0.3, 0.4."""
    step = 10 ** math.floor(math.log10(most / 3))
    step = next(step * k for k in (1, 2, 5, 10) if most / (step * k) <= 5)
    return [round(step * k, 10) for k in range(math.ceil(most / step - 1e-9) + 1)]
