"""`rfdetr check`: what is wrong or odd in a dataset, and a corrected copy of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from rfdetr.cli.options import AsJson, Dataset, DatasetFile, known_model
from rfdetr.data.findings import RULES
from rfdetr.errors import InputError, RunError

if TYPE_CHECKING:
    from rfdetr.doctor.check import Report
    from rfdetr.doctor.fix import Copy

_EXAMPLES = 3
_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


def check(  # noqa: PLR0913 - each is an option of the command
    dataset: Annotated[Path, Dataset],
    /,
    *,
    dataset_file: DatasetFile = "roboflow",
    classes: str | None = None,
    model: str = "nano",
    processes: int | None = None,
    fix: Path | None = None,
    hints: Path | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    report: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Find what is wrong or odd in a dataset: files, labels, images, splits.

    Exit code 1 if there are errors.

    Args:
        classes: Of the data, those to train, as there: cat,vehicle=car+truck.
        model: Variant to train: decides how many objects are too many, and which are too small.
        processes: Processes that decode images; one per core by default.
        fix: New folder for a corrected copy: rewritten annotations, and links to the images.
        hints: label_hints.json of a report: those set to apply change labels of the copy.
        force: Write the copy even if a split loses most of its images or boxes.
        report: New HTML file with a picture of each finding; without a name, DATASET-check.html.
        as_json: Print one JSON object with every finding.
    """
    from rfdetr.config import VARIANTS
    from rfdetr.doctor.check import check as look
    from rfdetr.doctor.fix import fix as write_copy
    from rfdetr.doctor.hints import read_hints
    from rfdetr.doctor.pictures import write_pictures

    if hints is not None and fix is None:
        raise InputError("--hints change a copy: name its folder with --fix NEW_FOLDER")
    chosen = [] if hints is None else read_hints(hints)
    name = None if report is None else _new_file(report, dataset)
    variant = VARIANTS[known_model(model)]()
    found = look(dataset, dataset_file, classes=classes, model=variant, processes=processes)
    if not as_json:
        _show(found)
    if name is not None:
        write_pictures(found, name)
    copy = write_copy(found, fix, force=force, hints=chosen) if fix is not None else None
    if as_json:
        changes, shares = ([item._asdict() for item in items] for items in copy or ((), ()))
        written = {} if name is None else {"report": str(name)}
        print(json.dumps({**found.as_record(), "changes": changes, "copy": shares, **written}))
    else:
        if copy is not None:
            _show_copy(copy, fix)
        if name is not None:
            print(f"the pictures are in {name}")
    if found.errors:
        plural = "s" * (found.errors > 1)
        raise RunError(f"{dataset}: {found.errors} error{plural} in the dataset")


def _new_file(given: str, dataset: Path) -> Path:
    """Where the page goes: a file that is not there yet, of the given name or of our own."""
    if given:
        if (path := Path(given)).exists():
            raise InputError(f"{path} exists, and nothing is overwritten: name another file")
        return path
    stem = f"{dataset.resolve().name}-check"
    paths = (Path(f"{stem}{number}.html") for number in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(path for path in paths if not path.exists())


def _show(report: Report) -> None:
    console, counts = Console(soft_wrap=True, highlight=False), report.findings.counts
    sizes = ", ".join(f"{len(index):,} {split}" for split, index in report.indexes.items())
    if not counts:
        console.print(f"{report.dataset}: nothing to remark ({sizes} images)")
        return
    columns = "severity", "rule", Column("found", justify="right"), "meaning"
    title = f"{report.dataset}: {sizes or 'no'} images"
    table = Table(*columns, title=title, title_justify="left")
    severity = {rule: report.findings.severity(rule) for rule in RULES if counts[rule]}
    rules = sorted(severity, key=lambda rule: list(_COLOURS).index(severity[rule]))
    examples = []
    for rule in rules:
        colour = _COLOURS[severity[rule]]
        meaning = f"{RULES[rule].meaning}: {RULES[rule].advice}"
        table.add_row(f"[{colour}]{severity[rule]}[/]", rule, str(counts[rule]), meaning)
        first = report.of(rule)[:_EXAMPLES]
        examples += [f"[{colour}]{rule}[/] {escape(str(finding))}" for finding in first]
        if (more := counts[rule] - _EXAMPLES) > 0:
            examples.append(f"[dim]{rule}: and {more} more; --json lists all[/]")
    Console().print(table)
    console.print(*examples, sep="\n")


def _show_copy(copy: Copy, folder: Path | None) -> None:
    for change in copy.changes:
        print(f"{change.rule}: {change.file}: {change.record}: {change.change}")
    for split, images, images_kept, boxes, boxes_kept in copy.shares:
        parts = (images_kept, images, "images"), (boxes_kept, boxes, "boxes")
        kept = [
            f"{part:,} of {whole:,} {what} ({1 - part / whole:.1%} left out)"
            for part, whole, what in parts
            if whole
        ]
        print(f"{split}: {' and '.join(kept) or 'left out'}")
    found = f"{len(copy.changes)} changes; corrected copy in {folder}"
    print(f"{found}, its images are links to the originals")
