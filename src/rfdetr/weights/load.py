"""Weights by name or path into a detector: copied where they fit, adapted, or refused."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfdetr.checks import check_path, nearest
from rfdetr.config import Architecture, ModelConfig, variant_name
from rfdetr.models.detector import Detector
from rfdetr.models.encoder import resize_positions
from rfdetr.weights.download import BUNDLED, PUBLISHED, fetch
from rfdetr.weights.identify import class_names as names_in
from rfdetr.weights.identify import logit_names, nearest_variant, read_architecture
from rfdetr.weights.labels import logits_by_name
from rfdetr.weights.names import CLASS_HEADS, UNUSED, from_published, our_name, to_published
from rfdetr.weights.reading import Checkpoint, CheckpointError, read_checkpoint

logger = logging.getLogger(__name__)

_MASKS = "segmentation_head."
_NO_PART = (UNUSED, "encoder.mask_token")  # published, but no part of the computation
_NOISE = 0.01  # of a tensor's spread: repeated queries begin alike, and not the same


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
    originals: dict[str, Tensor] = field(default_factory=dict)
    """What was adapted as the file has it (of queries, the groups kept): training fits it again, to
    its data and from its seed.
    """
    new_queries: int = 0
    """Queries per group that the file does not have: copies of its own, with noise."""
    class_names: list[str] | None = None
    """The file's, in order of label, where it has one for each of its classes."""
    file: Path | None = None
    """Where the tensors come from, where that is a file."""

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
        """Logs the lines, and as warnings what stays random and what is made up. (Other classes
        than the file's are no warning: who asks for them is about to train them.)
        """
        for line in self.lines():
            logger.info("%s: %s", file, line)
        if self.fresh:
            logger.warning(
                "%s: %d tensors stay random, as the file is of a model without a segmentation "
                "head: %s; train before you trust a mask",
                *(file, len(self.fresh), _listing(self.fresh, 3)),
            )
        if self.new_queries:
            told = "%s: %d queries of each group repeat the file's, with a little noise, as "
            told += "num_queries is above the file's; train before you trust their detections"
            logger.warning(told, file, self.new_queries)


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
    detector: Detector,
    config: ModelConfig,
    checkpoint: Checkpoint | None = None,
    class_names: Sequence[str] | None = None,
) -> LoadReport | None:
    """`load_checkpoint` of `checkpoint`, or else of the file that `config.pretrain_weights` names;
    logs what became of its tensors. None: there is neither, and the weights stay random.
    """
    if checkpoint is None:
        if config.pretrain_weights is None:
            return None
        checkpoint = open_weights(config.pretrain_weights)
    report = load_checkpoint(detector, config, checkpoint, class_names)
    report.log(logger, checkpoint.path.name)
    return report


def load_checkpoint(
    detector: Detector,
    config: ModelConfig,
    checkpoint: Checkpoint,
    class_names: Sequence[str] | None = None,
) -> LoadReport:
    """`load_weights` of a file's tensors. `class_names` are the model's, by label: a class of a
    name that the file knows starts from that class of the file.
    """
    labels = logit_names(checkpoint)
    logits = logits_by_name(class_names or (), labels)
    if logits:  # then the logit of no class is that of no class too, which COCO's files have first
        logits[config.num_classes] = min({*range(len(labels) + 1)} - {*labels})
    report = load_weights(detector, checkpoint.model, config, str(checkpoint.path), logits)
    return replace(report, class_names=names_in(checkpoint), file=checkpoint.path)


def load_weights(
    detector: Detector,
    published: Mapping[str, Tensor],
    config: Architecture,
    source: str = "the checkpoint",
    logits: Mapping[int, int] | None = None,
) -> LoadReport:
    """Copies tensors with published names into the detector, in its parameters' dtype.

    The class heads take the rows that `logits` (the model's: the file's) names, else those of the
    file in its order, repeated; the position grid is resampled; of the query groups and the decoder
    layers the first are kept; of each group's queries too, or they are repeated, with noise from
    torch's generator; a segmentation head that the file has nothing of stays as it is. Raises
    `CheckpointError` for all else, with the detector unchanged.
    """
    known = read_architecture(published, source)
    found, wanted = nearest_variant(known), variant_name(config)
    if found not in (None, wanted):  # the likeliest reason not to fit
        source += f" (variant {found!r}, where the model is {wanted or 'of your own design'!r})"
    groups = known["group_detr"]
    if groups < config.group_detr:  # groups cannot be made up
        wanted = f"the model wants group_detr={config.group_detr}"
        told = f"{source} has {groups} query groups, {wanted}"
        raise CheckpointError(f"{told}; set group_detr to at most {groups}")

    expected = to_published(detector.state_dict())
    fitted: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    for name, want in expected.items():
        if name in published and name != UNUSED:
            have = published[name]
            fitted[name], change = _fit(name, have, want, known, config, logits or {})
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
    kept = {name: config.group_detr * known["num_queries"] for name in adapted if _is_query(name)}
    originals = {name: published[name][: kept.get(name)].clone() for name in adapted}
    more = max(config.num_queries - known["num_queries"], 0)
    return LoadReport(loaded, adapted, tuple(left), tuple(fresh), originals, more)


def _fit(
    name: str,
    have: Tensor,
    want: Tensor,
    known: Mapping[str, Any],
    config: Architecture,
    logits: Mapping[int, int],
) -> tuple[Tensor, str]:
    """A tensor of the file in the shape of the model's `want`, and what was done to it; as it is,
    and "", where it fits or no way leads there. `known` is the file's architecture.
    """
    ours = our_name(name)
    if have.dim() != want.dim() or not have.numel():
        return have, ""
    if _is_query(name):
        there = known["group_detr"], known["num_queries"]
        here = config.group_detr, config.num_queries
        if there != here and len(have) == there[0] * there[1]:
            change = "queries {} x {} -> {} x {}".format(*there, *here)
            made_up = f", the last {here[1] - there[1]} of each group repeated with noise"
            rows = _resized_groups(have.reshape(*there, -1), *here)
            return rows, change + made_up * (here[1] > there[1])
    elif CLASS_HEADS.fullmatch(name) and have.shape[1:] == want.shape[1:]:
        found = [logits.get(logit, logit) % len(have) for logit in range(len(want))]
        if found != [*range(len(have))]:
            by_name = f"{len(logits) - 1} of {len(want) - 1} classes by name, "
            change = f"class head {len(have)} -> {len(want)} logits, {by_name * bool(logits)}"
            return have[found], f"{change}to be trained"
    elif have.shape == want.shape:
        return have, ""
    elif ours == "encoder.position_embeddings" and have.shape[2] == want.shape[2]:
        old, new = (math.isqrt(tensor.shape[1] - 1) for tensor in (have, want))
        if have.shape[1] == 1 + old**2:
            change = f"position grid {old} x {old} -> {new} x {new}"
            return resize_positions(have.float(), new), change
    return have, ""


def _resized_groups(rows: Tensor, groups: int, queries: int) -> Tensor:
    """Learned rows (groups, queries, width) of the file as (`groups` x `queries`, width): the first
    of each; rows beyond are the first again, with noise, so that no two of them start alike.
    """
    have = rows.shape[1]
    resized = rows[:groups, torch.arange(queries) % have]
    if queries > have:
        noise = torch.randn(groups, queries - have, rows.shape[2]) * rows.float().std() * _NOISE
        resized = resized.float()
        resized[:, have:] += noise
    return resized.flatten(0, 1)


def _is_query(published: str) -> bool:
    return our_name(published) in ("query_content", "query_boxes")


def _is_spare(published: str, config: Architecture) -> bool:
    """Whether a tensor is of no use to the model: of a query group past its own, of a decoder layer
    past its last, or of none. (Each layer's output is trained to be the heads' input.)
    """
    name = our_name(published)
    group = re.match(r"proposals\.\w+\.(\d+)\.", name)
    layer = re.match(r"(?:decoder\.layers|segmentation_head\.blocks)\.(\d+)\.", name)
    past_groups = group is not None and int(group[1]) >= config.group_detr
    past_layers = layer is not None and int(layer[1]) >= config.dec_layers
    return name in _NO_PART or past_groups or past_layers


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listing(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
