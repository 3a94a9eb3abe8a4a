"""Images that int8 is measured on: like those that the model will see."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from rfdetr.data.images import resize
from rfdetr.data.layout import find_splits, load_index
from rfdetr.errors import InputError
from rfdetr.inference.sources import Request, list_files, load_images, look_up


def calibration_images(
    source: Any, size: tuple[int, int], most: int, dataset_file: str = "roboflow"
) -> list[NDArray[np.uint8]]:
    """Up to `most` images (1, 3, *size) uint8, spread evenly over `source`: the train split of a
    data set's folder, or what `predict` takes, or an array (n, H, W, 3). Unreadable ones are left
    out, which a warning tells.
    """
    found = _all_of(source, dataset_file)
    chosen = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    request = Request(False, iter([found[place] for place in chosen]))
    images = [one.image for one in load_images(request, skip=True) if one.error is None]
    if not images:
        raise InputError("calibration_data: no image could be read")
    return [resize(image, size)[None].numpy() for image in images]


def _all_of(source: Any, dataset_file: str) -> Sequence[Any]:
    """Every image, with its place in what was given, as `load_images` takes them."""
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        folder = Path(source)
        try:
            return [("", path) for path in list_files(folder)]
        except InputError:  # no images in it: a data set's
            index = load_index(find_splits(folder, dataset_file), "train")
            return [("", index.path(image)) for image in range(len(index))]
    if isinstance(source, np.ndarray) and source.ndim == 4:
        source = list(source)
    return list(look_up(source).sources)


def data_of_run(weights: Path | None) -> tuple[Path, str]:
    """Folder and layout of the images that a run was trained on, by the config.yaml beside its
    `weights`. Raises `InputError` where they are not to be found.
    """
    wanted = "int8 needs calibration_data: a data set's folder or images like those to come"
    try:
        content = yaml.safe_load((weights or Path()).with_name("config.yaml").read_text())["train"]
        folder, layout = Path(content["dataset_dir"]), str(content["dataset_file"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{wanted} (there is no run's config.yaml beside the weights)") from error
    if not folder.is_dir():
        raise InputError(f"{wanted} (the run's own, {folder}, is not there)")
    return folder, layout
