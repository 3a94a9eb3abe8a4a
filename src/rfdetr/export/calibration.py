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
from rfdetr.data.sources import Request, list_files, load_images, look_up
from rfdetr.errors import InputError


def calibration_images(
    source: Any, size: tuple[int, int], most: int, dataset_file: str = "roboflow"
) -> list[NDArray[np.uint8]]:
    """Up to `most` images (1, 3, *size) uint8, spread evenly over `source`: the train split of a
    data set's folder, or what `predict` takes, or an array (n, H, W, 3). Unreadable ones are left
    out, which a warning tells.
    """
    if not (found := _all_of(source, dataset_file)):
        raise InputError("calibration_data: there are no images in it")
    chosen = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    request = Request(False, iter([found[place] for place in chosen]))
    loaded = [*load_images(request, skip=True)]
    images = [resize(one.image, size)[None].numpy() for one in loaded if one.error is None]
    if not images:
        raise InputError(f"calibration_data: no image could be read: {loaded[0].error}")
    return images


def _all_of(source: Any, dataset_file: str) -> Sequence[Any]:
    """Every image, with its place in what was given, as `load_images` takes them."""
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        folder = Path(source)
        try:
            return [("", path) for path in list_files(folder)]
        except InputError:  # no images in it: a data set's
            index = load_index(find_splits(folder, dataset_file), "train")
            return [("", index.file(image)) for image in range(len(index))]
    if isinstance(source, np.ndarray) and source.ndim == 4:
        source = list(source)
    return list(look_up(source).sources)


def data_of_run(weights: Path | None) -> dict[str, Any]:
    """dataset_dir, dataset_file, class_names and classes of a run, by the config.yaml beside its
    `weights`. Raises `InputError` where they, or the folder, are not to be found.
    """
    if weights is None or not (path := weights.with_name("config.yaml")).is_file():
        raise InputError("no run's config.yaml, which names a data set, is beside the weights")
    try:
        settings = yaml.safe_load(path.read_bytes())["train"]
        found = {name: settings[name] for name in ("dataset_dir", "dataset_file", "class_names")}
        found["classes"] = settings.get("classes")
        if isinstance(found["dataset_dir"], dict):  # of several, the first
            found["dataset_dir"] = next(iter(found["dataset_dir"]))
        is_there = Path(found["dataset_dir"]).is_dir()
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not the config.yaml of a run") from error
    if not is_there:
        raise InputError(f"{found['dataset_dir']}: no such folder; the run was trained on it")
    return found
