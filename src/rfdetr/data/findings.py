"""What can be wrong or odd in a dataset: the table of rules, and the findings that readers and the
doctor collect.

A reader leaves out what an error names and goes on, so that one pass finds everything;
`stop_on_errors` then refuses the dataset. `train()` reads labels and image headers; `rfdetr check`
decodes the pixels too and adds the other rules.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from rfdetr.errors import InputError

SHOWN = 10  # records an error message lists; it gives the count of the rest

Severity = Literal["error", "warning", "info"]


class DatasetError(InputError):
    """A fault of the dataset; the message names file and record, what was found, expected, and what
    to do.
    """


class Rule(NamedTuple):
    """How serious it is, what it means, what to do about it; `checked`: how serious `rfdetr check`
    takes it instead.
    """

    severity: Severity
    meaning: str
    advice: str
    checked: Severity | None = None


RULES: dict[str, Rule] = {  # the worst first; errors stop a training
    # files and splits
    "dataset-unreadable": Rule(
        "error", "the dataset or one of its files cannot be read", "correct or export it again"
    ),
    "split-missing": Rule(
        "error", "there is no train or no valid split", "add the split; training needs both"
    ),
    "classes-differ": Rule(
        "error", "splits have different classes", "give all splits the same list of classes"
    ),
    "objects-none": Rule(
        "error",
        "train has no object to learn (crowds are none)",
        "annotate some; is iscrowd meant?",
    ),
    "image-entry": Rule(
        "error", "an image record without a usable id or name", "correct or remove it"
    ),
    "image-id-repeated": Rule("error", "an image id occurs twice", "make image ids unique"),
    # annotations
    "annotation-entry": Rule(
        "error", "an annotation without usable ids or numbers", "correct or remove it"
    ),
    "annotation-unknown-image": Rule(
        "error", "an annotation names an image that is not listed", "list or remove it"
    ),
    "annotation-unknown-category": Rule(
        "error", "an annotation names an unknown category", "add or correct it"
    ),
    "box-not-finite": Rule("error", "a box holds NaN or infinity", "correct or remove it"),
    "boxes-xyxy": Rule(
        "error", "most boxes are x1 y1 x2 y2 where x y width height belong", "convert the boxes"
    ),
    "label-line": Rule(
        "error", "a label line is not a class and a box or polygon", "correct or remove the line"
    ),
    "label-class": Rule(
        "error",
        "a label line has a class that is not in data.yaml",
        "correct the class or the names",
    ),
    "label-range": Rule(
        "error",
        "a label line is not in numbers relative to the image",
        "divide by the image's size",
    ),
    "label-shared": Rule(
        "error", "two images have one label file", "give each image a name of its own"
    ),
    "outlines-none": Rule(
        "error", "no object has an outline", "export with polygons, or train a detection model"
    ),
    "outlines-apart": Rule(
        "error", "most outlines show other places than their boxes", "export them anew"
    ),
    # image files
    "image-missing": Rule(
        "error", "an image file does not exist", "put it there, or remove its record"
    ),
    "image-unreadable": Rule(
        "error", "an image file is not a readable image", "replace or remove it"
    ),
    "image-truncated": Rule(
        "error", "an image file cannot be decoded to its end", "replace or remove it"
    ),
    "image-size-differs": Rule(
        "error", "an image is not of the annotated size", "correct the size, check the boxes"
    ),
    "split-leak": Rule(
        "error", "the same picture is in two splits", "keep it in one: the figures would be untrue"
    ),
    # what is changed or may mislead
    "split-leak-near": Rule(
        "warning", "nearly the same picture is in two splits", "look at both; keep it in one"
    ),
    "box-no-size": Rule(
        "warning", "a box has no or negative width or height; it is skipped", "correct or remove it"
    ),
    "box-outside": Rule(
        "warning", "a box lies outside its image; it is skipped", "correct or remove it"
    ),
    "box-likely-xyxy": Rule(
        "warning", "a box fits its image only as x1 y1 x2 y2", "convert it to x y width height"
    ),
    "box-clipped": Rule("warning", "a box reaches outside its image and is clipped", "clip it"),
    "box-repeated": Rule("warning", "a box occurs twice in an image", "remove one"),
    "box-area": Rule(
        "warning", "an annotated area is not positive or larger than its box", "correct the area"
    ),
    "annotation-id-repeated": Rule(
        "warning", "an annotation id occurs twice", "make annotation ids unique"
    ),
    "crowd-flag": Rule("warning", "iscrowd is neither 0 nor 1; it is taken as 0", "correct it"),
    "outline-missing": Rule(
        "warning", "an object without an outline; only its box is learned", "outline it"
    ),
    "outline-points": Rule(
        "warning", "a polygon has fewer than three points", "remove or redraw it"
    ),
    "outline-numbers": Rule(
        "warning", "a polygon is not a list of x y pairs", "correct or remove it"
    ),
    "outline-outside": Rule("warning", "a polygon reaches outside its image", "clip it"),
    "outline-crossing": Rule("warning", "a polygon crosses itself", "redraw it, or cut it in two"),
    "outline-apart": Rule(
        "warning", "a box and its outline show different places", "correct the wrong one"
    ),
    "outline-rle": Rule(
        "warning",
        "a run-length mask is damaged or of another size than its image",
        "export it again",
    ),
    "image-listed-twice": Rule("warning", "a file is listed by two image records", "merge them"),
    "image-copy": Rule("warning", "the same picture occurs twice in a split", "remove one"),
    "image-unlisted": Rule(
        "warning", "an image file that the annotations do not list", "annotate or remove it"
    ),
    "image-format": Rule(
        "warning", "labelled files of a format that is not read are left out", "convert them to PNG"
    ),
    "labels-few": Rule(
        "warning", "more than half of the images have no label file", "see that none is lost"
    ),
    "label-orphan": Rule(
        "warning", "a label file without an image", "add the image, or remove the file"
    ),
    "image-turned": Rule(
        "warning", "stored rotated or mirrored (EXIF); turned upright", "see that its boxes fit"
    ),
    "image-boxes-turned": Rule(
        "warning",
        "annotated in its stored size but rotated (EXIF); boxes are turned with it",
        "see that they fit",
    ),
    "image-deep": Rule(
        "warning",
        "gray of 16 or 32 bits; it is scaled to 8 by its largest value",
        "convert it if that does not suit",
    ),
    "image-end-missing": Rule(
        "warning", "a JPEG without its end marker; its picture is whole", "write it again"
    ),
    "image-extension": Rule(
        "warning", "a file is of another format than its name says", "rename it"
    ),
    "image-large": Rule("warning", "an image of very many pixels is slow to read", "shrink it"),
    "labels-large": Rule("warning", "a label file is very large", "see what it holds"),
    "path-outside": Rule(
        "warning", "a path leaves the dataset's folder", "move the file into it", "error"
    ),
    "path-backslash": Rule(
        "warning", "names with backslashes are read as if with slashes", "write slashes"
    ),
    "ids-odd": Rule(
        "warning", "ids that are no whole numbers below 2^53 are read", "write whole numbers"
    ),
    "objects-over-queries": Rule(
        "warning", "an image has more objects than the model has queries", "add queries"
    ),
    "class-empty": Rule(
        "warning",
        "a class has no object to learn (crowds are none)",
        "annotate some, or remove the class",
    ),
    "class-missing": Rule(
        "warning", "a class has no objects in train, or none in valid", "spread the images anew"
    ),
    "class-imbalance": Rule(
        "warning", "a class is far rarer than another", "add images of the rare one"
    ),
    # good to know
    "category-parent": Rule(
        "info", "a category that only others name as theirs is no class", "nothing"
    ),
    "label-missing": Rule(
        "info", "an image without a label file: no objects", "nothing, if it shows none"
    ),
    "outline-touching": Rule(
        "info", "a polygon touches itself", "nothing, if it is drawn as it is meant"
    ),
    "box-whole-image": Rule("info", "a box is as large as its image", "see whether it is meant"),
    "box-tiny": Rule(
        "info", "an object is smaller than a patch of the network", "raise the resolution, or tile"
    ),
    "crowd": Rule("info", "a crowd: not learned, ignored in evaluation", "nothing, if it is meant"),
    "image-mode": Rule(
        "info", "an image is neither RGB nor gray with 8 bits; it is converted", "nothing"
    ),
    "image-animated": Rule("info", "an image has several frames; the first is used", "nothing"),
}
_ORDER = {rule: position for position, rule in enumerate(RULES)}


Description: TypeAlias = "tuple[Path | str, str, str, int | None]"  # file, record, found, at


class Finding(NamedTuple):
    """One record that a rule is about. `at`: its place in the file, an entry counted from 0 or a
    line from 1.
    """

    rule: str
    file: str
    record: str
    found: str
    at: int | None = None

    def __str__(self) -> str:
        rule = RULES[self.rule]
        return (
            ": ".join(filter(None, (self.file, self.record, self.found, rule.meaning)))
            + f"; {rule.advice}"
        )


class Findings:
    """Collects findings; of each rule all are counted and the first `limit` (None: all) kept.

    `checking`: for `rfdetr check`, which takes some rules more seriously than training does.
    """

    def __init__(self, limit: int | None = None, checking: bool = False) -> None:
        self.limit = limit
        self.checking = checking
        self.counts: Counter[str] = Counter()
        self._kept: dict[str, list[Finding]] = {}

    def add(
        self, rule: str, file: Path | str, record: str = "", found: str = "", at: int | None = None
    ) -> None:
        """Count a finding, and keep it while there is room."""
        kept = self._kept.setdefault(rule, [])
        self.counts[rule] += 1
        if self.limit is None or len(kept) < self.limit:
            kept.append(Finding(rule, str(file), record, found, at))

    def add_rows(
        self, rule: str, rows: Sequence[int], describe: Callable[[int], Description]
    ) -> None:
        """A finding for each row; (file, record, found, at) are worked out for those kept only."""
        room = (
            len(rows) if self.limit is None else max(self.limit - len(self._kept.get(rule, ())), 0)
        )
        for row in rows[:room]:
            self.add(rule, *describe(row))
        if rows[room:]:
            self.counts[rule] += len(rows) - room

    def kept(self) -> list[Finding]:
        """What was kept, rule after rule, the worst first."""
        return [
            finding
            for rule in sorted(self._kept, key=_ORDER.__getitem__)
            for finding in self._kept[rule]
        ]

    def severity(self, rule: str) -> Severity:
        """How serious a rule's findings are here."""
        return (self.checking and RULES[rule].checked) or RULES[rule].severity

    def count(self, severity: Severity) -> int:
        """Findings of a severity."""
        return sum(count for rule, count in self.counts.items() if self.severity(rule) == severity)

    def stop_on_errors(self, source: Path | str) -> None:
        """Raise a `DatasetError` with the worst ten errors and the count of all, if there are any."""
        errors = self.count("error")
        if not errors:
            return
        ranked = [
            (rank, _ORDER[rule], finding)
            for rule, kept in self._kept.items()
            for rank, finding in enumerate(kept)
        ]
        worst = [found for _, _, found in sorted(ranked) if self.severity(found.rule) == "error"][
            :SHOWN
        ]
        lines = "".join(f"\n  {found}" for found in worst)
        more = f"\n  and {errors - len(worst)} more" if errors > len(worst) else ""
        raise DatasetError(
            f"{source}: {errors} error{'s' * (errors > 1)} in the dataset:{lines}{more}"
        )

    def log(self, logger: logging.Logger, source: Path | str) -> None:
        """One line for each rule that has findings but stops nothing."""
        levels = {"warning": logging.WARNING, "info": logging.INFO, "error": logging.ERROR}
        for rule in sorted(self.counts, key=_ORDER.__getitem__):
            meaning, severity = RULES[rule].meaning, self.severity(rule)
            first = self._kept[rule][0]
            where = ": ".join(filter(None, (Path(first.file).name, first.record, first.found)))
            logger.log(
                levels[severity],
                "%s: %d x %s: %s (%s)",
                source,
                self.counts[rule],
                rule,
                meaning,
                where,
            )
