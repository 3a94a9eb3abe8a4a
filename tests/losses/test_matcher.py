from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.testing import assert_close

from rfdetr.losses.matcher import finite_cost, match, matching_cost


def predictions(outputs) -> tuple[Tensor, Tensor]:
    return outputs.proposal_logits.detach(), outputs.proposal_boxes.detach()


def cost_of_pair(logit: float, box: list[float], target: list[float]) -> float:
    p = 1 / (1 + math.exp(-logit))
    focal = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (box, target)
    )
    overlap = max(min(ax1, bx1) - max(ax0, bx0), 0) * max(min(ay1, by1) - max(ay0, by0), 0)
    union = box[2] * box[3] + target[2] * target[3] - overlap
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    giou = overlap / union - (hull - union) / hull
    return 2 * focal + 5 * sum(abs(a - b) for a, b in zip(box, target, strict=True)) - 2 * giou


def cheapest(cost: np.ndarray) -> float:
    """Cost of the best assignment of a small (T, C) problem, by trying all."""
    cost = cost if cost.shape[0] <= cost.shape[1] else cost.T
    rows = range(cost.shape[0])
    return min(
        sum(cost[rows, list(chosen)])
        for chosen in itertools.permutations(range(cost.shape[1]), len(rows))
    )


def test_cost_of_every_pair(make_outputs, make_targets) -> None:
    logits, boxes = (values[0] for values in predictions(make_outputs(1)))
    (target,) = make_targets(5)
    expected = [
        [
            cost_of_pair(logits[c, label].item(), boxes[c].tolist(), box.tolist())
            for c in range(len(boxes))
        ]
        for label, box in zip(target["labels"].tolist(), target["boxes"], strict=True)
    ]
    found = matching_cost(logits, boxes, target["labels"], target["boxes"])
    assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
def test_every_block_is_matched_at_least_cost(make_outputs, make_targets, count: int) -> None:
    logits, boxes = predictions(make_outputs(2, queries=7))
    targets = make_targets(count, 2)
    found = match(logits, boxes, targets, [4, 3])
    first = 0
    for image, target in enumerate(targets):
        cost = matching_cost(logits[image], boxes[image], target["labels"], target["boxes"]).numpy()
        for block in (range(4), range(4, 7)):
            mine = (
                (found.image == image)
                & (found.candidate >= block.start)
                & (found.candidate < block.stop)
            )
            rows, columns = (found.target[mine] - first).numpy(), found.candidate[mine].numpy()
            assert len(set(rows)) == len(set(columns)) == len(rows) == min(len(cost), len(block))
            assert math.isclose(
                cost[rows, columns].sum(), cheapest(cost[:, list(block)]), abs_tol=1e-9
            )
        first += len(cost)


def test_a_batch_without_targets_matches_nothing(make_outputs, make_targets) -> None:
    found = match(*predictions(make_outputs(3)), make_targets(0, 0, 0), [3, 3])
    assert [index.shape for index in found] == [(0,)] * 3
    assert {index.dtype for index in found} == {torch.int64}


def test_an_image_is_matched_as_if_it_were_alone(make_outputs, make_targets) -> None:
    logits, boxes = predictions(make_outputs(3))
    targets = make_targets(2, 0, 5)
    together = match(logits, boxes, targets, [6])
    for image, first in ((0, 0), (2, 2)):
        alone = match(logits[image, None], boxes[image, None], [targets[image]], [6])
        mine = together.image == image
        assert_close(together.candidate[mine], alone.candidate)
        assert_close(together.target[mine] - first, alone.target)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_candidate_that_is_not_finite_is_chosen_last(
    make_outputs, make_targets, bad: float
) -> None:
    logits, boxes = predictions(make_outputs(1))
    boxes[0, [1, 4], 2] = bad
    assert not set(match(logits, boxes, make_targets(4), [6]).candidate.tolist()) & {1, 4}
    assert len(set(match(logits, boxes, make_targets(6), [6]).candidate.tolist())) == 6


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_non_finite_costs_are_used_only_where_nothing_else_is_left(scale: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        cost = (rng.normal(size=(3, 4)) * scale).astype(np.float32)
        broken = rng.random(cost.shape) < 0.4
        filled = finite_cost(
            np.where(broken, rng.choice([np.nan, np.inf, -np.inf], cost.shape), cost)
        )
        assert (filled[~broken] == cost[~broken]).all()
        assert np.isfinite(filled).all()
        assert broken[linear_sum_assignment(filled)].sum() == cheapest(broken)


def test_costs_that_are_all_broken_are_all_equal() -> None:
    assert np.unique(finite_cost(np.full((2, 3), np.nan))).size == 1
