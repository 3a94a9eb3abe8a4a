"""What can be wrong or odd in a dataset: the table of rules, and the findings that readers and the
doctor collect.

A reader leaves out the record that an error names and goes on, so that one pass finds everything;
`stop_on_errors` then refuses the dataset. `train()` reads labels and image headers; `rfdetr check`
decodes the pixels too and adds the other rules.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from rfdetr.errors import InputError

SHOWN = 10  # records an error message lists; it gives the count of the rest

Severity = Literal["error", "warning", "info"]
Description: TypeAlias = "tuple[Path | str, str, str, int | None]"  # file, record, found, at

# A line is `rule | what it means | what to do`, and how serious `rfdetr check` takes it where that
# differs. Errors stop a training, warnings tell what is changed or may mislead, the rest is good to
# know. The worst come first: messages list findings in this order.
_ERRORS = """\
dataset-unreadable | the dataset or one of its files cannot be read | correct or export it again
split-missing | there is no train split | add it
classes-differ | splits have different classes | give all splits the same list of classes
objects-none | train has no object to learn (crowds are none) | annotate some; is iscrowd meant?
image-entry | an image record without a usable id or name | correct or remove it
image-id-repeated | an image id occurs twice | make image ids unique
annotation-entry | an annotation without usable ids or numbers | correct or remove it
annotation-unknown-image | an annotation names an image that is not listed | list or remove it
annotation-unknown-category | an annotation names an unknown category | add or correct it
box-not-finite | a box holds NaN or infinity | correct or remove it
boxes-xyxy | most boxes are x1 y1 x2 y2 where x y width height belong | convert the boxes
label-line | a label line is not a class and a box or polygon | correct or remove the line
label-class | a label line has a class that is not in data.yaml | correct the class or the names
label-range | a label line is not in numbers relative to the image | divide by the image's size
label-shared | two images have one label file | give each image a name of its own
outlines-none | no object has an outline | export with polygons, or train a detection model
outlines-apart | most outlines show other places than their boxes | export them anew
image-missing | an image file does not exist | put it there, or remove its record
image-unreadable | an image file is not a readable image | replace or remove it
image-truncated | an image file cannot be decoded to its end | replace or remove it
image-size-differs | an image is not of the annotated size | correct the size, check the boxes
split-leak | the same picture is in two splits | keep it in one: the figures would be untrue"""
_WARNINGS = """\
split-leak-near | nearly the same picture is in two splits | look at both; keep it in one
box-no-size | a box has no or negative width or height; it is skipped | correct or remove it
box-outside | a box lies outside its image; it is skipped | correct or remove it
box-likely-xyxy | a box fits its image only as x1 y1 x2 y2 | convert it to x y width height
box-clipped | a box reaches outside its image and is clipped | clip it
box-repeated | a box occurs twice in an image | remove one
box-area | an annotated area is not positive or larger than its box | correct the area
annotation-id-repeated | an annotation id occurs twice | make annotation ids unique
crowd-flag | iscrowd is neither 0 nor 1; it is taken as 0 | correct it
crowd-left-out | a crowd, which YOLO has no word for, is not written | nothing, if it is meant
mask-as-box | a mask of run lengths is written as its box | draw a polygon, or write COCO
shape-kind | a shape that is no box, polygon, circle or mask is left out | draw it as one
image-unfinished | a task without a finished annotation; its image is left out | finish it
outline-missing | an object without an outline; only its box is learned | outline it
outline-points | a polygon has fewer than three points | remove or redraw it
outline-numbers | a polygon is not a list of x y pairs | correct or remove it
outline-outside | a polygon reaches outside its image | clip it
outline-crossing | a polygon crosses itself | redraw it, or cut it in two
outline-apart | a box and its outline show different places | correct the wrong one
outline-rle | a run-length mask is damaged or of another size than its image | export it again
image-listed-twice | a file is listed by two image records | merge them
image-copy | the same picture occurs twice in a split | remove one
image-unlisted | an image file that the annotations do not list | annotate or remove it
image-format | labelled files of a format that is not read are left out | convert them to PNG
folder-other | a folder that data.yaml names is not there; another is read | correct data.yaml
labels-few | more than half of the images have no label file | see that none is lost
label-orphan | a label file without an image | add the image, or remove the file
image-turned | stored rotated or mirrored (EXIF); turned upright | see that its boxes fit
image-boxes-turned | annotated as stored, but rotated (EXIF); boxes turn too | see that they fit
image-deep | gray of 16 or 32 bits; scaled to 8 by its largest value | convert it if that is wrong
image-end-missing | a JPEG without its end marker; its picture is whole | write it again
image-extension | a file is of another format than its name says | rename it
image-large | an image of very many pixels is slow to read | shrink it
labels-large | a label file is very large | see what it holds
path-outside | a path leaves the dataset's folder | move the file into it | error
path-backslash | names with backslashes are read as if with slashes | write slashes
ids-odd | ids that are no whole numbers below 2^53 are read | write whole numbers
objects-over-queries | an image has more objects than the model has queries | add queries
class-empty | a class has no object to learn (crowds are none) | annotate some, or remove the class
class-missing | a class has no objects in train, or none in valid | spread the images anew
class-imbalance | a class is far rarer than another | add images of the rare one"""
_INFOS = """\
valid-missing | there is no valid split; training keeps back a fifth of train | nothing
category-parent | a category that only others name as theirs is no class | nothing
annotation-more | a task has several annotations; the ground truth, or the first, is taken | nothing
label-missing | an image without a label file: no objects | nothing, if it shows none
outline-touching | a polygon touches itself | nothing, if it is drawn as it is meant
box-whole-image | a box is as large as its image | see whether it is meant
box-tiny | an object is smaller than a patch of the network | train on tiles= or at more resolution
crowd | a crowd: not learned, ignored in evaluation | nothing, if it is meant
image-mode | an image is neither RGB nor gray with 8 bits; it is converted | nothing
image-animated | an image has several frames; the first is used | nothing"""


class DatasetError(InputError):
    """A fault of the dataset; the message names file and record, what was found, expected, and what
    to do.
    """


class Rule(NamedTuple):
    """One line of the table. `checked`: the severity in `rfdetr check`; None: the same."""

    severity: Severity
    meaning: str
    advice: str
    checked: Severity | None = None


RULES: dict[str, Rule] = {}
for _severity, _lines in zip(get_args(Severity), (_ERRORS, _WARNINGS, _INFOS), strict=True):
    for _line in _lines.splitlines():
        _rule, *_columns = _line.split(" | ")
        RULES[_rule] = Rule(_severity, *_columns)  # type: ignore[arg-type]  # the last: a severity


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
        parts = (self.file, self.record, self.found, rule.meaning)
        return f"{': '.join(filter(None, parts))}; {rule.advice}"


class Findings:
    """Collects findings: `counts` has all of a rule, the first `limit` (None: all) are kept.

    `checking`: for `rfdetr check`, which takes some rules more seriously than training does.
    """

    def __init__(self, limit: int | None = None, checking: bool = False) -> None:
        self.limit = limit
        self.checking = checking
        self.counts: Counter[str] = Counter()
        self._kept: defaultdict[str, list[Finding]] = defaultdict(list)

    def add(
        self, rule: str, file: Path | str, record: str = "", found: str = "", at: int | None = None
    ) -> None:
        """Count a finding, and keep it while there is room."""
        self.counts[rule] += 1
        if self.limit is None or len(self._kept[rule]) < self.limit:
            self._kept[rule].append(Finding(rule, str(file), record, found, at))

    def add_rows(self, masks: dict[str, Any], describe: Callable[[int], Description]) -> None:
        """Findings by rule, of the rows that a boolean mask (N,) marks; (file, record, found, at)
        are worked out for those kept only.
        """
        for rule, marked in masks.items():
            rows = np.flatnonzero(marked).tolist()
            room = len(rows) if self.limit is None else self.limit - self.counts[rule]
            for row in rows[: max(room, 0)]:
                self.add(rule, *describe(row))
            if rest := rows[max(room, 0) :]:
                self.counts[rule] += len(rest)

    def kept(self) -> list[Finding]:
        """What was kept, rule after rule, the worst first."""
        return [finding for rule in RULES for finding in self._kept.get(rule, ())]

    def severity(self, rule: str) -> Severity:
        """How serious a rule's findings are here."""
        return (self.checking and RULES[rule].checked) or RULES[rule].severity

    def count(self, severity: Severity) -> int:
        return sum(count for rule, count in self.counts.items() if self.severity(rule) == severity)

    def stop_on_errors(self, source: Path | str) -> None:
        """Raise a `DatasetError` with the worst ten errors and the count of all, if any."""
        errors = [rule for rule in RULES if self.counts[rule] and self.severity(rule) == "error"]
        if not errors:
            return
        # The first finding of each rule, then the second of each, and so on.
        tiers = itertools.zip_longest(*(self._kept[rule] for rule in errors))
        worst = [f"\n  {finding}" for finding in itertools.chain(*tiers) if finding][:SHOWN]
        count = self.count("error")
        more = f"\n  and {count - len(worst)} more" if count > len(worst) else ""
        head = f"{source}: {count} error{'s' * (count > 1)} in the dataset:"
        raise DatasetError(head + "".join(worst) + more)

    def log(self, logger: logging.Logger, source: Path | str) -> None:
        """One line for each rule that has findings but stops nothing."""
        for rule in filter(self.counts.__getitem__, RULES):
            first = self._kept[rule][0]
            where = ": ".join(filter(None, (Path(first.file).name, first.record, first.found)))
            text = f"{source}: {self.counts[rule]} x {rule}: {RULES[rule].meaning} ({where})"
            logger.log(getattr(logging, self.severity(rule).upper()), "%s", text)
