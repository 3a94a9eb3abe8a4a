"""What model a file holds: its configuration, from what the file says and, before that, from its
tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rfdetr.config import ENCODERS, VARIANTS, ConfigError, ModelConfig
from rfdetr.weights.labels import names_by_logit
from rfdetr.weights.reading import Checkpoint, CheckpointError

ENCODER = "backbone.0.encoder.encoder."
POSITIONS = f"{ENCODER}embeddings.position_embeddings"
REFERENCES, QUERIES = "refpoint_embed.weight", "query_feat.weight"
CLASS_HEAD = "class_embed.weight"
GROUPS = "transformer.enc_output."

_MUST_AGREE = (
    "encoder",
    "patch_size",
    "projector_scale",
    "hidden_dim",
    "dec_layers",
    "dim_feedforward",
    "segmentation_head",
)
IN_TENSORS = (*_MUST_AGREE, "positional_encoding_size", "num_queries", "group_detr", "num_classes")
"""Fields of `ModelConfig` that `read_architecture` tells."""
NOT_IN_TENSORS = (
    "out_feature_indexes",
    "num_windows",
    "resolution",
    "sa_nheads",
    "ca_nheads",
    "dec_n_points",
    "num_select",
    "mask_downsample_ratio",
)
_SCALE_OF_KERNEL = {
    2: "P3",
    3: "P5",
}  # side of the convolution that brings encoder outputs to a level


def config_from_checkpoint(checkpoint: Checkpoint) -> tuple[ModelConfig, list[str] | None]:
    """The configuration to build the file's model with, and its class names if it has one for each
    class.

    Tensors are believed first, then the file's `args`, then the published variant that is most
    alike; how and where the model is run (`device`, `amp`, ...) is never taken from a file.
    `pretrain_weights` becomes the file itself.
    """
    known = _told(checkpoint) | read_architecture(checkpoint.model, str(checkpoint.path))
    name = checkpoint.args.get("variant")
    if not isinstance(name, str) or name not in VARIANTS:
        name = nearest_variant(known)
    cls = VARIANTS[name] if name else ModelConfig
    lacking = [field for field in NOT_IN_TENSORS if field not in known]
    if name is None and lacking:
        raise CheckpointError(
            f"{checkpoint.path} is none of the variants {', '.join(VARIANTS)}, "
            f"and its 'args' do not tell {', '.join(lacking)}"
        )
    try:
        config = cls(**_with_resolution(known, cls), pretrain_weights=str(checkpoint.path))
    except ConfigError as error:
        reasons = str(error).replace("\n", "; ")
        raise CheckpointError(
            f"{checkpoint.path}: its tensors and 'args' give no possible model: {reasons}"
        ) from error
    return config, class_names(checkpoint)


def class_names(checkpoint: Checkpoint) -> list[str] | None:
    """The file's class names in order of label, if it has one for each class.

    COCO's published models number with gaps and so have no such list.
    """
    names = names_by_logit(checkpoint.args)
    return (
        list(names.values())
        if names and len(names) == len(checkpoint.model[CLASS_HEAD]) - 1
        else None
    )


def read_architecture(
    state: Mapping[str, Tensor], source: str = "the checkpoint"
) -> dict[str, Any]:
    """Fields of `ModelConfig` that the shapes of published tensors tell."""
    try:
        groups = count_blocks(state, GROUPS)
        width, _, _, patch = state[f"{ENCODER}embeddings.patch_embeddings.projection.weight"].shape
        rows, hidden = state[QUERIES].shape
        positions = state[POSITIONS].shape[1] - 1
        logits = state[CLASS_HEAD].shape[0]
        feedforward = state["transformer.decoder.layers.0.linear1.weight"].shape[0]
    except (LookupError, ValueError) as error:
        raise CheckpointError(
            f"{source} holds no RF-DETR detector: {error} is missing or misshapen"
        ) from error
    return {
        "encoder": _encoder_name(state, width, source),
        "patch_size": patch,
        "positional_encoding_size": math.isqrt(max(positions, 0)),
        "projector_scale": _projector_scale(state),
        "hidden_dim": hidden,
        "dec_layers": count_blocks(state, "transformer.decoder.layers."),
        "dim_feedforward": feedforward,
        "num_queries": rows // max(groups, 1),
        "group_detr": groups,
        "num_classes": logits - 1,
        "segmentation_head": any(name.startswith("segmentation_head.") for name in state),
    }


def nearest_variant(known: Mapping[str, Any]) -> str | None:
    """The variant of that structure with the most other fields alike, then the nearest grid; None
    if there is none.
    """

    def likeness(row: dict[str, Any]) -> tuple[int, int]:
        alike = sum(row[field] == value for field, value in known.items() if field != "num_classes")
        return alike, -abs(row["positional_encoding_size"] - known["positional_encoding_size"])

    rows = {name: _row(cls) for name, cls in VARIANTS.items()}
    fitting = [
        name
        for name, row in rows.items()
        if all(row[field] == known[field] for field in _MUST_AGREE)
    ]
    return max(fitting, key=lambda name: likeness(rows[name]), default=None)


def count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered blocks (0, 1, ...) the names under a prefix have."""
    return len({name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)})


def _row(cls: type[ModelConfig]) -> dict[str, Any]:
    config = cls()
    return {**config.model_dump(), "positional_encoding_size": config.position_grid}


def _told(checkpoint: Checkpoint) -> dict[str, Any]:
    told = {
        field: checkpoint.args[field]
        for field in NOT_IN_TENSORS
        if checkpoint.args.get(field) is not None
    }
    for field, value in told.items():
        kind = list if field == "out_feature_indexes" else int
        if not isinstance(value, kind):
            raise CheckpointError(
                f"{checkpoint.path}: 'args' has {field}={value!r}; expected type {kind.__name__}"
            )
    return told


def _with_resolution(known: dict[str, Any], cls: type[ModelConfig]) -> dict[str, Any]:
    """Adds a resolution where the file tells none, and leaves the position grid to follow from it
    where it does.
    """
    row = _row(cls)
    grid, patch = known["positional_encoding_size"], known["patch_size"]
    usual = grid == row["positional_encoding_size"] or grid % (
        known.get("num_windows") or row["num_windows"]
    )
    resolution = known.get("resolution", row["resolution"] if usual else grid * patch)
    follows = (
        cls.model_fields["positional_encoding_size"].default is None and resolution == grid * patch
    )
    return {
        **known,
        "resolution": resolution,
        "positional_encoding_size": None if follows else grid,
    }


def _encoder_name(state: Mapping[str, Tensor], width: int, source: str) -> str:
    depth = count_blocks(state, f"{ENCODER}encoder.layer.")
    size = next(
        (size for size, dims in ENCODERS.items() if (dims.width, dims.depth) == (width, depth)),
        None,
    )
    if size is None:
        known = ", ".join(
            f"{size} ({dims.width} x {dims.depth})" for size, dims in ENCODERS.items()
        )
        raise CheckpointError(
            f"{source} has an encoder of width {width} and {depth} blocks; known are {known}"
        )
    return f"dinov2_{'registers_' if f'{ENCODER}embeddings.register_tokens' in state else ''}windowed_{size}"


def _projector_scale(state: Mapping[str, Tensor]) -> list[str]:
    sampling = re.compile(
        r"backbone\.0\.projector\.stages_sampling\.(\d+)\.0\.0\.(?:conv\.)?weight"
    )
    kernels = {
        int(found[1]): tensor.shape[-1]
        for name, tensor in state.items()
        if (found := sampling.fullmatch(name))
    }
    levels = count_blocks(state, "backbone.0.projector.stages.")
    return [_SCALE_OF_KERNEL.get(kernels.get(level, 1), "P4") for level in range(levels)]
