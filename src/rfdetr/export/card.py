"""What is exported, and the page that says so to those who find the folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from rfdetr._version import __version__
from rfdetr.config import ModelConfig, variant_name
from rfdetr.models.detector import Detector

_FIGURES = {"mAP_50_95": "mAP 50:95", "mAP_50": "mAP 50", "F1": "F1"}
"""Keys of results.json, and what the page calls them."""


class Subject(NamedTuple):
    """A detector that leaves."""

    detector: Detector
    config: ModelConfig
    labels: Mapping[int, str]
    """Name of each logit that stands for a class; `predict` reports no other."""
    weights: Path | None = None
    """The file that the weights are of: beside it stand their figures."""
    notes: Any = None
    """The user's own, for the page."""

    @property
    def state(self) -> dict[str, Tensor]:
        """The network's tensors by our names."""
        return self.detector.state_dict()


def model_card(subject: Subject, use: str) -> str:
    """A README.md of Hugging Face: classes, resolution, figures, notes, and how to `use` it."""
    config, names = subject.config, list(subject.labels.values())
    has_masks = config.segmentation_head
    side = "{} x {} pixels".format(*config.input_size)
    parts = [
        f"---\nlibrary_name: transformers\n"
        f"pipeline_tag: {'image-segmentation' if has_masks else 'object-detection'}\n"
        "tags: [rf-detr]\n---\n"
        f"# RF-DETR {variant_name(config) or 'of own design'}, {len(names)} classes",
        f"Finds objects, {'with masks' if has_masks else 'with boxes'}. An image is stretched to "
        f"{side} (bilinear, antialiased). Written by rfdetr {__version__}.",
        "## Classes\n\n" + ", ".join(names),
    ]
    if rows := _figures(subject.weights):
        parts.append("## Figures\n\n" + "\n".join(rows))
    if subject.notes is not None:
        parts.append(f"## Notes\n\n{subject.notes}")
    return "\n\n".join([*parts, f"## Use\n\n```python\n{use}```\n"])


def _figures(weights: Path | None) -> list[str]:
    """The lines of a table, from the results.json of the run that left `weights`; else none."""
    results = weights and weights.with_name("results.json")
    if results is None or not results.is_file():
        return []
    try:
        content = json.loads(results.read_bytes())
        ours = weights is not None and content["weights"] == weights.name
    except (OSError, ValueError, KeyError, TypeError):  # another program's file
        return []
    if not ours:
        return []
    lines = ["| split | images | of | " + " | ".join(_FIGURES.values()) + " |"]
    lines.append("|---|---|---|" + "---|" * len(_FIGURES))
    for split, record in content["splits"].items():
        for kind, of in (("boxes", record), ("masks", record.get("masks"))):
            if of:
                figures = (of["overall"].get(name) for name in _FIGURES)
                shown = ("-" if value is None else f"{value:.3f}" for value in figures)
                lines.append(f"| {split} | {of['images']} | {kind} | {' | '.join(shown)} |")
    return lines
