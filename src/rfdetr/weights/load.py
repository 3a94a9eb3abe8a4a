"""Weights by name or path into a detector: copied where they fit, adapted, or refused."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfdetr.checks import check_path, nearest
from rfdetr.config import Architecture, ModelConfig, variant_name
from rfdetr.models.detector import Detector
from rfdetr.models.encoder import resample_positions
from rfdetr.weights.download import BUNDLED, PUBLISHED, fetch
from rfdetr.weights.identify import class_names, nearest_variant, read_architecture
from rfdetr.weights.names import CLASS_HEADS, UNUSED, from_published, our_name, to_published
from rfdetr.weights.reading import Checkpoint, CheckpointError, read_checkpoint

logger = logging.getLogger(__name__)

_MASKS = "segmentation_head."
_NO_PART = (UNUSED, "encoder.mask_token")  # published, but no part of the computation


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor, by published name."""

    loaded: tuple[str, ...]
    """Copied as they are."""
    adapted: dict[str, str]
    """Changed to fit: name -> what was done."""
    left: tuple[str, ...]
    """In the file, of no use to this model."""
    fresh: tuple[str, ...] = ()
    """Not in the file: the segmentation head of a model that starts from a detector's weights."""
    class_names: list[str] | None = None
    """The file's, in order of label, where it has one for each of its classes."""

    def changes(self) -> list[str]:
        """What was done to tensors that did not fit, and what stays random, with counts of tensors:
        ["position grid 24 x 24 -> 36 x 36 (1)"].
        """
        done = [f"{what} ({count})" for what, count in Counter(self.adapted.values()).items()]
        return [*done, f"segmentation head left random ({len(self.fresh)})"] if self.fresh else done

    def lines(self) -> tuple[str, ...]:
        """One line each for what was loaded, adapted and left, if anything was."""
        lines = [f"loaded {len(self.loaded)} tensors as they are"]
        if self.adapted:
            changes = ", ".join(replace(self, fresh=()).changes())
            lines.append(f"adapted {len(self.adapted)} tensors: {changes}")
        if self.left:
            listed = _listing(self.left, 3)
            lines.append(f"left {len(self.left)} tensors of the file unused: {listed}")
        return tuple(lines)

    def log(self, logger: logging.Logger, file: str) -> None:
        """Logs the lines, and as a warning what stays random. (Other classes than the file's are no
        warning: who asks for them is about to train them.)
        """
        for line in self.lines():
            logger.info("%s: %s", file, line)
        if self.fresh:
            logger.warning(
                "%s: %d tensors stay random, as the file is of a model without a segmentation "
                "head: %s; train before you trust a mask",
                *(file, len(self.fresh), _listing(self.fresh, 3)),
            )


def resolve_weights(name_or_path: str) -> Path:
    """The file that is meant: a bundled or published one by its bare name (downloaded once), else a
    path.

    A file of your own that bears a published name is reached as "./rf-detr-nano.pth". Raises
    `FileNotFoundError`, or `DownloadError` for a published file that is not to be had.
    """
    if name_or_path in PUBLISHED:
        return fetch(name_or_path)
    if name_or_path in BUNDLED:
        path = Path(str(resources.files("rfdetr.weights").joinpath(name_or_path)))
        problem = f"this installation lacks its bundled weights {path}"
        hint = "install it again, or pass pretrain_weights=None for random weights"
    else:
        path = check_path("the weights' name or path", name_or_path)
        problem = f"there is no weights file {path.absolute()}"
        known = sorted({*PUBLISHED, *BUNDLED})
        near = nearest(name_or_path, known)
        hint = f"did you mean {near!r}?" if near else f"weights known by name: {', '.join(known)}"
    if not path.exists():
        raise FileNotFoundError(f"{problem}; {hint}")
    return path


def open_weights(name_or_path: str, first_class: int | None = None) -> Checkpoint:
    """The checkpoint that `resolve_weights` finds, as `read_checkpoint` reads it."""
    return read_checkpoint(resolve_weights(name_or_path), first_class)


def load_pretrained(
    detector: Detector, config: ModelConfig, checkpoint: Checkpoint | None = None
) -> LoadReport | None:
    """Loads `checkpoint`, or else the file that `config.pretrain_weights` names, into `detector`
    and logs what became of its tensors. None: there is neither, and the weights stay random.
    """
    if checkpoint is None:
        if config.pretrain_weights is None:
            return None
        checkpoint = open_weights(config.pretrain_weights)
    report = load_weights(detector, checkpoint.model, config, str(checkpoint.path))
    report.log(logger, checkpoint.path.name)
    return replace(report, class_names=class_names(checkpoint))


def load_weights(
    detector: Detector,
    published: Mapping[str, Tensor],
    config: Architecture,
    source: str = "the checkpoint",
) -> LoadReport:
    """Copies tensors with published names into the detector, in its parameters' dtype.

    The class heads take the rows of another class count, repeated; the position grid is resampled;
    of the query groups, and of each group's queries, the first are kept; a segmentation head that
    the file has nothing of stays as it is. Raises `CheckpointError` for all else, with the detector
    unchanged.
    """
    known = read_architecture(published, source)
    found, wanted = nearest_variant(known), variant_name(config)
    if found not in (None, wanted):  # the likeliest reason not to fit
        source += f" (variant {found!r}, where the model is {wanted or 'of your own design'!r})"
    for field, what, fields in (
        ("num_queries", "queries per group", "num_queries (and num_select)"),
        ("group_detr", "query groups", "group_detr"),
    ):
        have, want = known[field], getattr(config, field)
        if have < want:  # queries cannot be made up
            text = f"{source} has {have} {what}, the model wants {field}={want}"
            raise CheckpointError(f"{text}; set {fields} to at most {have}")

    expected = to_published(detector.state_dict())
    fitted: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    for name, want in expected.items():
        if name in published and name != UNUSED:
            fitted[name], change = _fit(name, published[name], want, known, config)
            adapted |= {name: change} if change else {}
    lacking = [name for name in expected if name not in fitted and not _is_spare(name, config)]
    fresh = [] if known["segmentation_head"] else [n for n in lacking if n.startswith(_MASKS)]
    left = [name for name in published if name not in expected]
    problems = {
        "missing": [name for name in lacking if name not in fresh],
        "unexpected": [name for name in left if not _is_spare(name, config)],
        "of another shape": [
            f"{name} (file {_shape(published[name])}, model {_shape(expected[name])})"
            for name, tensor in fitted.items()
            if tensor.shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        details = [f"{len(x)} {kind}: {_listing(x, 10)}" for kind, x in problems.items() if x]
        raise CheckpointError(f"{source} does not fit this model; tensors {'; '.join(details)}")
    detector.load_state_dict(from_published(expected | fitted))
    loaded = tuple(name for name in fitted if name not in adapted)
    return LoadReport(loaded, adapted, tuple(left), tuple(fresh))


def _fit(
    name: str, have: Tensor, want: Tensor, known: Mapping[str, Any], config: Architecture
) -> tuple[Tensor, str]:
    """A tensor of the file in the shape of the model's `want`, and what was done to it; as it is,
    and "", where it fits or no way leads there. `known` is the file's architecture.
    """
    ours = our_name(name)
    if have.dim() != want.dim() or not have.numel():
        return have, ""
    if ours in ("query_content", "query_boxes"):
        there = known["group_detr"], known["num_queries"]
        here = config.group_detr, config.num_queries
        if there != here and len(have) == there[0] * there[1]:
            rows = have.reshape(*there, -1)[: here[0], : here[1]].flatten(0, 1)
            return rows, "queries {} x {} -> {} x {}".format(*there, *here)
    elif have.shape == want.shape:
        return have, ""
    elif CLASS_HEADS.fullmatch(name) and have.shape[1:] == want.shape[1:]:
        rows = have[torch.arange(len(want)) % len(have)]
        return rows, f"class head {len(have)} -> {len(want)} logits, to be trained"
    elif ours == "encoder.position_embeddings" and have.shape[2] == want.shape[2]:
        old, new = (math.isqrt(tensor.shape[1] - 1) for tensor in (have, want))
        if have.shape[1] == 1 + old**2:
            token, cells = have[:, :1].float(), have[:, 1:].float().reshape(1, old, old, -1)
            rows = torch.cat([token, resample_positions(cells, (new, new)).flatten(1, 2)], dim=1)
            return rows, f"position grid {old} x {old} -> {new} x {new}"
    return have, ""


def _is_spare(published: str, config: Architecture) -> bool:
    """Whether a tensor is of no use to the model: of a query group past its own, or of none."""
    name = our_name(published)
    group = re.match(r"proposals\.\w+\.(\d+)\.", name)
    return name in _NO_PART or (group is not None and int(group[1]) >= config.group_detr)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listing(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
