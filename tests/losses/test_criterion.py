"""The criterion against a slow one that says the same loop by loop, and what must hold for any
loss.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from rfdetr.geometry.boxes import cxcywh_to_xyxy, elementwise_giou, elementwise_iou
from rfdetr.losses.criterion import Criterion, class_loss
from rfdetr.losses.matcher import matching_cost
from rfdetr.models.detector import DetectorOutput

WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def slow_terms(
    outputs: DetectorOutput, targets: list[dict[str, Tensor]], groups: int
) -> dict[str, Tensor]:
    terms = {}
    stages = [
        *zip(outputs.logits, outputs.boxes, strict=True),
        (outputs.proposal_logits, outputs.proposal_boxes),
    ]
    names = [*(f"_{i}" for i in range(len(stages) - 2)), "", "_enc"]
    n = max(1, groups * sum(len(target["labels"]) for target in targets))
    for name, (logits, boxes) in zip(names, stages, strict=True):
        sums = [torch.zeros((), dtype=logits.dtype) for _ in WEIGHTS]
        for image, target in enumerate(targets):
            for x, mine in zip(
                logits[image].chunk(groups), boxes[image].chunk(groups), strict=True
            ):
                cost = matching_cost(x.detach(), mine.detach(), target["labels"], target["boxes"])
                of_target, query = (
                    torch.from_numpy(index) for index in linear_sum_assignment(cost.numpy())
                )
                label, truth, found = (
                    target["labels"][of_target],
                    target["boxes"][of_target],
                    mine[query],
                )
                iou, _ = elementwise_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(truth))
                p = x.sigmoid()
                t = (p[query, label] ** 0.25 * iou**0.75).clamp(min=0.01).detach()
                positive = torch.zeros_like(x).index_put((query, label), t)
                negative = p.square().index_put((query, label), 1 - t)
                sums[0] = sums[0] + (negative * x - F.logsigmoid(x) * (positive + negative)).sum()
                sums[1] = sums[1] + (found - truth).abs().sum()
                sums[2] = (
                    sums[2]
                    + (1 - elementwise_giou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(truth))).sum()
                )
        for (term, weight), value in zip(WEIGHTS.items(), sums, strict=True):
            terms[term + name] = weight * value / n
    return terms


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize(
    "counts", [(3, 0, 5), (0, 0), (1,), (9, 2)], ids=["mixed", "empty", "one", "more than queries"]
)
@pytest.mark.parametrize(("layers", "proposals"), [(2, 6), (4, 4), (1, 2)])
def test_terms_and_gradients_equal_the_slow_ones(
    make_outputs, make_targets, counts, layers, proposals
) -> None:
    outputs = make_outputs(len(counts), groups=3, layers=layers, proposals=proposals)
    targets = make_targets(*counts)
    found, expected = (
        Criterion(group_detr=3)(outputs, targets),
        slow_terms(outputs, targets, groups=3),
    )
    assert_close(found, expected)
    leaves = outputs[:4]
    assert_close(
        torch.autograd.grad(total(found), leaves), torch.autograd.grad(total(expected), leaves)
    )


def test_gradients_by_finite_differences(make_outputs, make_targets) -> None:
    outputs, targets = make_outputs(2, groups=2, queries=3, layers=1), make_targets(2, 0)
    torch.manual_seed(1)
    upstream = torch.rand(4, dtype=torch.float64)
    criterion = Criterion(group_detr=2)

    def boxes_only(*boxes: Tensor) -> Tensor:
        frozen = outputs.logits.detach(), boxes[0], outputs.proposal_logits.detach(), boxes[1]
        terms = criterion(DetectorOutput(*frozen), targets)
        return (
            torch.stack([value for name, value in terms.items() if "ce" not in name]) * upstream
        ).sum()

    assert torch.autograd.gradcheck(boxes_only, (outputs.boxes, outputs.proposal_boxes))
    empty = (torch.zeros(0, dtype=torch.int64),) * 3
    no_iou = torch.zeros(0, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: class_loss(x, empty, no_iou), (outputs.proposal_logits,)
    )


def test_the_order_of_targets_and_images_changes_no_loss(make_outputs, make_targets) -> None:
    outputs, targets = make_outputs(3, groups=2), make_targets(4, 0, 6)
    terms = Criterion(group_detr=2)(outputs, targets)
    shuffled = [{name: value.flip(0) for name, value in target.items()} for target in targets]
    assert_close(Criterion(group_detr=2)(outputs, shuffled), terms)
    logits, boxes, proposal_logits, proposal_boxes, _ = outputs
    turned = DetectorOutput(
        logits.flip(1), boxes.flip(1), proposal_logits.flip(0), proposal_boxes.flip(0)
    )
    assert_close(Criterion(group_detr=2)(turned, targets[::-1]), terms)


def test_equal_groups_lose_what_one_group_loses(make_outputs, make_targets) -> None:
    one, targets = make_outputs(2), make_targets(3, 1)
    logits, boxes, proposal_logits, proposal_boxes, _ = one
    three = DetectorOutput(
        logits.repeat(1, 1, 3, 1),
        boxes.repeat(1, 1, 3, 1),
        proposal_logits.repeat(1, 3, 1),
        proposal_boxes.repeat(1, 3, 1),
    )
    assert_close(Criterion(group_detr=3)(three, targets), Criterion(group_detr=1)(one, targets))


def test_evaluation_mode_has_one_group(make_outputs, make_targets) -> None:
    outputs, targets = make_outputs(2), make_targets(3, 1)
    assert_close(
        Criterion(group_detr=3).eval()(outputs, targets), Criterion(group_detr=1)(outputs, targets)
    )


def test_coefficients_weigh_their_terms_of_every_stage(make_outputs, make_targets) -> None:
    outputs, targets = make_outputs(1, layers=3), make_targets(3)
    plain = Criterion(group_detr=1)(outputs, targets)
    coefficients = {"cls_loss_coef": 3.0, "bbox_loss_coef": 10.0, "giou_loss_coef": 0.0}
    weighted = Criterion(group_detr=1, **coefficients)(outputs, targets)
    factors = {"loss_ce": 3.0, "loss_bbox": 2.0, "loss_giou": 0.0}
    suffixes = ("_0", "_1", "", "_enc")
    assert_close(weighted, {n + s: factors[n] * plain[n + s] for n in factors for s in suffixes})


@pytest.mark.parametrize("counts", [(0, 0), (2, 0)])
def test_every_head_has_a_gradient_whatever_the_batch_holds(
    make_outputs, make_targets, counts
) -> None:
    outputs = make_outputs(2, groups=2)
    terms = Criterion(group_detr=2)(outputs, make_targets(*counts))
    total(terms).backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in outputs[:4])
    assert bool(outputs.boxes.grad.any()) == bool(terms["loss_bbox"] > 0) == any(counts)
    assert outputs.logits.grad.any()


def test_a_perfect_and_certain_prediction_costs_nothing(make_targets) -> None:
    (target,) = make_targets(4)
    logits = (F.one_hot(target["labels"], 5).double() * 2 - 1) * 40
    outputs = DetectorOutput(
        logits[None, None], target["boxes"][None, None], logits[None], target["boxes"][None]
    )
    terms = Criterion(group_detr=1)(outputs, [target])
    assert_close(total(terms).item(), 0.0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_extreme_logits_have_finite_losses_and_gradients(
    make_outputs, make_targets, size: float
) -> None:
    outputs = make_outputs(1)
    extreme = [
        (outputs.logits * size).float(),
        outputs.boxes.float(),
        (outputs.proposal_logits * size).float(),
    ]
    targets = [{"labels": t["labels"], "boxes": t["boxes"].float()} for t in make_targets(3)]
    loss = total(
        Criterion(group_detr=1)(DetectorOutput(*extreme, outputs.proposal_boxes.float()), targets)
    )
    loss.backward()
    assert loss.isfinite() and all(tensor.grad.isfinite().all() for tensor in outputs[:4])


def test_half_precision_predictions_are_judged_in_float32(make_outputs, make_targets) -> None:
    half = DetectorOutput(*(tensor.detach().bfloat16() for tensor in make_outputs(2, groups=2)[:4]))
    single = DetectorOutput(*(tensor.float() for tensor in half[:4]))
    targets = [{"labels": t["labels"], "boxes": t["boxes"].float()} for t in make_targets(3, 5)]
    expected = Criterion(group_detr=2)(single, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = Criterion(group_detr=2)(half, targets)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert_close(found, expected, rtol=0, atol=0)


def _work(
    rank: int, folder: str, outputs: DetectorOutput, targets: list[dict[str, Tensor]]
) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    terms = Criterion(group_detr=2)(outputs, targets)
    torch.save(terms, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_divide_by_their_mean_number_of_targets(
    make_outputs, make_targets, tmp_path: Path
) -> None:
    outputs = DetectorOutput(*(tensor.detach() for tensor in make_outputs(1, groups=2)[:4]))
    targets = make_targets(3)
    alone = Criterion(group_detr=2)(outputs, targets)
    nothing = make_targets(0)
    context = torch.multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=_work, args=(rank, str(tmp_path), outputs, mine))
        for rank, mine in enumerate((targets, nothing))
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert_close(torch.load(tmp_path / "0.pt"), {name: 2 * value for name, value in alone.items()})
    background = Criterion(group_detr=2)(outputs, nothing)
    assert_close(
        torch.load(tmp_path / "1.pt"), {name: value / 3 for name, value in background.items()}
    )
