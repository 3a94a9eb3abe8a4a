"""Samples, their randomness, their order, and batches with and without workers."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rfdetr.data.dataset import DetectionDataset, collate, keyed_generator
from rfdetr.data.images import ImageError, decode_image, resize
from rfdetr.data.layout import find_splits, load_index
from rfdetr.data.loaders import EpochSampler, build_loader
from rfdetr.data.transforms import EvalTransform, TrainTransform, draw_crop

Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]


def training_set(root: Path, seed: int = 7) -> DetectionDataset:
    return DetectionDataset(load_index(find_splits(root), "train"), TrainTransform(32), seed=seed)


def evaluation_set(root: Path) -> DetectionDataset:
    return DetectionDataset(
        load_index(find_splits(root), "valid"), EvalTransform(32), evaluation=True
    )


def batches(dataset: DetectionDataset, epoch: int, workers: int) -> list[Any]:
    sampler = EpochSampler(len(dataset), shuffle=True, seed=dataset.seed, epoch=epoch)
    return list(build_loader(dataset, sampler, batch_size=4, num_workers=workers))


def assert_same(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second)
    for (images_a, targets_a), (images_b, targets_b) in zip(first, second, strict=True):
        assert torch.equal(images_a.tensors, images_b.tensors)
        for a, b in zip(targets_a, targets_b, strict=True):
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_sample_is_what_the_contract_says(tiny_coco: Path) -> None:
    dataset = evaluation_set(tiny_coco)
    image, target = dataset[3]
    assert torch.equal(image, resize(decode_image(dataset.index.path(3)), (32, 32)))
    assert {name: tensor.dtype for name, tensor in target.items()} == {
        "labels": torch.int64,
        "boxes": torch.float32,
        "image_id": torch.int64,
        "orig_size": torch.int64,
        "iscrowd": torch.bool,
        "area": torch.float32,
        "boxes_xyxy": torch.float32,
        "tone": torch.float32,
    }
    assert target["image_id"].item() == 4 and target["orig_size"].tolist() == [48, 64]
    rows = dataset.index.rows(3)
    np.testing.assert_array_equal(target["boxes_xyxy"], dataset.index.boxes[rows])
    centres = (dataset.index.boxes[rows, :2] + dataset.index.boxes[rows, 2:]) / 2 / [64, 48]
    np.testing.assert_allclose(target["boxes"][:, :2], centres, atol=1e-6)


def test_an_image_without_objects_has_empty_targets_of_the_right_shape(tiny_coco: Path) -> None:
    for dataset in (training_set(tiny_coco), evaluation_set(tiny_coco)):
        _, target = dataset[0]
        assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)


def test_crowd_boxes_are_in_evaluation_targets_only(tiny_coco: Path, edit_coco: Edit) -> None:
    for split in ("train", "valid"):
        path = tiny_coco / split / "_annotations.coco.json"
        edit_coco(
            path, lambda content: [record.update(iscrowd=1) for record in content["annotations"]]
        )
    assert all(
        len(target["labels"]) == 0
        for _, target in map(training_set(tiny_coco).__getitem__, range(6))
    )
    _, target = evaluation_set(tiny_coco)[3]
    assert target["iscrowd"].tolist() == [True] * len(target["labels"]) != []


def test_samples_depend_on_seed_epoch_and_image_alone(tiny_coco: Path) -> None:
    dataset = training_set(tiny_coco)
    forward = [dataset[1, i][0] for i in range(6)]
    assert all(torch.equal(dataset[1, i][0], forward[i]) for i in reversed(range(6)))
    assert not all(torch.equal(dataset[2, i][0], forward[i]) for i in range(6))
    assert not all(
        torch.equal(training_set(tiny_coco, seed=8)[1, i][0], forward[i]) for i in range(6)
    )
    assert torch.equal(dataset[0, 5][0], dataset[5][0])


def test_generator_keys_of_different_purposes_do_not_meet() -> None:
    draws = {
        key: keyed_generator(*key).random()
        for key in [(0,), (0, 0), (0, 0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0)]
    }
    assert len(set(draws.values())) == len(draws)


def test_batches_are_the_same_with_any_number_of_workers(tiny_coco: Path) -> None:
    dataset = training_set(tiny_coco)
    dataset.transform = TrainTransform(32, color_jitter=0.3)
    assert_same(batches(dataset, epoch=3, workers=0), batches(dataset, epoch=3, workers=2))


def test_lasting_workers_see_each_new_epoch(tiny_coco: Path) -> None:
    dataset = training_set(tiny_coco)
    sampler = EpochSampler(len(dataset), shuffle=True, seed=7)
    loader = build_loader(dataset, sampler, batch_size=4, num_workers=1)
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        assert_same(list(loader), batches(dataset, epoch, workers=0))


def test_spawned_workers_get_the_same_data(tiny_coco: Path) -> None:
    dataset = training_set(tiny_coco)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        image, target = pool.apply(dataset.__getitem__, ((2, 1),))
    assert torch.equal(image, dataset[2, 1][0]) and torch.equal(
        target["boxes"], dataset[2, 1][1]["boxes"]
    )


def test_targets_travel_as_bytes(tiny_coco: Path) -> None:
    _, target = evaluation_set(tiny_coco)[3]
    sent = pickle.dumps(target)
    assert b"_reconstruct" in sent and b"torch._utils" not in sent
    restored = pickle.loads(sent)
    assert type(restored) is type(target) and all(
        torch.equal(restored[key], target[key]) for key in target
    )


def test_collate_joins_without_padding(tiny_coco: Path) -> None:
    dataset = evaluation_set(tiny_coco)
    images, targets = collate([dataset[0], dataset[1]])
    assert (
        images.tensors.shape == (2, 3, 32, 32)
        and images.tensors.dtype == torch.uint8
        and images.mask is None
    )
    assert [target["image_id"].item() for target in targets] == [1, 2]


def test_rectangles_are_padded_to_the_largest_height_and_the_largest_width(tiny_coco: Path) -> None:
    dataset = training_set(tiny_coco)
    keys: list[Any] = [(0, 1, (32, 96)), (0, 2, (64, 32)), (0, 3, (64, 96))]
    images, _ = collate([dataset[key] for key in keys])
    assert images.tensors.shape == (3, 3, 64, 96) and images.mask is not None
    for key, pixels, padding in zip(keys, images.tensors, images.mask, strict=True):
        height, width = key[2]
        assert not padding[:height, :width].any() and padding.sum() == 64 * 96 - height * width
        assert torch.equal(pixels[:, :height, :width], dataset[key][0])
        assert not pixels[:, padding].any()


def test_orders_differ_by_epoch_and_hold_every_image_once() -> None:
    sampler = EpochSampler(50, shuffle=True, seed=1)
    first = list(sampler)
    assert sorted(i for _, i in first) == list(range(50)) and {epoch for epoch, _ in first} == {0}
    sampler.set_epoch(1)
    assert [i for _, i in sampler] != [i for _, i in first]
    assert list(EpochSampler(3, shuffle=False)) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize(("length", "world_size"), [(10, 4), (8, 4), (2, 5), (7, 1)])
def test_ranks_share_an_epoch(length: int, world_size: int) -> None:
    for shuffle, even in ((True, False), (False, False), (False, True)):
        samplers = [
            EpochSampler(
                length, shuffle=shuffle, seed=3, rank=rank, world_size=world_size, even=even
            )
            for rank in range(world_size)
        ]
        shares = [[i for _, i in sampler] for sampler in samplers]
        assert [len(share) for share in shares] == [len(sampler) for sampler in samplers]
        together = [i for share in shares for i in share]
        assert set(together) == set(range(length))
        if (
            shuffle or even or length < world_size
        ):  # a rank without images would be missed where all must meet
            assert len({len(share) for share in shares}) == 1
        else:
            assert len(together) == length


@pytest.mark.parametrize(
    ("length", "at_least", "world_size"), [(6, 20, 1), (7, 40, 2), (5, 9, 4), (9, 5, 2)]
)
def test_a_small_set_is_repeated_in_new_orders(length: int, at_least: int, world_size: int) -> None:
    shares = [
        list(
            EpochSampler(
                length, shuffle=True, seed=3, rank=rank, world_size=world_size, at_least=at_least
            )
        )
        for rank in range(world_size)
    ]
    total = max(length, at_least)
    numbers = [i for keys in zip(*shares, strict=True) for _, i in keys][:total]
    rounds = [numbers[first : first + length] for first in range(0, total, length)]
    for repetition, order in enumerate(rounds):  # whole ones, the last of them cut
        assert {i // length for i in order} == {repetition}
        assert len({i % length for i in order}) == len(order)
    assert rounds[0] == [i for _, i in EpochSampler(length, shuffle=True, seed=3)]
    if length < at_least:
        assert [i % length for i in rounds[1]] != rounds[0][: len(rounds[1])]
    assert len(EpochSampler(6, shuffle=False, at_least=20)) == 6  # an evaluation repeats nothing


def test_a_repeated_image_is_seen_in_another_view(tiny_coco: Path) -> None:
    dataset = training_set(tiny_coco)
    first, again = dataset[1, 4], dataset[1, 4 + len(dataset)]
    assert first[1]["image_id"] == again[1]["image_id"] and not torch.equal(first[0], again[0])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_each_step_has_images_of_its_size(tiny_coco: Path) -> None:
    dataset = training_set(tiny_coco)

    def sizes() -> Iterator[int]:
        return iter((24, 24, 48, 48, 16, 16))

    loaded = []
    for workers in (0, 2):
        sampler = EpochSampler(6, shuffle=True, seed=7, sizes=sizes)
        loaded.append(list(build_loader(dataset, sampler, batch_size=2, num_workers=workers)))
    assert [images.tensors.shape[-1] for images, _ in loaded[0]] == [24, 48, 16]
    assert_same(*loaded)


def test_a_view_of_another_size_is_one_resize_of_the_same_window(tiny_coco: Path) -> None:
    dataset = training_set(tiny_coco)
    for i in range(6):
        image, target = dataset[0, i, 96]
        crop = draw_crop(48, 64, keyed_generator(7, 0, i))
        pixels = decode_image(dataset.index.path(i))[crop.top : crop.bottom, crop.left : crop.right]
        expected = resize(pixels, (96, 96))
        assert torch.equal(image, expected.flip(-1) if crop.flipped else expected)
        assert torch.equal(target["boxes"], dataset[0, i][1]["boxes"])


def test_an_image_damaged_after_indexing_stops_the_loader_by_name(tiny_coco: Path) -> None:
    dataset = training_set(tiny_coco)
    dataset.index.path(2).write_bytes(b"\xff\xd8 cut")
    with pytest.raises(ImageError, match=r"2.jpg"):
        batches(dataset, epoch=0, workers=1)


def handed_out(
    dataset: DetectionDataset, size: int, ranks: int, start: int, batches: int | None
) -> tuple[list[int], int]:
    """Images that all ranks take, in the epoch's order, and the count that their state tells
    afterwards.
    """
    shares, states = [], set()
    for rank in range(ranks):
        sampler = EpochSampler(len(dataset), shuffle=True, seed=7, rank=rank, world_size=ranks)
        loader = build_loader(dataset, sampler, batch_size=size)
        loader.load_state_dict({"images": start, "batch": 0})
        left = loader.batches_after(start)
        taken = [
            [int(target["image_id"]) for target in targets]
            for _, targets in itertools.islice(loader, batches)
        ]
        assert len(taken) == (left if batches is None else min(batches, left))
        shares.append([image for batch in taken for image in batch])
        states.add(loader.state_dict()["images"])
    (state,) = states
    return [
        image for images in itertools.zip_longest(*shares) for image in images if image is not None
    ], state


@pytest.mark.parametrize(
    ("before", "after"), [((2, 1), (3, 1)), ((1, 2), (4, 1)), ((2, 1), (1, 2)), ((1, 2), (1, 3))]
)
def test_an_epoch_goes_on_with_other_batches_and_processes(
    tiny_coco: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    """Sizes are (images of a batch, ranks); the first images come again where ranks would take
    fewer.
    """
    dataset = training_set(tiny_coco)
    whole, _ = handed_out(dataset, 1, 1, 0, None)
    first, state = handed_out(dataset, *before, 0, 1)
    rest, _ = handed_out(dataset, *after, state, None)
    assert (first + rest)[:6] == whole
    assert len(first + rest) - 6 < after[1]


def test_an_iteration_without_a_batch_uses_up_where_to_start(tiny_coco: Path) -> None:
    dataset = training_set(tiny_coco)
    loader = build_loader(dataset, EpochSampler(6, shuffle=True, seed=7), batch_size=2)
    loader.load_state_dict({"images": 6, "batch": 2})
    iter(loader)
    assert len(list(loader)) == 3
