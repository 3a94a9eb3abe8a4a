"""The whole network: groups, batches, padding, precision, heads, compilation and export."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rfdetr.models.detector import Detector, DetectorOutput

IMAGES = (2, 3, 64, 64)


def predictions(output: DetectorOutput) -> tuple[Tensor, ...]:
    return output[:4]


def loss(output: DetectorOutput) -> Tensor:
    total = sum(x.float().square().mean() for x in predictions(output))
    assert isinstance(total, Tensor)
    return total


def test_shapes_in_training_and_evaluation(make_detector: Callable[..., Detector]) -> None:
    detector = make_detector()
    output = detector(torch.randn(IMAGES))
    assert output.logits.shape == (2, 2, 20, 4) and output.boxes.shape == (2, 2, 20, 4)
    assert output.proposal_logits.shape == (2, 20, 4) and output.proposal_boxes.shape == (2, 20, 4)
    assert detector.eval()(torch.randn(IMAGES)).logits.shape == (2, 2, 10, 4)


@torch.no_grad()
def test_a_batch_of_two_equals_two_singles(make_detector: Callable[..., Detector]) -> None:
    detector = make_detector().eval()
    images = torch.randn(IMAGES)
    together = predictions(detector(images))
    for index in range(2):
        alone = predictions(detector(images[index : index + 1]))
        assert_close([x[:, index] for x in together[:2]], [x[:, 0] for x in alone[:2]])
        assert_close([x[index] for x in together[2:]], [x[0] for x in alone[2:]])


@torch.no_grad()
def test_a_group_does_not_depend_on_the_others(make_detector: Callable[..., Detector]) -> None:
    detector = make_detector()
    images = torch.randn(IMAGES)
    before = detector(images)
    detector.query_content[10:] += 1
    detector.query_boxes[10:] += 1
    detector.proposals.linear.weight[1] *= -1
    after = detector(images)
    assert_close(after.logits[:, :, :10], before.logits[:, :, :10])
    assert_close(after.boxes[:, :, :10], before.boxes[:, :, :10])
    assert not torch.allclose(after.boxes[:, :, 10:], before.boxes[:, :, 10:])


@torch.no_grad()
def test_evaluation_is_the_first_group_of_training(make_detector: Callable[..., Detector]) -> None:
    detector = make_detector()
    images = torch.randn(IMAGES)
    training = detector(images)
    evaluation = detector.eval()(images)
    assert_close(evaluation.logits, training.logits[:, :, :10])
    assert_close(evaluation.proposal_boxes, training.proposal_boxes[:, :10])


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_queries_beyond_the_number_of_cells_keep_their_own_box(
    make_detector: Callable[..., Detector], training: bool
) -> None:
    detector = make_detector(num_queries=70).train(training)  # 64 cells
    for parameter in detector.box_head.layers[-1].parameters():
        parameter.zero_()
    output = detector(torch.randn(IMAGES))
    groups = 2 if training else 1
    assert output.proposal_boxes.shape == (2, groups * 64, 4)
    without_proposal = slice(groups * 64, groups * 70)
    assert_close(
        output.boxes[-1][:, without_proposal],
        detector.query_boxes[without_proposal].expand(2, -1, -1),
    )


@torch.no_grad()
def test_a_mask_without_padding_changes_nothing(make_detector: Callable[..., Detector]) -> None:
    detector = make_detector(projector_scale=["P3", "P5"]).eval()
    images = torch.randn(IMAGES)
    unpadded = torch.zeros(2, 64, 64, dtype=torch.bool)
    assert_close(predictions(detector(images, unpadded)), predictions(detector(images)))


@torch.no_grad()
def test_padding_of_one_image_does_not_reach_the_other(
    make_detector: Callable[..., Detector],
) -> None:
    detector = make_detector().eval()
    images = torch.randn(IMAGES)
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[1, :, 32:] = True
    padded, plain = detector(images, mask), detector(images)
    assert_close(padded.boxes[:, 0], plain.boxes[:, 0])
    assert not torch.allclose(padded.boxes[:, 1], plain.boxes[:, 1])


@torch.no_grad()
def test_what_lies_under_padding_reaches_neither_proposals_nor_decoder(
    make_detector: Callable[..., Detector],
) -> None:
    detector = make_detector().eval()
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[:, :, 32:] = True
    level = torch.randn(2, 16, 8, 8)
    other = level.clone()
    other[..., 4:] = torch.randn(2, 16, 8, 4)
    detector.encode = lambda images: []  # type: ignore[method-assign]
    results = []
    for features in (level, other):
        detector.project = lambda maps, features=features: [features]  # type: ignore[misc,method-assign]
        results.append(predictions(detector(torch.zeros(IMAGES), mask)))
    assert_close(results[0], results[1])


@pytest.mark.parametrize("segmentation_head", [False, True])
def test_every_parameter_that_matters_gets_a_gradient(
    make_detector: Callable[..., Detector], segmentation_head: bool
) -> None:
    detector = make_detector(segmentation_head=segmentation_head)
    output = detector(torch.randn(IMAGES))
    total = loss(output)
    if output.masks is not None:
        total = total + sum(output.masks.mask_logits(i).square().mean() for i in range(3))
    total.backward()
    without = {name for name, p in detector.named_parameters() if p.grad is None}
    unused = ("encoder.mask_token", "encoder.blocks.4.", "encoder.blocks.5.")
    assert all(name.startswith(unused) for name in without)


def test_bfloat16_autocast_is_close_and_keeps_boxes_in_float32(
    make_detector: Callable[..., Detector],
) -> None:
    # As many as cells: near ties may not change which are taken.
    detector = make_detector(num_queries=64)
    images = torch.randn(IMAGES)
    plain = detector(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = detector(images)
    assert all(x.dtype == torch.float32 for x in predictions(mixed))
    # Proposals come in another order where scores tie; their sets agree.
    assert_close(mixed.proposal_boxes.mean(1), plain.proposal_boxes.mean(1), rtol=0.05, atol=0.05)
    loss(mixed).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


@torch.no_grad()
def test_a_network_of_bfloat16_weights_runs(make_detector: Callable[..., Detector]) -> None:
    detector = make_detector(segmentation_head=True).eval().bfloat16()
    output = detector(torch.randn(IMAGES).bfloat16())
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in predictions(output))


def test_fresh_heads_are_unsure_and_those_of_the_proposals_equal_them(
    make_detector: Callable[..., Detector],
) -> None:
    detector = make_detector(stir=False, num_classes=7)
    assert detector.class_head.weight.shape == (8, 16)
    assert_close(detector.class_head.bias.sigmoid(), torch.full((8,), 0.01))
    heads = detector.proposals.class_head, *detector.proposals.box_head.layers
    shared = detector.class_head, *detector.box_head.layers
    for mine, source in zip(heads, shared, strict=True):
        for group in range(2):
            assert torch.equal(mine.weight[group], source.weight)
            assert torch.equal(mine.bias[group], source.bias)
    output = detector(torch.randn(IMAGES))
    assert output.logits.shape[-1] == output.proposal_logits.shape[-1] == 8
    assert torch.equal(detector.box_head.layers[-1].weight, torch.zeros(4, 16))


@pytest.mark.scheduled
def test_one_graph_captures_the_forward_pass(make_detector: Callable[..., Detector]) -> None:
    detector = make_detector()
    compiled = torch.compile(detector, fullgraph=True, backend="aot_eager")
    images = torch.randn(IMAGES)
    expected = detector(images)
    output = compiled(images)
    assert_close(predictions(output), predictions(expected))
    loss(output).backward()
    assert detector.encoder.patch_embed.weight.grad is not None


@pytest.mark.scheduled
def test_export_with_any_batch_size(make_detector: Callable[..., Detector]) -> None:
    detector = make_detector(segmentation_head=True, projector_scale=["P3", "P5"]).eval()
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(
        detector, (torch.randn(IMAGES),), dynamic_shapes=batch, strict=True
    )
    for count in (1, 5):
        images = torch.randn(count, 3, 64, 64)
        exported, eager = program.module()(images), detector(images)
        assert_close(predictions(exported), predictions(eager))
        assert_close(exported.masks.mask_logits(1), eager.masks.mask_logits(1))
