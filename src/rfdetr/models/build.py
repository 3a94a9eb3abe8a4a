"""From a configuration to a network: the only function of this room that sees one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rfdetr.config import PROJECTOR_SCALES, EncoderDims, ModelConfig
from rfdetr.models.decoder import Decoder, DecoderLayer
from rfdetr.models.detector import Detector
from rfdetr.models.encoder import Encoder
from rfdetr.models.projector import Projector
from rfdetr.models.proposals import Proposals
from rfdetr.models.segmentation import SegmentationHead


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
    """A fresh network in training mode; `encoder_dims` replaces the size that the encoder's name
    stands for.

    Its weights are float32, whatever `torch.set_default_dtype` says: the same seed draws the same
    ones everywhere.
    """
    dims = encoder_dims or config.encoder_dims
    encoder = Encoder(
        width=dims.width,
        depth=dims.depth,
        heads=dims.heads,
        patch_size=config.patch_size,
        position_grid=config.position_grid,
        num_windows=config.num_windows,
        num_registers=config.num_registers,
        out_feature_indexes=config.out_feature_indexes,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    encoder.set_drop_path(drop_path)
    projector = Projector(
        width=dims.width,
        num_maps=len(config.out_feature_indexes),
        channels=config.hidden_dim,
        scales=[PROJECTOR_SCALES[name] for name in config.projector_scale],
    )
    proposals = Proposals(
        hidden_dim=config.hidden_dim,
        num_logits=config.num_classes + 1,
        num_queries=config.num_queries,
        groups=config.group_detr,
    )
    layers = (
        DecoderLayer(
            hidden_dim=config.hidden_dim,
            self_heads=config.sa_nheads,
            cross_heads=config.ca_nheads,
            levels=len(config.projector_scale),
            points=config.dec_n_points,
            dim_feedforward=config.dim_feedforward,
        )
        for _ in range(config.dec_layers)
    )
    head = (
        SegmentationHead(config.hidden_dim, config.dec_layers) if config.segmentation_head else None
    )
    return Detector(
        encoder=encoder,
        projector=projector,
        proposals=proposals,
        decoder=Decoder(layers, config.hidden_dim),
        segmentation_head=head,
        hidden_dim=config.hidden_dim,
        num_classes=config.num_classes,
        mask_downsample_ratio=config.mask_downsample_ratio,
    )
