"""Weights of a file into a detector: what fits is copied, what can be adapted is, anything else is
an error.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rfdetr.config import ModelConfig, variant_name
from rfdetr.models.detector import Detector
from rfdetr.weights.identify import (
    GROUPS,
    POSITIONS,
    QUERIES,
    REFERENCES,
    count_blocks,
    nearest_variant,
    read_architecture,
)
from rfdetr.weights.labels import CLASS_HEADS
from rfdetr.weights.names import from_published, to_published
from rfdetr.weights.reading import IGNORED_TENSORS, CheckpointError

_GROUP = re.compile(r"transformer\.enc_\w+\.(\d+)\.")
_MASKS = "segmentation_head."
_OPTIONAL = (*IGNORED_TENSORS, "mask_token")  # published, but no part of the computation


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
    """The file's, one for each of its classes."""

    def changes(self) -> list[str]:
        """What was done to tensors of the file that did not fit, and what stays random, with counts
        of tensors.
        """
        done = [f"{what} ({count})" for what, count in Counter(self.adapted.values()).items()]
        return [*done, f"segmentation head left random ({len(self.fresh)})"] if self.fresh else done

    def lines(self) -> tuple[str, ...]:
        """One line each for what was loaded, adapted and left, if anything was."""
        changes = ", ".join(
            f"{what} ({count})" for what, count in Counter(self.adapted.values()).items()
        )
        return (
            f"loaded {len(self.loaded)} tensors as they are",
            *([f"adapted {len(self.adapted)} tensors: {changes}"] if changes else []),
            *(
                [f"left {len(self.left)} tensors of the file unused: {_listing(self.left, 3)}"]
                if self.left
                else []
            ),
        )

    def log(self, logger: logging.Logger, file: str) -> None:
        """A line each for what was loaded, adapted and left; a warning of what is random, as no
        file has trained it.

        Other classes than the file's are no warning: who asks for them is about to train them.
        """
        for line in self.lines():
            logger.info("%s: %s", file, line)
        if self.fresh:
            logger.warning(
                "%s: %d tensors stay random, as the file is of a model without a segmentation head: %s; train before "
                "you trust a mask", file, len(self.fresh), _listing(self.fresh, 3),
            )  # fmt: skip


def load_weights(
    detector: Detector,
    published: Mapping[str, Tensor],
    config: ModelConfig,
    source: str = "the checkpoint",
) -> LoadReport:
    """Copies published tensors into the detector, in its parameters' dtype.

    The class heads take the rows of another class count, repeated; the position grid is resampled;
    of the query groups, and of each group's queries, the first are kept; a segmentation head that
    the file has nothing of stays as it is. Raises `CheckpointError` for all else, with the detector
    unchanged.
    """
    expected = to_published(detector.state_dict())
    source = _with_variant(source, published, config)
    queries = _query_layout(published, config, source)
    fitted: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    for name, want in expected.items():
        if name not in published or name in IGNORED_TENSORS:
            continue
        fitted[name], change = _fit(name, published[name], want, queries)
        if change:
            adapted[name] = change
    heads = [name for name in expected if name.startswith(_MASKS)]
    fresh = [] if any(name.startswith(_MASKS) for name in published) else heads
    covered = {*fitted, *fresh}
    left = [name for name in published if name not in expected]
    problems = {
        "missing": [
            name for name in expected if name not in covered and not name.endswith(_OPTIONAL)
        ],
        "unexpected": [
            name
            for name in left
            if not name.endswith(_OPTIONAL) and _group_of(name) < config.group_detr
        ],
        "of another shape": [
            f"{name} (file {_shape(published[name])}, model {_shape(expected[name])})"
            for name, tensor in fitted.items()
            if tensor.shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        details = "; ".join(
            f"{len(names)} {kind}: {_listing(names, 10)}"
            for kind, names in problems.items()
            if names
        )
        raise CheckpointError(f"{source} does not fit this model; tensors {details}")
    detector.load_state_dict(from_published(expected | fitted))
    loaded = tuple(name for name in expected if name in fitted and name not in adapted)
    return LoadReport(loaded, adapted, tuple(left), tuple(fresh))


class _QueryLayout(NamedTuple):
    """Rows of the query tensors, group by group: what the file has and what the model takes of it."""

    file_groups: int
    file_queries: int
    groups: int
    queries: int


def _query_layout(
    published: Mapping[str, Tensor], config: ModelConfig, source: str
) -> _QueryLayout:
    """Raises `CheckpointError` where the file has fewer than the model wants: queries cannot be
    made up.
    """
    groups = count_blocks(published, GROUPS)
    if not groups or QUERIES not in published or not published[QUERIES].dim():
        raise CheckpointError(
            f"{source} holds no RF-DETR detector: tensors {GROUPS}* and {QUERIES} are needed"
        )
    layout = _QueryLayout(
        groups, len(published[QUERIES]) // groups, config.group_detr, config.num_queries
    )
    if layout.file_queries < layout.queries:
        raise CheckpointError(
            f"{source} has {layout.file_queries} queries per group, the model wants num_queries={layout.queries}; "
            f"set num_queries (and num_select) to at most {layout.file_queries}"
        )
    if layout.file_groups < layout.groups:
        raise CheckpointError(
            f"{source} has {layout.file_groups} query groups, the model wants group_detr={layout.groups}; "
            f"set group_detr to at most {layout.file_groups}"
        )
    return layout


def _fit(name: str, have: Tensor, want: Tensor, queries: _QueryLayout) -> tuple[Tensor, str]:
    """The tensor in the wanted shape, where there is a way to it, and what was done ("" for
    nothing).
    """
    if have.dim() != want.dim() or not len(have):
        return have, ""
    if name in (QUERIES, REFERENCES):
        file_groups, file_queries, groups, kept = queries
        if (file_groups, file_queries) == (groups, kept) or len(have) != file_groups * file_queries:
            return have, ""
        rows = have.reshape(file_groups, file_queries, -1)[:groups, :kept].flatten(0, 1)
        return rows, f"queries {file_groups} x {file_queries} -> {groups} x {kept}"
    if have.shape == want.shape:
        return have, ""
    if CLASS_HEADS.fullmatch(name) and have.shape[1:] == want.shape[1:]:
        rows = have[torch.arange(len(want)) % len(have)]
        return rows, f"class head {len(have)} -> {len(want)} logits, to be trained"
    if name == POSITIONS and have.shape[2] == want.shape[2]:
        old, new = (round((tensor.shape[1] - 1) ** 0.5) for tensor in (have, want))
        return resample_positions(have, new), f"position grid {old} x {old} -> {new} x {new}"
    return have, ""


def resample_positions(embeddings: Tensor, grid: int) -> Tensor:
    """Position embeddings (1, 1 + g*g, D) as float32 for another square grid; the class token's row
    stays.
    """
    old = round((embeddings.shape[1] - 1) ** 0.5)
    token, cells = embeddings[:, :1].float(), embeddings[:, 1:].float()
    maps = cells.transpose(1, 2).reshape(1, -1, old, old)  # (1, D, g, g)
    maps = functional.interpolate(
        maps, size=(grid, grid), mode="bicubic", align_corners=False, antialias=True
    )
    return torch.cat([token, maps.flatten(2).transpose(1, 2)], dim=1)


def _with_variant(source: str, published: Mapping[str, Tensor], config: ModelConfig) -> str:
    """Names the variant that a file is, where that is another than the model: the likeliest reason
    not to fit.
    """
    wanted = variant_name(config)
    try:
        found = nearest_variant(read_architecture(published, source))
    except CheckpointError:
        return source
    if found is None or found == wanted:
        return source
    return f"{source} (variant {found!r}, where the model is {wanted or 'of your own design'!r})"


def _group_of(name: str) -> int:
    found = _GROUP.match(name)
    return int(found[1]) if found else -1


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listing(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
