"""What model a file holds: its configuration, from its tensors and from what the file says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rfdetr.config import ENCODERS, VARIANTS, Architecture, ConfigError, ModelConfig
from rfdetr.weights.labels import known_labels, names_by_logit
from rfdetr.weights.names import CLASS_HEAD, our_name
from rfdetr.weights.reading import Checkpoint, CheckpointError

SIDES = "input_shape"
"""Of `args`, for an input that is no square: [height, width]. "resolution" is then the side of a
square of as many pixels, which other programs ask for.
"""
_STRUCTURE = (
    *("encoder", "patch_size", "projector_scale", "hidden_dim", "dec_layers", "dim_feedforward"),
    "segmentation_head",
)
IN_TENSORS = (*_STRUCTURE, "positional_encoding_size", "num_queries", "group_detr", "num_classes")
"""Fields of `Architecture` that `read_architecture` tells."""
NOT_IN_TENSORS = tuple(name for name in Architecture.model_fields if name not in IN_TENSORS)


def config_from_checkpoint(checkpoint: Checkpoint) -> tuple[ModelConfig, list[str] | None]:
    """The configuration to build the file's model with, and its class names if it has one for each
    class.

    What the tensors tell is believed first, then the file's `args`, then the defaults of its
    variant: the one that the file names (`variant` here, `model_name` in files of the published
    package), else the one of its structure. How and where a model is run (`device`, `amp`, ...) is
    never taken from a file; `pretrain_weights` becomes the file itself.
    """
    path, args = checkpoint.path, checkpoint.args
    known = read_architecture(checkpoint.model, str(path))
    if known["encoder"] not in ENCODERS:
        sizes = ", ".join(f"{name} ({x.width} x {x.depth})" for name, x in ENCODERS.items())
        raise CheckpointError(f"{path} has an encoder {known['encoder']}; known are {sizes}")
    for field in NOT_IN_TENSORS:
        value = resolution_in(args) if field == "resolution" else args.get(field)
        sides = field == "resolution" and value is args.get(SIDES)
        kind = list if field == "out_feature_indexes" or sides else int
        if value is None:
            continue
        if not isinstance(value, kind):
            found = f"{field}={value!r}; expected type {kind.__name__}"
            raise CheckpointError(f"{path}: 'args' has {found}")
        known[field] = value
    name, public_class = args.get("variant"), f"{checkpoint.extra.get('model_name')}Config"
    named = [key for key, cls in VARIANTS.items() if key == name or cls.__name__ == public_class]
    variant = named[0] if named else nearest_variant(known)
    lacking = [field for field in NOT_IN_TENSORS if field not in known]
    if variant is None and lacking:
        raise CheckpointError(
            f"{path} is none of the variants {', '.join(VARIANTS)}, and its 'args' do not tell "
            f"{', '.join(lacking)}"
        )
    cls = VARIANTS[variant] if variant else ModelConfig
    usual, grid, patch = cls(), known["positional_encoding_size"], known["patch_size"]
    if "resolution" not in known:  # another grid than the variant's is of another resolution
        divides = grid % (known.get("num_windows") or usual.num_windows) == 0
        other = grid != usual.position_grid and divides
        known["resolution"] = grid * patch if other else usual.resolution
    try:
        config = cls(**known, pretrain_weights=str(path))
        if usual.positional_encoding_size is None and config.square == grid * patch:
            config.positional_encoding_size = None  # so that it follows a change of resolution
        return config, class_names(checkpoint)
    except ConfigError as error:
        told = f"{path}: its tensors and 'args' give no possible model: {error}"
        raise CheckpointError(told.replace("\n", "; ")) from error


def resolution_in(args: Mapping[str, Any]) -> Any:
    """The resolution that `args` tell: height and width, else the side of the square; or None."""
    return args.get("resolution") if args.get(SIDES) is None else args[SIDES]


def class_names(checkpoint: Checkpoint) -> list[str] | None:
    """The file's class names in order of label, if it has one for each class.

    COCO's published models number with gaps and so have no such list.
    """
    names = names_by_logit(checkpoint.args) or {}
    fits = names and len(names) == len(checkpoint.model[CLASS_HEAD]) - 1
    return list(names.values()) if fits else None


def logit_names(checkpoint: Checkpoint) -> dict[int, str]:
    """The names of the file's logits, as far as they are known."""
    num_classes = read_architecture(checkpoint.model, str(checkpoint.path))["num_classes"]
    return known_labels(class_names(checkpoint), num_classes)


def read_architecture(
    state: Mapping[str, Tensor], source: str = "the checkpoint"
) -> dict[str, Any]:
    """Fields of `Architecture` that the shapes of published tensors tell.

    `encoder` is "of width 24 and 2 blocks" where that is none of `ENCODERS`.
    """
    shapes = {our_name(name): tuple(tensor.shape) for name, tensor in state.items()}

    def count(prefix: str) -> int:
        numbered = (name[len(prefix) :] for name in shapes if name.startswith(prefix))
        return len({name.partition(".")[0] for name in numbered})

    groups, blocks = count("proposals.linear."), count("encoder.blocks.")
    try:
        width, _, _, patch = shapes["encoder.patch_embed.weight"]
        rows, _ = shapes["query_content"]
        hidden, _ = shapes["proposals.linear.0.weight"]  # of the first query group
        positions = shapes["encoder.position_embeddings"][1] - 1
        logits = shapes["class_head.weight"][0]
        feedforward = shapes["decoder.layers.0.linear1.weight"][0]
    except (LookupError, ValueError) as error:
        reason = f"{error} is missing or misshapen"
        raise CheckpointError(f"{source} holds no RF-DETR detector: {reason}") from error
    sizes = (width, blocks, "encoder.register_tokens" in shapes)
    encoders = {(x.width, x.depth, x.registers > 0): name for name, x in ENCODERS.items()}
    levels = [f"projector.levels.{i}.resample.0" for i in range(count("projector.levels."))]
    return {
        "encoder": encoders.get(sizes, f"of width {width} and {blocks} blocks"),
        "patch_size": patch,
        "positional_encoding_size": math.isqrt(max(positions, 0)),
        "projector_scale": [
            "P3" if f"{x}.weight" in shapes else "P5" if f"{x}.conv.weight" in shapes else "P4"
            for x in levels
        ],
        "hidden_dim": hidden,
        "dec_layers": count("decoder.layers."),
        "dim_feedforward": feedforward,
        "num_queries": rows // groups,
        "group_detr": groups,
        "num_classes": logits - 1,
        "segmentation_head": any(name.startswith("segmentation_head.") for name in shapes),
    }


def nearest_variant(known: Mapping[str, Any]) -> str | None:
    """The variant of a structure (from `read_architecture`) and of the nearest grid, if any."""
    configs = {name: cls() for name, cls in VARIANTS.items()}
    distances = {
        name: abs(config.position_grid - known["positional_encoding_size"])
        for name, config in configs.items()
        if all(getattr(config, field) == known[field] for field in _STRUCTURE)
    }
    return min(distances, key=lambda name: distances[name], default=None)
