"""Published tensor names to ours and back. No other file knows a published name: who needs one
imports it from here, or asks `our_name`.

Three layouts differ besides names:

    query, key, value of an encoder block   three matrices there, one here (`qkv`)
    layers of the encoder stage             one per query group there, stacked here (`proposals`)
    `_kp_active_mask`, an empty buffer      there only; it means nothing here
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from rfdetr.errors import InputError

PrefixTable: TypeAlias = list[tuple[re.Pattern[str], str]]
UNUSED = "_kp_active_mask"
CLASS_HEAD = "class_embed.weight"
CLASS_HEADS = re.compile(r"(class_embed|transformer\.enc_out_class_embed\.\d+)\.(weight|bias)")
"""Published names of tensors whose rows are class logits: the decoder's, each query group's."""
RANK = ALPHA = 16
"""Of the low-rank adapters: B A is of rank `RANK` and counts `ALPHA / RANK` times."""

# Published prefix, our prefix; # is a number, and what follows the prefix is the same in both.
# The first line that fits decides.
_PREFIXES = """
backbone.0.encoder.encoder.embeddings.cls_token                    encoder.class_token
backbone.0.encoder.encoder.embeddings.mask_token                   encoder.mask_token
backbone.0.encoder.encoder.embeddings.register_tokens              encoder.register_tokens
backbone.0.encoder.encoder.embeddings.position_embeddings          encoder.position_embeddings
backbone.0.encoder.encoder.embeddings.patch_embeddings.projection  encoder.patch_embed
backbone.0.encoder.encoder.encoder.layer.#.attention.attention     encoder.blocks.#.qkv
backbone.0.encoder.encoder.encoder.layer.#.attention.output.dense  encoder.blocks.#.out
backbone.0.encoder.encoder.encoder.layer.#.layer_scale#.lambda1    encoder.blocks.#.scale#
backbone.0.encoder.encoder.encoder.layer.#.mlp.fc#                 encoder.blocks.#.fc#
backbone.0.encoder.encoder.encoder.layer.#                         encoder.blocks.#
backbone.0.encoder.encoder.layernorm                               encoder.norm
backbone.0.projector.stages_sampling.#.#.0.conv       projector.levels.#.resample.#.conv
backbone.0.projector.stages_sampling.#.#.0.bn         projector.levels.#.resample.#.norm
backbone.0.projector.stages_sampling.#.#.0            projector.levels.#.resample.#
backbone.0.projector.stages.#.0.cv1.conv              projector.levels.#.mix.reduce.conv
backbone.0.projector.stages.#.0.cv1.bn                projector.levels.#.mix.reduce.norm
backbone.0.projector.stages.#.0.cv2.conv              projector.levels.#.mix.merge.conv
backbone.0.projector.stages.#.0.cv2.bn                projector.levels.#.mix.merge.norm
backbone.0.projector.stages.#.0.m.#.cv1.conv          projector.levels.#.mix.bottlenecks.#.0.conv
backbone.0.projector.stages.#.0.m.#.cv1.bn            projector.levels.#.mix.bottlenecks.#.0.norm
backbone.0.projector.stages.#.0.m.#.cv2.conv          projector.levels.#.mix.bottlenecks.#.1.conv
backbone.0.projector.stages.#.0.m.#.cv2.bn            projector.levels.#.mix.bottlenecks.#.1.norm
backbone.0.projector.stages.#.1                       projector.levels.#.norm
transformer.enc_output_norm                           proposals.norm
transformer.enc_output                                proposals.linear
transformer.enc_out_class_embed                       proposals.class_head
transformer.enc_out_bbox_embed                        proposals.box_head
transformer.decoder.ref_point_head                    decoder.position_mlp
transformer.decoder                                   decoder
query_feat.weight                                     query_content
refpoint_embed.weight                                 query_boxes
class_embed                                           class_head
bbox_embed                                            box_head
segmentation_head.blocks.#.dwconv                     segmentation_head.blocks.#.depthwise
segmentation_head.blocks.#.pwconv1                    segmentation_head.blocks.#.linear
segmentation_head.spatial_features_proj               segmentation_head.spatial_proj
segmentation_head.query_features_block.norm_in        segmentation_head.query_norm
segmentation_head.query_features_block.layers.0       segmentation_head.query_expand
segmentation_head.query_features_block.layers.2       segmentation_head.query_reduce
segmentation_head.query_features_proj                 segmentation_head.query_proj
"""
_QKV = ("query", "key", "value")
_QKV_PART = re.compile(r"(encoder\.blocks\.\d+\.qkv)\.(query|key|value)\.(.+)")
_GROUP_PART = re.compile(r"(proposals\.\w+)\.(\d+)\.(.+)")
_ADAPTER = "_magnitude_vector.default.weight"  # PEFT's; .lora_A and .lora_B end in .default too


def prefix_table(pairs: Iterable[tuple[str, str]]) -> PrefixTable:
    """Pairs (old prefix, new prefix), # a number in both, as `renamed` reads them."""
    return [
        (re.compile(re.escape(old).replace(r"\#", r"(\d+)") + r"(?=\.|$)"), new)
        for old, new in pairs
    ]


_PAIRS = [(published, ours) for published, ours in map(str.split, _PREFIXES.split("\n")[1:-1])]
_TO_OURS = prefix_table(_PAIRS)
_TO_PUBLISHED = prefix_table((ours, published) for published, ours in _PAIRS)


def renamed(name: str, table: PrefixTable) -> str:
    """A tensor's name with the first prefix of the table that fits replaced; else the same name."""
    for pattern, new in table:
        if match := pattern.match(name):
            return new.replace("#", "{}").format(*match.groups()) + name[match.end() :]
    return name


def our_name(published: str) -> str:
    """The published name of one tensor in our words; a part of a joined tensor keeps its own:
    `encoder.blocks.0.qkv.query.weight`, `proposals.linear.12.bias`.
    """
    return renamed(published, _TO_OURS)


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of ours under published names, with the published empty buffer and with adapters
    merged. Tensors may share memory.
    """
    published = {UNUSED: torch.zeros(0, 0, dtype=torch.bool)}
    for name, tensor in merge_adapters(state).items():
        stem, _, leaf = name.rpartition(".")
        parts = {name: tensor}
        if stem.endswith(".qkv"):
            thirds = zip(_QKV, tensor.chunk(3), strict=True)
            parts = {f"{stem}.{part}.{leaf}": third for part, third in thirds}
        elif name.startswith("proposals."):
            _, layer, leaf = name.split(".", 2)
            parts = {f"proposals.{layer}.{i}.{leaf}": x for i, x in enumerate(tensor.unbind())}
        published.update({renamed(part, _TO_PUBLISHED): x for part, x in parts.items()})
    return published


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_published`. Names that are in no published layout are kept as they are."""
    ours: dict[str, Tensor] = {}
    parts: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
    for published, tensor in state.items():
        name = our_name(published)
        if match := _QKV_PART.fullmatch(name):
            parts[f"{match[1]}.{match[3]}"][_QKV.index(match[2])] = tensor
        elif match := _GROUP_PART.fullmatch(name):
            parts[f"{match[1]}.{match[3]}"][int(match[2])] = tensor
        elif name != UNUSED:
            ours[name] = tensor
    for name, found in parts.items():
        is_qkv = ".qkv." in name
        wanted = range(len(_QKV) if is_qkv else max(found) + 1)
        if len(found) != len(wanted):
            there = f"found those numbered {sorted(found)}"
            raise InputError(f"tensor {name} needs {len(wanted)} parts in the file, {there}")
        ours[name] = (torch.cat if is_qkv else torch.stack)([found[part] for part in wanted])
    return ours


def has_adapters(state: Mapping[str, Tensor]) -> bool:
    """Whether a state of ours holds low-rank adapters beside the weights."""
    return any(name.endswith(_ADAPTER) for name in state)


def merge_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with each adapted matrix W in place of W, A, B and the magnitudes m:
    m (W + s B A) / |W + s B A|, by row (DoRA, arXiv 2402.09353). Without adapters, the same state.
    """
    merged = {
        name.replace(".base_layer.", "."): x for name, x in state.items() if ".lora_" not in name
    }
    for name in filter(lambda name: name.endswith(_ADAPTER), state):
        stem = name.removesuffix(f".lora{_ADAPTER}")
        down, up = (state[f"{stem}.lora_{part}.default.weight"] for part in "AB")
        moved = state[f"{stem}.base_layer.weight"] + ALPHA / RANK * (up @ down)
        length = torch.linalg.norm(moved, dim=1)
        merged[f"{stem}.weight"] = moved * (state[name] / length)[:, None]
    return merged
