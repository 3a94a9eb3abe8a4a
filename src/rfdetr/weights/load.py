"""Weights by name or path: where they are, and loading them into a detector."""

from __future__ import annotations

import difflib
import logging
import os
from dataclasses import replace
from importlib import resources
from pathlib import Path

from rfdetr.checks import check_path
from rfdetr.config import ModelConfig
from rfdetr.models.detector import Detector
from rfdetr.weights.adapt import LoadReport, load_weights
from rfdetr.weights.download import fetch
from rfdetr.weights.identify import class_names
from rfdetr.weights.reading import Checkpoint, read_checkpoint
from rfdetr.weights.registry import BUNDLED, PUBLISHED

__all__ = ["load_pretrained", "load_weights", "open_weights", "resolve_weights"]

logger = logging.getLogger(__name__)


def resolve_weights(name_or_path: str) -> Path:
    """The file that is meant: a bundled or published one by its bare name (downloaded once), else a
    path.

    A file of your own that bears a published name is reached as "./rf-detr-nano.pth". Raises
    `FileNotFoundError`, or `DownloadError` for a published file that is not to be had.
    """
    if name_or_path in BUNDLED:
        path = Path(str(resources.files("rfdetr.weights").joinpath(name_or_path)))
        if not path.is_file():
            raise FileNotFoundError(
                f"this installation lacks its bundled weights {path}; install it again, or pass pretrain_weights=None "
                "for random weights"
            )
        return path
    if name_or_path in PUBLISHED:
        return fetch(name_or_path)
    path = check_path("the weights' name or path", name_or_path)
    if os.path.exists(path):
        return path
    names = sorted({*PUBLISHED, *BUNDLED})
    near = difflib.get_close_matches(name_or_path, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"weights known by name: {', '.join(names)}"
    raise FileNotFoundError(f"there is no weights file {path.absolute()}; {hint}")


def open_weights(name_or_path: str, first_class: int | None = None) -> Checkpoint:
    """The content of a file of weights, by name or path."""
    return read_checkpoint(resolve_weights(name_or_path), first_class)


def load_pretrained(
    detector: Detector, model_config: ModelConfig, checkpoint: Checkpoint | None = None
) -> LoadReport | None:
    """Loads `checkpoint`, or else `model_config.pretrain_weights`, into the detector and logs what
    happened; None for random weights.
    """
    if checkpoint is None and model_config.pretrain_weights is not None:
        checkpoint = open_weights(model_config.pretrain_weights)
    if checkpoint is None:
        return None
    path = checkpoint.path
    report = load_weights(detector, checkpoint.model, model_config, source=str(path))
    report.log(logger, path.name)
    return replace(report, class_names=class_names(checkpoint))
