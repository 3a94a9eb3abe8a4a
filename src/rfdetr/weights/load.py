"""Weights by name or path: where they are, and loading them into a detector."""

from __future__ import annotations

import difflib
import logging
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rfdetr.checks import check_path
from rfdetr.config import ModelConfig
from rfdetr.models.detector import Detector
from rfdetr.weights.adapt import LoadReport, load_weights
from rfdetr.weights.download import fetch
from rfdetr.weights.identify import class_names
from rfdetr.weights.reading import read_checkpoint
from rfdetr.weights.registry import BUNDLED, PUBLISHED

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointMeta:
    """What was loaded: the file, what it says of itself, and what became of its tensors."""

    path: Path
    args: dict[str, Any]
    class_names: list[str] | None
    report: LoadReport


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


def load_pretrained(detector: Detector, model_config: ModelConfig) -> CheckpointMeta | None:
    """Loads `model_config.pretrain_weights` into the detector and logs what happened; None for
    random weights.
    """
    if model_config.pretrain_weights is None:
        return None
    path = resolve_weights(model_config.pretrain_weights)
    checkpoint = read_checkpoint(path)
    report = load_weights(detector, checkpoint.model, model_config, source=str(path))
    report.log(logger, path.name)
    return CheckpointMeta(path, checkpoint.args, class_names(checkpoint), report)
