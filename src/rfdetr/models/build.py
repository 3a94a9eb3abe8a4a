"""From a configuration to a network: the only function of this room that sees one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rfdetr.config import PROJECTOR_SCALES, EncoderDims, ModelConfig
from rfdetr.models.detector import Detector
from rfdetr.models.encoder import Encoder, Projector
from rfdetr.models.segmentation import SegmentationHead
from rfdetr.models.transformer import Decoder, DecoderLayer, Proposals


@contextmanager
def _float32_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@_float32_by_default()
def build_detector(
    config: ModelConfig, encoder_dims: EncoderDims | None = None, drop_path: float = 0.0
) -> Detector:
    """A fresh network in training mode; `encoder_dims` replaces the size of the encoder's name.

    Weights are float32 whatever `torch.set_default_dtype` says, so that a seed draws the same ones.
    """
    dims, width = encoder_dims or config.encoder_dims, config.hidden_dim
    encoder = Encoder(
        *dims[:3],
        patch_size=config.patch_size,
        position_grid=config.position_grid,
        num_windows=config.num_windows,
        num_registers=config.encoder_dims.registers,
        out_feature_indexes=config.out_feature_indexes,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    encoder.set_drop_path(drop_path)
    scales = [PROJECTOR_SCALES[name] for name in config.projector_scale]
    projector = Projector(dims.width, len(config.out_feature_indexes), width, scales)
    num_logits = config.num_classes + 1
    proposals = Proposals(width, num_logits, config.num_queries, config.group_detr)
    layers = (
        DecoderLayer(
            width=width,
            self_heads=config.sa_nheads,
            cross_heads=config.ca_nheads,
            levels=len(scales),
            points=config.dec_n_points,
            hidden=config.dim_feedforward,
        )
        for _ in range(config.dec_layers)
    )
    head = SegmentationHead(width, config.dec_layers) if config.segmentation_head else None
    decoder = Decoder(layers, width)  # after the head: the order in which weights are drawn
    ratio = config.mask_downsample_ratio
    return Detector(encoder, projector, proposals, decoder, head, mask_downsample_ratio=ratio)
