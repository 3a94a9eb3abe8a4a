"""Two-stage proposals: cells, groups, padding."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from rfdetr.models.transformer import Proposals, cell_boxes, flatten_levels


def make_proposals(num_queries: int = 5, groups: int = 3) -> Proposals:
    proposals = Proposals(width=8, num_logits=4, num_queries=num_queries, groups=groups)
    with torch.no_grad():
        for parameter in proposals.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return proposals


def test_cells_propose_boxes_around_their_centres_that_double_with_the_level() -> None:
    boxes, valid = cell_boxes(
        flatten_levels([torch.zeros(1, 8, 2, 4), torch.zeros(1, 8, 1, 2)], None)
    )
    assert_close(boxes[0, 1], torch.tensor([1.5 / 4, 0.5 / 2, 0.05, 0.05]))
    assert_close(boxes[0, 4], torch.tensor([0.5 / 4, 1.5 / 2, 0.05, 0.05]))
    assert_close(boxes[0, 9], torch.tensor([1.5 / 2, 0.5, 0.1, 0.1]))
    assert valid.all()


def test_cells_at_the_very_border_are_not_proposed() -> None:
    boxes, valid = cell_boxes(flatten_levels([torch.zeros(1, 8, 3, 64)], None))
    assert (~valid[0]).view(3, 64).sum(0).tolist() == [3] + 62 * [0] + [3]
    assert (boxes[~valid] == 0).all()


def test_under_padding_centres_are_relative_to_the_image_and_padded_cells_are_left_out() -> None:
    mask = torch.zeros(2, 16, 16, dtype=torch.bool)
    mask[1, 12:] = True
    mask[1, :, 8:] = True
    memory = flatten_levels([torch.zeros(2, 8, 4, 4)], mask)
    boxes, valid = cell_boxes(memory)
    assert valid[0].all()
    assert valid[1].view(4, 4).tolist() == 3 * [[True, True, False, False]] + [4 * [False]]
    assert_close(boxes[1, 5], torch.tensor([1.5 / 2, 1.5 / 3, 0.05, 0.05]))
    assert memory.valid_ratios is not None and memory.valid_ratios[:, 0].tolist() == [
        [1.0, 1.0],
        [0.5, 0.75],
    ]


@torch.no_grad()
def test_an_image_that_is_all_padding_gives_finite_numbers() -> None:
    found = make_proposals()(
        flatten_levels([torch.randn(1, 8, 4, 4)], torch.ones(1, 8, 8, dtype=torch.bool))
    )
    assert all(x.isfinite().all() for x in found)


def test_the_image_proposes_the_same_boxes_with_padding_and_without() -> None:
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    mask[:, :6, :4] = False
    padded, valid = cell_boxes(flatten_levels([torch.zeros(1, 8, 4, 4)], mask))
    alone, _ = cell_boxes(flatten_levels([torch.zeros(1, 8, 3, 2)], None))
    assert_close(padded[valid], alone[0])


@torch.no_grad()
def test_the_best_cells_are_taken_best_first() -> None:
    proposals = make_proposals(num_queries=4).eval()
    memory = flatten_levels([torch.randn(2, 8, 3, 5)], None)
    every = proposals.class_head(proposals.transform(memory.tokens.reshape(1, 30, 8))).view(
        2, 15, 4
    )
    best = every.amax(-1).topk(4).indices
    found = proposals(memory)
    assert_close(found.logits[:, 0], every.take_along_dim(best.unsqueeze(-1), 1))
    assert found.queries.shape == (2, 1, 4, 8) and found.boxes.shape == (2, 1, 4, 4)


@torch.no_grad()
def test_where_there_are_fewer_cells_than_queries_all_are_taken() -> None:
    found = make_proposals(num_queries=50, groups=2)(
        flatten_levels([torch.randn(2, 8, 3, 4)], None)
    )
    assert found.boxes.shape == (2, 2, 12, 4)
    assert (found.boxes[..., :2].unsqueeze(3) != found.boxes[..., :2].unsqueeze(2)).any(
        -1
    ).sum() == 2 * 2 * 12 * 11


@torch.no_grad()
def test_a_group_proposes_as_if_alone_and_the_first_is_the_one_of_evaluation() -> None:
    proposals = make_proposals()
    memory = flatten_levels([torch.randn(2, 8, 4, 4)], None)
    before = proposals(memory)
    proposals.linear.weight[1] *= -1
    after = proposals(memory)
    assert_close([x[:, ::2] for x in after], [x[:, ::2] for x in before])
    assert not torch.allclose(after.boxes[:, 1], before.boxes[:, 1])
    assert_close([x[:, 0] for x in proposals.eval()(memory)], [x[:, 0] for x in before])


def test_gradients_reach_the_layers_of_every_group_also_under_autocast() -> None:
    proposals = make_proposals()
    tokens = torch.randn(2, 8, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = proposals(flatten_levels([tokens], None))
    (found.logits.square().sum() + found.boxes.square().sum()).backward()
    assert tokens.grad is not None and tokens.grad.abs().sum() > 0
    for parameter in proposals.parameters():
        assert parameter.grad is not None and (parameter.grad.flatten(1).abs().sum(1) > 0).all()
