"""Which validation images stand for all in the first epochs of a run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rfdetr.data.dataset import keyed_generator
from rfdetr.data.index import DatasetIndex

_KEY = 2**31  # apart from the epochs, whose numbers key the order of training images


def stratified_share(index: DatasetIndex, share: float, seed: int) -> NDArray[np.int64]:
    """Numbers, ascending, of about `share` of the images, the same for the same seed.

    An image belongs with those whose rarest class is its own rarest one, or with those without an
    object. Of each such group there is the share, and one image at least: so no class is left out.
    """
    image = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    shown = np.unique(np.stack([index.labels, image]), axis=1)  # a class once for each image
    images_of = np.bincount(shown[0], minlength=len(index.class_names))
    rank = np.argsort(np.argsort(images_of, kind="stable"), kind="stable")  # 0: the rarest class
    group = np.full(len(index), len(rank))
    np.minimum.at(group, shown[1], rank[shown[0]])
    order = keyed_generator(seed, _KEY).permutation(len(index))
    order = order[np.argsort(group[order], kind="stable")]
    counts = np.bincount(group)
    place = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    taken: NDArray[np.int64] = np.sort(order[place < np.ceil(share * counts[group[order]])])
    return taken
