"""Published tensor names to ours and back. This table is the only place that knows the published
ones.

Three layouts differ besides names: query, key and value of the encoder are one matrix here; the
encoder stage's layers are stacked over the query groups; the published files carry an empty buffer
that means nothing here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from rfdetr.errors import InputError
from rfdetr.weights.adapters import merge_adapters

_UNUSED = "_kp_active_mask"
_DINO = "backbone.0.encoder.encoder"
_LEVELS = "backbone.0.projector"

# (published prefix, our prefix); # stands for a number, and what follows the prefix is the same in
# both.
_PREFIXES = (
    (f"{_DINO}.embeddings.cls_token", "encoder.class_token"),
    (f"{_DINO}.embeddings.mask_token", "encoder.mask_token"),
    (f"{_DINO}.embeddings.register_tokens", "encoder.register_tokens"),
    (f"{_DINO}.embeddings.position_embeddings", "encoder.position_embeddings"),
    (f"{_DINO}.embeddings.patch_embeddings.projection", "encoder.patch_embed"),
    (f"{_DINO}.encoder.layer.#.attention.attention", "encoder.blocks.#.qkv"),
    (f"{_DINO}.encoder.layer.#.attention.output.dense", "encoder.blocks.#.out"),
    (f"{_DINO}.encoder.layer.#.layer_scale1.lambda1", "encoder.blocks.#.scale1"),
    (f"{_DINO}.encoder.layer.#.layer_scale2.lambda1", "encoder.blocks.#.scale2"),
    (f"{_DINO}.encoder.layer.#.mlp.fc1", "encoder.blocks.#.fc1"),
    (f"{_DINO}.encoder.layer.#.mlp.fc2", "encoder.blocks.#.fc2"),
    (f"{_DINO}.encoder.layer.#", "encoder.blocks.#"),
    (f"{_DINO}.layernorm", "encoder.norm"),
    (f"{_LEVELS}.stages_sampling.#.#.0.conv", "projector.levels.#.resample.#.conv"),
    (f"{_LEVELS}.stages_sampling.#.#.0.bn", "projector.levels.#.resample.#.norm"),
    (f"{_LEVELS}.stages_sampling.#.#.0", "projector.levels.#.resample.#"),
    (f"{_LEVELS}.stages.#.0.cv1.conv", "projector.levels.#.mix.reduce.conv"),
    (f"{_LEVELS}.stages.#.0.cv1.bn", "projector.levels.#.mix.reduce.norm"),
    (f"{_LEVELS}.stages.#.0.cv2.conv", "projector.levels.#.mix.merge.conv"),
    (f"{_LEVELS}.stages.#.0.cv2.bn", "projector.levels.#.mix.merge.norm"),
    (f"{_LEVELS}.stages.#.0.m.#.cv1.conv", "projector.levels.#.mix.bottlenecks.#.0.conv"),
    (f"{_LEVELS}.stages.#.0.m.#.cv1.bn", "projector.levels.#.mix.bottlenecks.#.0.norm"),
    (f"{_LEVELS}.stages.#.0.m.#.cv2.conv", "projector.levels.#.mix.bottlenecks.#.1.conv"),
    (f"{_LEVELS}.stages.#.0.m.#.cv2.bn", "projector.levels.#.mix.bottlenecks.#.1.norm"),
    (f"{_LEVELS}.stages.#.1", "projector.levels.#.norm"),
    ("transformer.enc_output_norm", "proposals.norm"),
    ("transformer.enc_output", "proposals.linear"),
    ("transformer.enc_out_class_embed", "proposals.class_head"),
    ("transformer.enc_out_bbox_embed", "proposals.box_head"),
    ("transformer.decoder.ref_point_head", "decoder.position_mlp"),
    ("transformer.decoder", "decoder"),
    ("query_feat.weight", "query_content"),
    ("refpoint_embed.weight", "query_boxes"),
    ("class_embed", "class_head"),
    ("bbox_embed", "box_head"),
    ("segmentation_head.blocks.#.dwconv", "segmentation_head.blocks.#.depthwise"),
    ("segmentation_head.blocks.#.pwconv1", "segmentation_head.blocks.#.linear"),
    ("segmentation_head.spatial_features_proj", "segmentation_head.spatial_proj"),
    ("segmentation_head.query_features_block.norm_in", "segmentation_head.query_norm"),
    ("segmentation_head.query_features_block.layers.0", "segmentation_head.query_expand"),
    ("segmentation_head.query_features_block.layers.2", "segmentation_head.query_reduce"),
    ("segmentation_head.query_features_proj", "segmentation_head.query_proj"),
)
_QKV = ("query", "key", "value")
_QKV_PART = re.compile(r"(encoder\.blocks\.\d+\.qkv)\.(query|key|value)\.(.+)")
_GROUP_PART = re.compile(r"(proposals\.\w+)\.(\d+)\.(.+)")


def _compile(pairs: Iterable[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(re.escape(old).replace(r"\#", r"(\d+)") + r"(?=\.|$)"), new)
        for old, new in pairs
    ]


_TO_OURS = _compile(_PREFIXES)
_TO_PUBLISHED = _compile((ours, published) for published, ours in _PREFIXES)


def _rename(name: str, table: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in table:
        if match := pattern.match(name):
            return new.replace("#", "{}").format(*match.groups()) + name[match.end() :]
    return name


def our_name(published: str) -> str:
    """The published name of one tensor in our words; a part of a joined tensor keeps its own
    (`qkv.query.weight`).
    """
    return _rename(published, _TO_OURS)


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of ours under published names, complete with the published empty buffer; adapters are
    merged.

    Tensors may share memory.
    """
    published = {_UNUSED: torch.zeros(0, 0, dtype=torch.bool)}
    for name, tensor in merge_adapters(state).items():
        for part_name, part in _split(name, tensor):
            published[_rename(part_name, _TO_PUBLISHED)] = part
    return published


def _split(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    stem, _, leaf = name.rpartition(".")
    if stem.endswith(".qkv"):
        return [(f"{stem}.{part}.{leaf}", x) for part, x in zip(_QKV, tensor.chunk(3), strict=True)]
    if name.startswith("proposals."):
        room, module, rest = name.split(".", 2)
        return [(f"{room}.{module}.{group}.{rest}", x) for group, x in enumerate(tensor.unbind())]
    return [(name, tensor)]


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_published`. Names that are in no published layout are kept as they are."""
    ours: dict[str, Tensor] = {}
    parts: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
    for published, tensor in state.items():
        name = _rename(published, _TO_OURS)
        if match := _QKV_PART.fullmatch(name):
            parts[f"{match[1]}.{match[3]}"][_QKV.index(match[2])] = tensor
        elif match := _GROUP_PART.fullmatch(name):
            parts[f"{match[1]}.{match[3]}"][int(match[2])] = tensor
        elif name != _UNUSED:
            ours[name] = tensor
    for name, found in parts.items():
        wanted = len(_QKV) if ".qkv." in name else max(found) + 1
        if len(found) != wanted:
            raise InputError(
                f"tensor {name} needs {wanted} parts in the file, found those numbered {sorted(found)}"
            )
        in_order = [found[index] for index in range(wanted)]
        ours[name] = torch.cat(in_order) if ".qkv." in name else torch.stack(in_order)
    return ours
