"""Writes report.html, report.json and label_hints.json of a run or an evaluation."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfdetr.data.index import DatasetIndex
from rfdetr.evaluation.metrics import Metrics
from rfdetr.files import atomic_write
from rfdetr.report import HINTS, PAGE, VALUES
from rfdetr.report.build import Facts, build
from rfdetr.report.page import render

logger = logging.getLogger(__name__)

_HOW = (
    'set "apply" to true for each hint that is right, then: '
    "rfdetr check DATASET --hints label_hints.json --fix NEW_FOLDER"
)


def write_report(
    folder: Path,
    results: Mapping[str, Metrics],
    indexes: Mapping[str, DatasetIndex],
    facts: Facts,
) -> None:
    """Writes the three files into `folder`; what a user has marked in older hints stays marked.

    `results` are the figures by split, the one to show last; `indexes` those splits, and others
    ("train") to compare with them. Logs where the page is, and how long it took.
    """
    started = time.monotonic()
    data, album = build(results, indexes, facts)
    page = render(data, album.files)
    hints = [
        {key: value for key, value in hint.items() if key != "picture"} for hint in data["hints"]
    ]
    marked = _marked(folder / HINTS)
    for hint in hints:
        hint["apply"] = _identity(hint) in marked
    content = {"schema_version": 1, "how": _HOW, "hints": hints}
    for name, text in {
        VALUES: json.dumps(data, ensure_ascii=False, allow_nan=False),
        HINTS: json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False),
        PAGE: page,
    }.items():
        raw = text.encode(errors="backslashreplace")
        atomic_write(folder / name, lambda stream, raw=raw: stream.write(raw))  # type: ignore[misc]
    took = time.monotonic() - started
    logger.info("%s: %.1f MB, in %.1f seconds", folder / PAGE, len(page) / 1e6, took)


def _marked(path: Path) -> set[str]:
    """The hints of an older file that its user has set to apply."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["hints"]
        return {_identity(hint) for hint in found if hint["apply"] is True}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _identity(hint: Mapping[str, Any]) -> str:
    label = hint["label"] or hint["found"]
    return json.dumps([hint["split"], hint["image"], hint["kind"], label["class"], label["box"]])
