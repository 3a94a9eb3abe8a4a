"""The windowed vision transformer: windows, positions, stochastic depth, checkpointing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from rfdetr.models.detector import Detector
from rfdetr.models.encoder import drop_path, join_windows, partition_windows, resample_positions


@pytest.mark.parametrize("num_windows", [1, 2, 4])
def test_windows_there_and_back(num_windows: int) -> None:
    grid = torch.randn(2, 8, 12, 3)
    windows = partition_windows(grid, num_windows)
    assert windows.shape == (2 * num_windows**2, 96 // num_windows**2, 3)
    assert torch.equal(join_windows(windows, num_windows, (8, 12)), grid)


def test_windows_of_an_image_are_adjacent_and_row_by_row() -> None:
    cells = torch.arange(32.0).view(2, 4, 4, 1)
    windows = partition_windows(cells, 2).squeeze(-1)
    assert windows[1].tolist() == [2, 3, 6, 7]
    assert windows[2].tolist() == [8, 9, 12, 13]
    assert windows[4].tolist() == [16, 17, 20, 21]


def test_a_block_inside_windows_keeps_windows_apart_and_a_global_one_joins_them(
    make_detector: Callable[..., Detector],
) -> None:
    encoder = make_detector().encoder.eval()
    tokens = encoder.embed(torch.randn(2, 3, 64, 64))
    changed = tokens.clone()
    changed[0] += torch.randn_like(changed[0])  # one window of the first image
    for index, moved in ((1, [True] + 7 * [False]), (2, 4 * [True] + 4 * [False])):
        difference = (
            (encoder.run_block(index, changed) - encoder.run_block(index, tokens))
            .abs()
            .amax((1, 2))
        )
        assert (difference > 1e-4).tolist() == moved


@torch.no_grad()
def test_blocks_after_the_last_output_have_no_effect(
    make_detector: Callable[..., Detector],
) -> None:
    encoder = make_detector().encoder.eval()
    images = torch.randn(1, 3, 64, 64)
    before = encoder(images)
    for block in encoder.blocks[4:]:
        block.fc1.weight.zero_()
    assert_close(encoder(images), before, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(60, 64), (64, 72)])
def test_a_size_that_windows_do_not_divide_is_refused(
    make_detector: Callable[..., Detector], size: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match=rf"height {size[0]} and width {size[1]}.* = 16"):
        make_detector().encode(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("size", [(64, 64), (32, 64), (96, 96)])
def test_maps_have_the_patch_grid(
    make_detector: Callable[..., Detector], size: tuple[int, int]
) -> None:
    maps = make_detector(encoder="dinov2_registers_windowed_small").encode(torch.zeros(2, 3, *size))
    assert [tuple(feature_map.shape) for feature_map in maps] == 2 * [
        (2, 24, size[0] // 8, size[1] // 8)
    ]


def test_resampling_positions_to_their_own_grid_keeps_them() -> None:
    positions = torch.randn(1, 6, 6, 5)
    assert_close(resample_positions(positions, (6, 6)), positions)
    assert resample_positions(positions, (4, 9)).shape == (1, 4, 9, 5)


def test_drop_path_rates_rise_from_zero_to_the_given_one(
    make_detector: Callable[..., Detector],
) -> None:
    detector = make_detector()
    detector.set_drop_path(0.5)
    rates = [block.drop_path for block in detector.encoder.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_drop_path_drops_whole_sequences_and_keeps_the_mean() -> None:
    branch = torch.ones(4000, 2, 3)
    dropped = drop_path(branch, 0.25, training=True)
    assert_close(dropped.unique(), torch.tensor([0, 4 / 3]))
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert drop_path(branch, 0.25, training=False) is branch


def test_drop_path_acts_in_training_only(make_detector: Callable[..., Detector]) -> None:
    encoder = make_detector().encoder
    images = torch.randn(2, 3, 64, 64)
    plain = encoder(images)[-1]
    encoder.set_drop_path(0.9)
    assert not torch.allclose(encoder(images)[-1], plain)
    assert_close(encoder.eval()(images)[-1], plain)


def test_gradient_checkpointing_changes_no_gradient(make_detector: Callable[..., Detector]) -> None:
    encoder = make_detector().encoder
    images = torch.randn(2, 3, 64, 64)

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        encoder.gradient_checkpointing = checkpointing
        encoder.set_drop_path(0.5)  # the second pass must draw the same paths
        encoder.zero_grad()
        torch.manual_seed(1)
        sum(feature_map.square().mean() for feature_map in encoder(images)).backward()
        return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    plain = gradients(False)
    assert len(plain) > 50
    assert_close(gradients(True), plain)


def test_gradient_checkpointing_keeps_one_tensor_a_block(
    make_detector: Callable[..., Detector],
) -> None:
    encoder = make_detector().encoder
    images = torch.randn(2, 3, 64, 64)

    def bytes_kept(checkpointing: bool) -> int:
        encoder.gradient_checkpointing = checkpointing
        weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            maps = encoder(images)
        assert all(feature_map.requires_grad for feature_map in maps)
        return sum(kept.values())

    assert bytes_kept(True) < bytes_kept(False) / 3
