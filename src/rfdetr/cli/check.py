"""`rfdetr check`: what is wrong or odd in a dataset, and a corrected copy of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rfdetr.cli.options import known_model
from rfdetr.data.findings import RULES
from rfdetr.errors import RunError

if TYPE_CHECKING:
    from rfdetr.doctor.check import Report
    from rfdetr.doctor.fix import Copy

_EXAMPLES = 3
_STYLE = {"error": "red", "warning": "yellow", "info": "cyan"}


def check(  # noqa: PLR0913 - each is an option of the command
    dataset: Annotated[Path, Parameter(name=["--dataset-dir", "--dataset", "--data"])],
    /,
    *,
    dataset_file: Literal["roboflow", "coco", "yolo"] = "roboflow",
    model: str = "nano",
    processes: int | None = None,
    fix: Path | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Find what is wrong or odd in a dataset: files, labels, images, splits.

    Exit code 1 if there are errors.

    Parameters
    ----------
    dataset
        Folder with the labelled images (COCO or YOLO layout).
    dataset_file
        Layout of the folder: "roboflow" detects COCO and YOLO exports, "coco" is the original one.
    model
        Variant to train: decides how many objects are too many, and which are too small.
    processes
        Processes that decode images; one per core by default.
    fix
        New folder for a corrected copy: rewritten annotations, and links to the images.
    force
        Write the copy even if a split loses most of its images or boxes.
    as_json
        Print one JSON object with every finding.
    """
    from rfdetr.config import VARIANTS
    from rfdetr.doctor.check import check as look
    from rfdetr.doctor.fix import fix as write_copy

    report = look(dataset, dataset_file, model=VARIANTS[known_model(model)](), processes=processes)
    if not as_json:
        _show(report)
    copy = write_copy(report, fix, force=force) if fix is not None else None
    if as_json:
        changes, shares = ([item._asdict() for item in items] for items in copy or ((), ()))
        print(json.dumps({**report.as_record(), "changes": changes, "copy": shares}))
    elif copy is not None:
        _show_copy(copy, fix)
    if report.errors:
        plural = "s" * (report.errors > 1)
        raise RunError(f"{dataset}: {report.errors} error{plural} in the dataset")


def _show(report: Report) -> None:
    console, counts = Console(soft_wrap=True, highlight=False), report.findings.counts
    sizes = ", ".join(f"{len(index):,} {split}" for split, index in report.indexes.items())
    if not counts:
        console.print(f"{report.dataset}: nothing to remark ({sizes} images)")
        return
    table = Table(title=f"{report.dataset}: {sizes or 'no'} images", title_justify="left")
    for column in ("severity", "rule", "found", "meaning"):
        table.add_column(column, justify="right" if column == "found" else "left")
    severity = {rule: report.findings.severity(rule) for rule in RULES if counts[rule]}
    rules = sorted(severity, key=lambda rule: list(_STYLE).index(severity[rule]))
    for rule in rules:
        shown = f"[{_STYLE[severity[rule]]}]{severity[rule]}[/]"
        table.add_row(
            shown, rule, str(counts[rule]), f"{RULES[rule].meaning}: {RULES[rule].advice}"
        )
    Console().print(table)
    for rule in rules:
        for finding in report.of(rule)[:_EXAMPLES]:
            console.print(f"[{_STYLE[severity[rule]]}]{rule}[/] {escape(str(finding))}")
        if (more := counts[rule] - _EXAMPLES) > 0:
            console.print(f"[dim]{rule}: and {more} more; --json lists all[/]")


def _show_copy(copy: Copy, folder: Path | None) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for file, record, rule, change in copy.changes:
        console.print(f"{rule}: {escape(file)}: {escape(record)}: {escape(change)}")
    for split, images, images_kept, boxes, boxes_kept in copy.shares:
        parts = (images_kept, images, "images"), (boxes_kept, boxes, "boxes")
        kept = [
            f"{part:,} of {whole:,} {what} ({1 - part / whole:.1%} left out)"
            for part, whole, what in parts
            if whole
        ]
        console.print(f"{split}: {' and '.join(kept) or 'left out'}")
    found = f"{len(copy.changes)} changes; corrected copy in {folder}"
    console.print(f"{found}, its images are links to the originals")
