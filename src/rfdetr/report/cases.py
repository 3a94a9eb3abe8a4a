"""What went wrong, case by case: every missed, false, confused and badly placed object of a split
at one threshold, the images with most of them, and the cells of the confusion matrix.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

from rfdetr.evaluation.matching import UNMATCHED
from rfdetr.report.judged import Judged

MISSED, FALSE, CONFUSED, MISPLACED = "missed", "false", "confused", "badly placed"


class Case(NamedTuple):
    """One object or detection; -1 stands where there is none."""

    kind: str  # one of the above, or "right"
    image: int
    truth: int
    detection: int
    score: float  # of the detection, 0 where there is none


class Ranked(NamedTuple):
    """An image, how bad it is, and its cases by kind."""

    image: int
    badness: float
    counts: dict[str, int]


def find_cases(judged: Judged, threshold: float) -> list[Case]:
    """Every object that counts and every detection of at least `threshold`, matched whatever their
    class, as the confusion matrix does. A detection that overlaps a missed object of its class too
    little is "badly placed", and takes that object along.
    """
    table = judged.table
    matched = table.match(same_class=False, min_score=threshold)
    missed = ~table.truth_crowd
    missed[matched[matched >= 0]] = False
    nearest, _ = judged.nearest
    cases = []
    for detection in np.flatnonzero(table.scores >= threshold).tolist():
        truth = int(matched[detection])
        if truth >= 0:
            same = table.labels[detection] == table.truth_labels[truth]
            kind = "right" if same else CONFUSED
        elif truth == UNMATCHED:
            kind, near = FALSE, int(nearest[detection])
            of_class = near >= 0 and table.labels[detection] == table.truth_labels[near]
            if of_class and missed[near]:
                kind, truth, missed[near] = MISPLACED, near, False
        else:
            continue  # on a crowd region
        score = float(table.scores[detection])
        cases.append(Case(kind, int(table.image[detection]), truth, detection, score))
    for truth in np.flatnonzero(missed).tolist():
        cases.append(Case(MISSED, int(table.truth_image[truth]), truth, -1, 0.0))
    return cases


def worst_images(cases: list[Case]) -> list[Ranked]:
    """Images with errors, worst first: each object that was not found counts 1, each detection
    without one its score.
    """
    badness: defaultdict[int, float] = defaultdict(float)
    counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for case in cases:
        if case.kind != "right":
            badness[case.image] += case.score * (case.kind != CONFUSED) + (case.truth >= 0)
            counts[case.image][case.kind] += 1
    order = sorted(badness, key=lambda image: (-badness[image], image))
    return [Ranked(image, badness[image], dict(counts[image])) for image in order]


def by_cell(judged: Judged, cases: list[Case]) -> dict[tuple[int, int], list[Case]]:
    """The cases by their cell of the confusion matrix (true class, predicted class; the last of
    each is background), those of highest score first.

    A badly placed detection is two cases there: a miss and a false one.
    """
    cells: defaultdict[tuple[int, int], list[Case]] = defaultdict(list)
    table, background = judged.table, len(judged.index.class_names)
    for case in cases:
        real = int(table.truth_labels[case.truth]) if case.truth >= 0 else background
        told = int(table.labels[case.detection]) if case.detection >= 0 else background
        pairs = (
            [(real, background), (background, told)] if case.kind == MISPLACED else [(real, told)]
        )
        for cell in pairs:
            cells[cell].append(case)
    return {cell: sorted(found, key=lambda case: -case.score) for cell, found in cells.items()}
