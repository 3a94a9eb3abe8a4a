"""The detector: encode, project, propose, decode, predict, as in figure 2 of RF-DETR (2511.09554);
and `postprocess`, from its predictions to n = `num_select` detections in pixels.

Letters as in `rfdetr.models`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.errors import InputTypeError
from rfdetr.geometry.boxes import apply_box_deltas, at_least_float32, cxcywh_to_xyxy
from rfdetr.models.encoder import Encoder, Projector
from rfdetr.models.layers import MLP, Linear, init_linears
from rfdetr.models.segmentation import MaskFeatures, SegmentationHead
from rfdetr.models.transformer import Decoder, Memory, ProposalOutput, Proposals, flatten_levels

_PIXELS_AT_ONCE = 2**18  # full-size mask logits at a time: 1 MiB, which a CPU's cache holds
Detections = list[dict[str, Tensor]]


class DetectorOutput(NamedTuple):
    """Predictions of every decoder layer and of the proposals, at least in float32.

    In training there are G groups, in evaluation the first alone (G = 1). Boxes are cxcywh relative
    to the image.
    """

    logits: Tensor  # L B GQ K, the last layer's are the result
    boxes: Tensor  # L B GQ 4
    proposal_logits: Tensor  # B Gk K
    proposal_boxes: Tensor  # B Gk 4
    masks: MaskFeatures | None = None

    def result(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Boxes (B, GQ, 4), logits (B, GQ, K) and mask logits (B, GQ, h, w) of the last decoder
        layer. (The last masks are the proposals'.)
        """
        last = len(self.logits) - 1
        masks = None if self.masks is None else self.masks.mask_logits(last)
        return self.boxes[last], self.logits[last], masks

    def not_finite(self) -> list[str]:
        """Which of the last layer's "logits", "boxes", "masks" hold NaN or infinity."""
        last = len(self.logits) - 1
        parts = {"logits": [self.logits[last]], "boxes": [self.boxes[last]]}
        if self.masks is not None:
            parts["masks"] = [features[last] for features in self.masks]
        checks = [torch.stack([x.isfinite().all() for x in part]).all() for part in parts.values()]
        finite = torch.stack(checks).tolist()  # one transfer from the device
        return [name for name, good in zip(parts, finite, strict=True) if not good]


class Detector(nn.Module):
    """Normalised images to class logits, boxes and, with a segmentation head, masks."""

    def __init__(
        self,
        encoder: Encoder,
        projector: Projector,
        proposals: Proposals,
        decoder: Decoder,
        segmentation_head: SegmentationHead | None,
        *,
        mask_downsample_ratio: int,
    ) -> None:
        super().__init__()
        self.num_queries = proposals.num_queries
        self.groups, num_logits, width = proposals.class_head.weight.shape
        self.mask_downsample_ratio = mask_downsample_ratio
        self.encoder = encoder
        self.projector = projector
        self.proposals = proposals
        self.decoder = decoder
        self.segmentation_head = segmentation_head
        self.query_content = nn.Parameter(torch.randn(self.groups * self.num_queries, width))
        self.query_boxes = nn.Parameter(torch.zeros(self.groups * self.num_queries, 4))
        self.box_head = MLP(width, width, width, 4)
        init_linears(self.box_head)
        nn.init.zeros_(self.box_head.layers[-1].weight)  # type: ignore[arg-type]
        self.class_head = Linear(width, num_logits)
        nn.init.xavier_uniform_(self.class_head.weight)
        nn.init.constant_(self.class_head.bias, -math.log(99.0))  # each class at probability 0.01
        proposals.start_from(self.class_head, self.box_head)

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth of the encoder: from 0 in the first block to `rate` in the last."""
        self.encoder.set_drop_path(rate)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> DetectorOutput:
        """Images (B, 3, H, W) of any float type; `mask` (B, H, W) is True at padding."""
        levels = self.project(self.encode(images))
        memory = flatten_levels(levels, mask)
        proposals = self.propose(memory)
        hidden, references = self.decode(memory, proposals)
        masks = None
        if self.segmentation_head is not None:
            height, width = (side // self.mask_downsample_ratio for side in images.shape[-2:])
            proposed = proposals.queries.flatten(1, 2)
            masks = self.segmentation_head(levels[0], (height, width), hidden, proposed)
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
        """Encoder maps (B, D, h, w) to the decoder's levels (B, C, h, w), finest first."""
        return self.projector(maps)  # type: ignore[no-any-return]

    def propose(self, memory: Memory) -> ProposalOutput:
        """The best k cells of the levels, for each group."""
        return self.proposals(memory)  # type: ignore[no-any-return]

    def decode(self, memory: Memory, proposals: ProposalOutput) -> tuple[Tensor, Tensor]:
        """Each layer's queries (L, B, GQ, C), and the boxes (B, GQ, 4) that their deltas refine."""
        batch, groups = proposals.boxes.shape[:2]
        proposed = proposals.boxes.detach().flatten(1, 2)  # B Gk 4
        count = groups * self.num_queries
        deltas, own = self.query_boxes[:count].tensor_split((proposed.shape[1],))
        # With fewer cells than queries (k < Q) the published models give the proposals to the first
        # Gk of all queries, not to the first k of each group; the last rows keep their own box.
        refined = apply_box_deltas(deltas, proposed)
        references = torch.cat((refined, at_least_float32(own).expand(batch, -1, -1)), dim=1)
        content = self.query_content[:count].expand(batch, -1, -1)
        return self.decoder(content, references, memory, groups), references


def detector_in(network: nn.Module) -> Detector:
    """The detector in `network`, which is one or wraps one (`torch.compile`, DataParallel, yours).

    Raises `InputTypeError` where there is none.
    """
    for module in network.modules():
        if isinstance(module, Detector):
            return module
    kind = type(network).__name__
    raise InputTypeError(f"a network of {kind}: expected a Detector, or a module that wraps one")


def postprocess(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    sizes: Tensor,
    num_select: int,
    mask_logits: Tensor | None = None,
) -> Detections:
    """The n best (query, class) pairs of each image, best first; ties in the order of the pairs.

    Takes `logits` (B, Q, K), `boxes_cxcywh` (B, Q, 4) relative to the image, `sizes` (B, 2) height
    and width of the images in pixels, and `mask_logits` (B, Q, h, w). Each image gives "scores"
    (n,) float32, "labels" (n,) int64, "boxes" (n, 4) float32 xyxy in pixels inside the image and,
    where there are masks, their "mask_logits" (n, h, w) for `full_size_masks`.
    """
    scores = logits.float().sigmoid().flatten(1)  # B QK
    # `topk` leaves ties open and a stable sort takes ten times as long. Bits of floats from 0 up
    # order as integers do: score (high bits) and index (low bits) make one number without ties.
    ranks = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    pairs = ((scores.view(torch.int32).long() << 32) + ranks).topk(num_select, dim=1).indices
    queries, labels = pairs // logits.shape[-1], pairs % logits.shape[-1]
    boxes = cxcywh_to_xyxy(boxes_cxcywh.float().take_along_dim(queries.unsqueeze(-1), dim=1))
    limits = sizes.to(boxes).flip(-1).repeat(1, 2).unsqueeze(1)  # B 1 4: width, height, twice
    boxes = torch.minimum((boxes * limits).clamp(min=0), limits)
    parts: dict[str, Any] = {"scores": scores.take_along_dim(pairs, dim=1)}
    parts |= {"labels": labels, "boxes": boxes}
    if mask_logits is not None:
        parts["mask_logits"] = [of_all[q] for of_all, q in zip(mask_logits, queries, strict=True)]
    return [{name: values[image] for name, values in parts.items()} for image in range(len(pairs))]


def postprocess_outputs(outputs: DetectorOutput, sizes: Tensor, num_select: int) -> Detections:
    """`postprocess` of a network's last decoder layer, with masks where it has them."""
    boxes, logits, masks = outputs.result()
    return postprocess(logits, boxes, sizes, num_select, masks)


def full_size_masks(mask_logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Mask logits (n, h, w) to bool masks (some, *size), in parts: all at once fill a memory."""
    for part in mask_logits.split(max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))):  # type: ignore[no-untyped-call]
        yield F.interpolate(part[:, None].float(), size=size, mode="bilinear")[:, 0] > 0
