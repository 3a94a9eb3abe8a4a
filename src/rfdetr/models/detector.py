"""The detector: encode, project, propose, decode, predict, as in figure 2 of RF-DETR (arXiv
2511.09554).

B images, L decoder layers, G query groups, Q queries of a group (GQ = all of them), K logits, C
hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rfdetr.errors import InputTypeError
from rfdetr.geometry.boxes import apply_box_deltas, at_least_float32
from rfdetr.models.decoder import Decoder
from rfdetr.models.encoder import Encoder
from rfdetr.models.layers import MLP, init_linears
from rfdetr.models.projector import Projector
from rfdetr.models.proposals import GroupLinear, Memory, ProposalOutput, Proposals, flatten_levels
from rfdetr.models.segmentation import MaskFeatures, SegmentationHead


class DetectorOutput(NamedTuple):
    """Predictions of every decoder layer and of the encoder stage, float32 (float64 of a float64
    network).

    In training GQ runs over all groups, one after another; in evaluation there is one group. The
    encoder stage has fewer than Q per group where the feature maps have fewer cells. Boxes are
    cxcywh relative to the image.
    """

    logits: Tensor  # L B GQ K, the last layer's are the result
    boxes: Tensor  # L B GQ 4
    proposal_logits: Tensor  # B GQ K
    proposal_boxes: Tensor  # B GQ 4
    masks: MaskFeatures | None = None

    def not_finite(self) -> list[str]:
        """Which of the last layer's predictions hold NaN or infinity: "logits", "boxes", "masks"."""
        last = len(self.logits) - 1
        parts = {"logits": [self.logits[last]], "boxes": [self.boxes[last]]}
        if self.masks is not None:
            parts["masks"] = [
                self.masks.spatial[last],
                self.masks.queries[last],
                self.masks.offsets[last],
            ]
        good = torch.stack(
            [torch.stack([x.isfinite().all() for x in part]).all() for part in parts.values()]
        )
        return [name for name, fine in zip(parts, good.tolist(), strict=True) if not fine]


class Detector(nn.Module):
    """Normalised images to class logits, boxes and, with a segmentation head, masks."""

    def __init__(  # noqa: PLR0913 - keyword-only: the parts of the network
        self,
        *,
        encoder: Encoder,
        projector: Projector,
        proposals: Proposals,
        decoder: Decoder,
        segmentation_head: SegmentationHead | None,
        hidden_dim: int,
        num_classes: int,
        mask_downsample_ratio: int,
    ) -> None:
        super().__init__()
        self.num_queries = proposals.num_queries
        self.groups = proposals.groups
        self.mask_downsample_ratio = mask_downsample_ratio
        self.encoder = encoder
        self.projector = projector
        self.proposals = proposals
        self.decoder = decoder
        self.segmentation_head = segmentation_head
        self.query_content = nn.Parameter(torch.randn(self.groups * self.num_queries, hidden_dim))
        self.query_boxes = nn.Parameter(torch.zeros(self.groups * self.num_queries, 4))
        self.box_head = MLP(hidden_dim, hidden_dim, hidden_dim, 4)
        init_linears(self.box_head)
        nn.init.zeros_(self.box_head.layers[-1].weight)  # type: ignore[arg-type]
        proposals.box_head.copy_from(self.box_head)
        self.reset_head(num_classes)

    def reset_head(self, num_classes: int) -> None:
        """Fresh class heads, the decoder's and every group's of the encoder stage, for another set
        of classes.
        """
        weight = self.query_content
        hidden_dim = weight.shape[-1]
        self.class_head = nn.Linear(
            hidden_dim, num_classes + 1, device=weight.device, dtype=weight.dtype
        )
        nn.init.xavier_uniform_(self.class_head.weight)
        nn.init.constant_(
            self.class_head.bias, -math.log(99.0)
        )  # every class starts at probability 0.01
        group_head = GroupLinear(self.groups, hidden_dim, num_classes + 1).to(weight)
        group_head.copy_from(self.class_head)
        self.proposals.class_head = group_head

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth of the encoder: from 0 in the first block to `rate` in the last."""
        self.encoder.set_drop_path(rate)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> DetectorOutput:
        """Images (B, 3, H, W), of any float type, and where they are padded (B, H, W) or None, to
        predictions.
        """
        levels = self.project(self.encode(images))
        memory = flatten_levels(levels, mask)
        proposals = self.propose(memory)
        hidden, references = self.decode(memory, proposals)
        masks = None
        if self.segmentation_head is not None:
            size = (
                images.shape[-2] // self.mask_downsample_ratio,
                images.shape[-1] // self.mask_downsample_ratio,
            )
            masks = self.segmentation_head(levels[0], size, hidden, proposals.queries.flatten(1, 2))
        return DetectorOutput(
            logits=at_least_float32(self.class_head(hidden)),
            boxes=apply_box_deltas(self.box_head(hidden), references),
            proposal_logits=proposals.logits.flatten(1, 2),
            proposal_boxes=proposals.boxes.flatten(1, 2),
            masks=masks,
        )

    def encode(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to the encoder's feature maps (B, D, h, w)."""
        return self.encoder(images)  # type: ignore[no-any-return]

    def project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Encoder maps to the decoder's levels (B, C, h, w)."""
        return self.projector(maps)  # type: ignore[no-any-return]

    def propose(self, memory: Memory) -> ProposalOutput:
        """The best cells of the levels, by group."""
        return self.proposals(memory)  # type: ignore[no-any-return]

    def decode(self, memory: Memory, proposals: ProposalOutput) -> tuple[Tensor, Tensor]:
        """Every layer's queries (L, B, GQ, C), and the reference boxes (B, GQ, 4) their box deltas
        apply to.
        """
        batch, groups = proposals.boxes.shape[:2]
        boxes = proposals.boxes.detach().flatten(1, 2)  # B Gk 4
        deltas, rest = self.query_boxes[: groups * self.num_queries].tensor_split((boxes.shape[1],))
        # Where a group has fewer cells than queries, the published models give its proposals to the
        # first rows of all queries, not of its own, and the last rows keep their own box.
        references = torch.cat(
            (apply_box_deltas(deltas, boxes), at_least_float32(rest).expand(batch, -1, -1)), dim=1
        )
        content = self.query_content[: groups * self.num_queries].expand(batch, -1, -1)
        return self.decoder(content, references, memory, groups), references


def detector_in(network: nn.Module) -> Detector:
    """The detector in a network that is one or wraps one: `torch.compile`, DataParallel, a module
    of your own.
    """
    found = next((module for module in network.modules() if isinstance(module, Detector)), None)
    if found is None:
        raise InputTypeError(
            f"a network of {type(network).__name__}: expected a Detector, or a module that wraps one"
        )
    return found
