"""Rules about pictures that recur, in a split or in two."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from rfdetr.data.findings import Findings
from rfdetr.data.likeness import ImageFacts, near_pairs
from rfdetr.data.records import SplitRecords


def check_copies(
    records: Mapping[str, SplitRecords],
    facts: Mapping[str, Mapping[int, ImageFacts]],
    findings: Findings,
) -> None:
    """Find pictures that are twice in a split, or in two; `facts` by split and image.

    Of two splits the finding is in the earlier one (train), for the others measure.
    """
    seen: dict[bytes, tuple[str, int]] = {}
    for split in reversed(list(facts)):
        for image, file in facts[split].items():
            if file.digest in seen:
                other, twin = seen[file.digest]
                rule = "image-copy" if other == split else "split-leak"
                found = f"the same pixels as {other}'s {records[other].names[twin]}"
                findings.add(rule, *records[split].describe_image(image, found))
            elif file.digest:
                seen[file.digest] = split, image
    for first, second in itertools.combinations(facts, 2):
        ours, theirs = (list(facts[split].items()) for split in (first, second))
        for a, b in near_pairs([file for _, file in ours], [file for _, file in theirs]):
            found = f"{second}'s {records[second].names[theirs[b][0]]} is nearly the same"
            findings.add("split-leak-near", *records[first].describe_image(ours[a][0], found))
