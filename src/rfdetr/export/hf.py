"""The folder that `transformers` reads as `rf_detr`: config.json, model.safetensors,
preprocessor_config.json, and README.md. None of it needs transformers to be written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from operator import methodcaller
from pathlib import Path
from typing import Any

from torch import Tensor

from rfdetr.config import ModelConfig
from rfdetr.config.fields import size_text
from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD
from rfdetr.errors import InputError
from rfdetr.export.card import Subject, model_card
from rfdetr.files import atomic_write
from rfdetr.models.encoder import resize_positions
from rfdetr.weights.names import UNUSED, our_name, prefix_table, renamed
from rfdetr.weights.writing import published_tensors

NO_CLASS = "__background__"
"""Label of a logit that stands for no class, as the published package calls it."""

# Our prefix, as `our_name` gives it, and that of transformers; what follows is the same in both.
# The first line that fits decides.
_BODY = """
encoder.class_token                    backbone.backbone.embeddings.cls_token
encoder.mask_token                     backbone.backbone.embeddings.mask_token
encoder.position_embeddings            backbone.backbone.embeddings.position_embeddings
encoder.patch_embed                    backbone.backbone.embeddings.patch_embeddings.projection
encoder.blocks.#.qkv.query             backbone.backbone.encoder.layer.#.attention.q_proj
encoder.blocks.#.qkv.key               backbone.backbone.encoder.layer.#.attention.k_proj
encoder.blocks.#.qkv.value             backbone.backbone.encoder.layer.#.attention.v_proj
encoder.blocks.#.out                   backbone.backbone.encoder.layer.#.attention.o_proj
encoder.blocks.#.scale#                backbone.backbone.encoder.layer.#.layer_scale#.lambda1
encoder.blocks.#.fc#                   backbone.backbone.encoder.layer.#.mlp.fc#
encoder.blocks.#                       backbone.backbone.encoder.layer.#
encoder.norm                           backbone.backbone.layernorm
projector.levels.0.mix.reduce          backbone.projector.projector_layer.conv1
projector.levels.0.mix.merge           backbone.projector.projector_layer.conv2
projector.levels.0.mix.bottlenecks.#.0 backbone.projector.projector_layer.bottlenecks.#.conv1
projector.levels.0.mix.bottlenecks.#.1 backbone.projector.projector_layer.bottlenecks.#.conv2
projector.levels.0.norm                backbone.projector.layer_norm
proposals.linear                       enc_output
proposals.norm                         enc_output_norm
proposals.class_head                   enc_out_class_embed
proposals.box_head                     enc_out_bbox_embed
decoder.position_mlp                   decoder.ref_point_head
decoder.layers.#.self_attn.out_proj    decoder.layers.#.self_attn.o_proj
decoder.layers.#.norm1                 decoder.layers.#.self_attn_layer_norm
decoder.layers.#.norm2                 decoder.layers.#.cross_attn_layer_norm
decoder.layers.#.norm3                 decoder.layers.#.layer_norm
decoder.layers.#.linear#               decoder.layers.#.mlp.fc#
decoder.norm                           decoder.layernorm
decoder                                decoder
query_content                          query_feat.weight
query_boxes                            reference_point_embed.weight
"""
_HEADS = """
class_head                             class_embed
box_head                               bbox_embed
"""
_MASKS = """
segmentation_head.bias                 segmentation_bias
segmentation_head.blocks.#.depthwise   blocks.#.depthwise_conv
segmentation_head.blocks.#.norm        blocks.#.layernorm
segmentation_head.blocks.#.linear      blocks.#.pointwise_conv
segmentation_head.spatial_proj         spatial_features_proj
segmentation_head.query_norm           query_features_block.norm
segmentation_head.query_expand         query_features_block.mlp.fc1
segmentation_head.query_reduce         query_features_block.mlp.fc2
segmentation_head.query_proj           query_features_proj
"""
_QKV = ".self_attn.in_proj_"  # one matrix here, three there
_BOXES = """from PIL import Image
from transformers import AutoImageProcessor, RfDetrForObjectDetection

processor = AutoImageProcessor.from_pretrained(folder)  # this one
model = RfDetrForObjectDetection.from_pretrained(folder)
image = Image.open("image.jpg").convert("RGB")
outputs = model(**processor(images=image, return_tensors="pt"))
found = processor.post_process_object_detection(
    outputs, threshold=0.5, target_sizes=[(image.height, image.width)], top_k={num_select}
)
"""
_MASKED = """from PIL import Image
from transformers import AutoImageProcessor, RfDetrForInstanceSegmentation

processor = AutoImageProcessor.from_pretrained(folder)  # this one
model = RfDetrForInstanceSegmentation.from_pretrained(folder)
image = Image.open("image.jpg").convert("RGB")
# Antialiased, as images were in training; the processor's own resize is not.
square = image.resize(({resolution}, {resolution}), Image.Resampling.BILINEAR)
outputs = model(**processor(images=square, return_tensors="pt"))
found = processor.post_process_instance_segmentation(
    outputs, threshold=0.5, target_sizes=[(image.height, image.width)]
)
"""


def write_hf(subject: Subject, folder: Path) -> None:
    """Writes the four files. In float32 and at the model's resolution, `transformers` finds the
    same objects in them.

    The position grid is written as the network resamples it to its resolution: nobody else's
    resampling comes between. Raises `InputError` for what transformers' network cannot be.
    """
    config, labels = subject.config, subject.labels
    _refuse_unlike(config)
    tensors = hf_tensors(subject.state, config)
    use = (_MASKED if config.segmentation_head else _BOXES).format_map(config.model_dump())
    from safetensors.torch import save

    files = {
        "model.safetensors": save(tensors, metadata={"format": "pt"}),
        "config.json": _json(hf_config(config, labels)),
        "preprocessor_config.json": _json(hf_preprocessing(config)),
        "README.md": model_card(subject, use).encode(errors="backslashreplace"),
    }
    for name, content in files.items():
        atomic_write(folder / name, methodcaller("write", content))


def hf_tensors(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A detector's tensors under the names of RfDetrForObjectDetection or, with a mask head,
    RfDetrForInstanceSegmentation; float32, on the CPU.
    """
    outer = "model." if config.segmentation_head else ""
    homes = (_BODY, f"{outer}model."), (_HEADS, outer), (_MASKS, "")
    lines = [(*line.split(), home) for text, home in homes for line in text.split("\n")[1:-1]]
    table = prefix_table((ours, home + theirs) for ours, theirs, home in lines)
    tensors: dict[str, Tensor] = {}
    for published, tensor in published_tensors(state).items():
        ours = our_name(published)
        if ours == "encoder.position_embeddings":
            tensor = resize_positions(tensor, config.square // config.patch_size)
        name = renamed(ours, table)
        if _QKV in name:
            start, _, leaf = name.partition("in_proj_")
            thirds = zip("qkv", tensor.chunk(3), strict=True)
            tensors |= {f"{start}{part}_proj.{leaf}": third.clone() for part, third in thirds}
        elif published != UNUSED:
            tensors[name] = tensor
    return tensors


def hf_config(config: ModelConfig, labels: Mapping[int, str]) -> dict[str, Any]:
    """What config.json holds. Fields that are left out have transformers' own default, which is
    the published network's.
    """
    dims, width = config.encoder_dims, config.hidden_dim
    names = {logit: labels.get(logit, NO_CLASS) for logit in range(config.num_classes + 1)}
    model = "InstanceSegmentation" if config.segmentation_head else "ObjectDetection"
    return {
        "model_type": "rf_detr",
        "architectures": [f"RfDetrFor{model}"],
        "dtype": "float32",
        "backbone_config": {
            "model_type": "rf_detr_dinov2",
            "hidden_size": dims.width,
            "num_hidden_layers": dims.depth,
            "num_attention_heads": dims.heads,
            "image_size": config.resolution,
            "patch_size": config.patch_size,
            "num_windows": config.num_windows,
            "out_indices": config.out_feature_indexes,
        },
        "d_model": width,
        "decoder_layers": config.dec_layers,
        "decoder_self_attention_heads": config.sa_nheads,
        "decoder_cross_attention_heads": config.ca_nheads,
        "decoder_n_points": config.dec_n_points,
        "decoder_ffn_dim": config.dim_feedforward,
        "intermediate_size": 4 * width,
        "num_queries": config.num_queries,
        "group_detr": config.group_detr,
        "mask_downsample_ratio": config.mask_downsample_ratio,
        "id2label": {str(logit): name for logit, name in names.items()},
        "label2id": {name: logit for logit, name in names.items()},
    }


def hf_preprocessing(config: ModelConfig) -> dict[str, Any]:
    """What preprocessor_config.json holds: which processor, and what it does to an image.

    That of Deformable DETR resizes with antialiasing, as images here are, and decodes boxes as
    RfDetrImageProcessor does, which does not antialias, but alone decodes masks.
    """
    masks, side = config.segmentation_head, config.resolution
    return {
        "image_processor_type": f"{'RfDetr' if masks else 'DeformableDetr'}ImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_pad": False,
    }


def _refuse_unlike(config: ModelConfig) -> None:
    """`InputError` for a network that RfDetrConfig cannot describe, or that it cannot run."""
    cells = (config.square // config.patch_size) ** 2
    if not isinstance(config.resolution, int):
        fault = (
            f"square images, and this model's are of {size_text(config.resolution)} pixels: load "
            f"it with resolution={config.square}, or export another format"
        )
    elif config.projector_scale != ["P4"]:
        fault = f'one feature level, "P4", and this model has {config.projector_scale}'
    elif config.encoder_dims.registers:
        fault = f"an encoder without registers, and this model's is {config.encoder!r}"
    elif cells < config.num_queries:
        fault = (
            f"no more queries than patches, and this model has num_queries {config.num_queries} "
            f"and at resolution {config.resolution} {cells} patches: load it with a larger "
            "resolution or fewer queries"
        )
    else:
        return
    raise InputError(f'transformers\' rf_detr (format="hf") takes {fault}')


def _json(content: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=2)}\n".encode()
