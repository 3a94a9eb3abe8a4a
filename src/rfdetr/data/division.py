"""Which images of a folder without a valid split are kept back from training to be one.

Pictures that are the same, or nearly (`likeness`), stay together: else the figures would be
untrue. Of each class about `SHARE` of its images are kept back, the rarest class first (iterative
stratification, Sechidis et al. 2011), and at least one where several groups have it, if no rarer
class wants otherwise. The same files and labels are divided alike whatever the run's seed, so that
runs can be compared.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.console import with_progress
from rfdetr.data.index import DatasetIndex
from rfdetr.data.likeness import ImageFacts, near_pairs, read_all_facts
from rfdetr.errors import InputError

SHARE = 0.2
_SEED = 0


class Division(NamedTuple):
    """The file names that are kept back, and how many images are in groups of like pictures."""

    held_out: frozenset[str]
    alike: int


def divide(index: DatasetIndex) -> Division:
    """Look at every image of an index, and choose those to keep back."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each of which does the same
    paths = [index.file(image) for image in range(len(index))]
    processes = max((os.cpu_count() or 1) // ranks, 1)
    facts = [*with_progress(read_all_facts(paths, processes), "Dividing images", len(paths))]
    groups = like_groups(facts)
    if groups.max() == 0:
        raise InputError(
            f"{index.source}: no valid split, and its {len(index)} images are of one picture: "
            "nothing can be kept back to validate with; add a valid split"
        )
    has = np.zeros((groups.max() + 1, len(index.class_names) + 1), np.int64)
    image_of_box = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    pairs = np.unique(np.stack((image_of_box, index.labels), axis=1), axis=0)
    np.add.at(has, (groups[pairs[:, 0]], pairs[:, 1]), 1)
    has[:, -1] = np.bincount(groups)
    kept_back = choose(has)[groups]
    names = [index.file_name(image) for image in np.flatnonzero(kept_back).tolist()]
    return Division(frozenset(names), int((np.bincount(groups)[groups] > 1).sum()))


def like_groups(facts: Sequence[ImageFacts]) -> NDArray[np.int64]:
    """The group (n,) of each picture, counted from 0 in order: pictures with the same pixels, or
    nearly the same, are of one group, and so are those like a third.
    """
    parent = list(range(len(facts)))

    def first(image: int) -> int:
        while parent[image] != image:
            parent[image] = image = parent[parent[image]]
        return image

    equal: defaultdict[bytes, list[int]] = defaultdict(list)
    for image, file in enumerate(facts):
        equal[file.digest].append(image)
    equal.pop(b"", None)  # could not be decoded
    twins = [(images[0], other) for images in equal.values() for other in images[1:]]
    for a, b in (*twins, *near_pairs(facts, facts)):
        low, high = sorted((first(a), first(b)))
        parent[high] = low
    groups: NDArray[np.int64] = np.unique([*map(first, parent)], return_inverse=True)[1]
    return groups


def choose(has: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which groups to keep back. `has` (groups, classes + 1) is how many images of a group show a
    class; its last column, how many there are.
    """
    groups = has.shape[0]
    total, holders = has.sum(0), (has > 0).sum(0)
    back = np.maximum(SHARE * total, np.where(holders > 1, 1, 0))
    wanted = np.stack((total - back, back))  # of training and of validation
    part = np.full(groups, -1)
    order = np.random.default_rng(_SEED).permutation(groups)
    order = order[np.argsort(-has[order, -1], kind="stable")]  # the large ones first
    for column in [*np.argsort(holders[:-1], kind="stable").tolist(), -1]:
        left = order[(part[order] < 0) & (has[order, column] > 0)].tolist()
        for group in left:
            without = {0, 1} - {*part[has[:, column] > 0].tolist()}
            need = [(*wanted[side, [column, -1]], -side) for side in (0, 1)]
            part[group] = need.index(max(need))
            if group == left[-1] and len(without) == 1:  # the last that can bring the class there
                (part[group],) = without
            wanted[part[group]] -= has[group]
    if not part.any():
        part[order[-1]] = 1
    kept_back: NDArray[np.bool_] = part == 1
    return kept_back
