"""Steps of augmentation: labels sit on the pixels, nothing at zero strength, keyed draws."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rfdetr.config.augment import PRESETS, STEPS, steps_of
from rfdetr.data.augmentation.effects import add_noise, apply_effects, blur, compress, recolor
from rfdetr.data.augmentation.effects import hue_and_saturation as turned_colours
from rfdetr.data.augmentation.mixing import MIXING, View, compose, hidden
from rfdetr.data.augmentation.warp import draw_placement, place_objects, place_pixels, warp
from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.layout import find_splits, load_index
from rfdetr.data.loaders import EpochSampler, build_loader
from rfdetr.data.tiling import cut_tiles
from rfdetr.data.transforms import RECIPE, EvalTransform, TrainTransform
from rfdetr.geometry.homography import corners, ellipse_bounds, facing, moved_points, turning
from rfdetr.geometry.polygons import Crop, Segmentation
from rfdetr.synthetic.generate import generate

BENDS = {
    "vertical_flip": {"p": 0.5},
    "quarter_turn": {"p": 0.5},
    "rotate": {"p": 0.5, "degrees": (-180, 180)},
    "affine": {
        "p": 0.5, "rotate": (-30, 30), "scale": (0.5, 2), "shear": (-20, 20),
        "translate": (-0.3, 0.3),
    },
    "perspective": {"p": 0.5, "strength": (0, 0.2)},
}  # fmt: skip
seeds = st.integers(0, 2**32)


def blob(rng: np.random.Generator, height: int, width: int) -> Segmentation:
    """An outline somewhere in an image, without tips too sharp for a pixel."""
    angle = np.arange(24) * np.pi / 12
    radius = rng.uniform(0.85, 1, 24)[:, None] * rng.uniform(0.15, 0.4, 2) * min(height, width)
    points = np.stack((np.cos(angle), np.sin(angle)), 1) * radius
    points += rng.uniform(0.1, 0.9, 2) * (width, height)
    return Segmentation((points.clip(0, [width, height]).astype(np.float32),), b"", height, width)


def bounds_of(mask: np.ndarray) -> list[int]:
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [x[0], y[0], x[-1] + 1, y[-1] + 1]


def corners_of(box_cxcywh: np.ndarray, height: int, width: int) -> np.ndarray:
    centre, half = box_cxcywh[:2], box_cxcywh[2:] / 2
    return np.concatenate((centre - half, centre + half)) * [width, height, width, height]


@settings(max_examples=40)
@given(seeds, st.booleans())
def test_boxes_and_masks_sit_on_the_warped_pixels(seed: int, as_rle: bool) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(60, 160, 2))
    size = (int(rng.integers(60, 160)), int(rng.integers(60, 160)))
    outline = blob(rng, height, width)
    drawn = outline.bitmap(Crop(0, 0, width, height), (height, width))
    left, top = int(rng.integers(0, width // 3)), int(rng.integers(0, height // 3))
    crop = Crop(left, top, width - left // 2, height - top // 2, bool(rng.integers(2)))
    placement = draw_placement(crop, BENDS, rng)
    image = np.repeat(drawn[..., None], 3, 2).astype(np.uint8) * 255
    pixels = place_pixels(image, placement, size)[0].numpy()
    given_outline = Segmentation((), outline.to_rle(), height, width) if as_rle else outline
    box = np.array([outline.bounds(Crop(0, 0, width, height))], np.float32)
    matrix = placement.to_view(size)
    boxes, kept, moved = place_objects(box, [given_outline], matrix, size)
    seen = pixels > 190  # gray is beside the image
    if not seen.any():
        assert not kept.any() or min(boxes[0, 2:] * size[::-1]) < 4
        return
    if min(bounds_of(seen)[2] - bounds_of(seen)[0], bounds_of(seen)[3] - bounds_of(seen)[1]) < 4:
        return
    assert kept.all() and moved[0] is not None
    frame = Crop(0, 0, size[1], size[0])
    mask = moved[0].bitmap(frame, size)
    np.testing.assert_allclose(corners_of(boxes[0], *size), bounds_of(mask), atol=1)
    border = seen ^ mask  # an edge of a pixel's width, no area
    assert border.sum() <= 1.6 * (np.abs(np.diff(mask, axis=0)).sum() + np.abs(
        np.diff(mask, axis=1)).sum()) + 8  # fmt: skip


@settings(max_examples=30)
@given(seeds)
def test_an_ellipse_has_the_box_of_its_pixels_without_an_outline(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(20, 60, 2)
    box = np.concatenate((low, low + rng.uniform(20, 60, 2)))
    turn = np.linspace(0, 2 * np.pi, 4000)
    on_it = (box[:2] + box[2:]) / 2 + (box[2:] - box[:2]) / 2 * np.stack(
        (np.cos(turn), np.sin(turn)), 1
    )
    quad = corners(0, 0, 120, 120) + rng.uniform(-24, 24, (4, 2))
    matrix = facing(quad, 120, 120) @ turning(rng.uniform(-180, 180))
    if (on_it @ matrix[2, :2] + matrix[2, 2]).min() < 0.1:
        return  # near the horizon
    there = moved_points(matrix, on_it)
    expected = [*there.min(0), *there.max(0)]
    span = np.ptp(there, axis=0).max()
    np.testing.assert_allclose(ellipse_bounds(matrix, box[None])[0], expected, atol=1e-4 * span)


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_nothing_happens_at_zero_strength(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 120, 3), np.uint8)
    boxes = np.array([[10, 20, 50, 60], [0, 0, 120, 90]], np.float32)
    none = {
        "horizontal_flip": {"p": 0}, "rotate": {"p": 1, "degrees": (0, 0)},
        "affine": {"p": 1, "rotate": (0, 0), "scale": (1, 1), "shear": (0, 0),
                   "translate": (0, 0)},
        "perspective": {"p": 1, "strength": (0, 0)},
        "hsv": {"p": 1, "hue": (0, 0), "saturation": (0, 0), "value": (0, 0)},
        "brightness_contrast": {"p": 1, "brightness": (0, 0), "contrast": (0, 0)},
        "blur": {"p": 1, "radius": (0, 0)}, "noise": {"p": 1, "deviation": (0, 0)},
    }  # fmt: skip
    plain = EvalTransform(size)(image, boxes, rng)
    shown = TrainTransform(size, steps=none)(image, boxes, np.random.default_rng(1))
    assert torch.equal(shown.image, plain.image)
    np.testing.assert_allclose(shown.boxes_cxcywh, plain.boxes_cxcywh, atol=1e-6)
    assert shown.kept.all()
    # A warp that changes nothing samples each pixel where it is.
    assert np.array_equal(warp(image, np.eye(3), (90, 120)).permute(1, 2, 0), image)


def test_mirrors_and_quarter_turns_are_exact() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    boxes = np.array([[6, 4, 18, 14]], np.float32)
    found = set()
    for seed in range(24):
        placement = draw_placement(
            Crop(0, 0, 60, 40), {"vertical_flip": {"p": 0.5}, "quarter_turn": {"p": 0.7}},
            np.random.default_rng(seed),
        )  # fmt: skip
        expected = np.rot90(image[::-1] if placement.upended else image, placement.turns)
        size = expected.shape[:2]
        assert np.array_equal(place_pixels(image, placement, size).permute(1, 2, 0), expected)
        mask = np.zeros((40, 60), bool)
        mask[4:14, 6:18] = True
        mask = np.rot90(mask[::-1] if placement.upended else mask, placement.turns)
        placed, _, _ = place_objects(boxes, [], placement.to_view(size), size)
        np.testing.assert_allclose(corners_of(placed[0], *size), bounds_of(mask), atol=1e-4)
        found.add((placement.upended, placement.turns))
    assert len(found) == 8


def test_a_view_beside_the_image_is_gray_and_has_no_objects() -> None:
    steps = {"affine": {"p": 1, "rotate": (0, 0), "scale": (1, 1), "shear": (0, 0),
                        "translate": (1, 1)}}  # fmt: skip
    image = np.full((30, 30, 3), 250, np.uint8)
    shown = TrainTransform(32, steps=steps)(
        image, np.array([[3, 3, 20, 20]], np.float32), np.random.default_rng(0)
    )
    assert (shown.image == 128).all() and not shown.kept.any() and len(shown.boxes_cxcywh) == 0


def test_colours_blur_noise_and_compression() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(40, 200, (3, 48, 64), np.uint8))
    turned = recolor(image, turned_colours(120, 1), 0)
    assert torch.equal(turned, image[[2, 0, 1]])  # red becomes green
    gray = recolor(image, turned_colours(0, 0), 0)
    assert (gray == gray[:1]).all()
    flat = torch.full((3, 20, 20), 77, dtype=torch.uint8)
    assert torch.equal(blur(flat, 1.3), flat)
    point = torch.zeros((3, 21, 21), dtype=torch.uint8)
    point[:, 10, 10] = 255
    spread = blur(point, 2.0)[0].double()
    distance = (torch.arange(21) - 10).double() ** 2
    assert spread.sum() == pytest.approx(255, rel=0.2) and spread[10, 10] < 12
    assert (spread.sum(0) * distance).sum() / spread.sum() == pytest.approx(3.5, abs=1)
    noise = add_noise(torch.full((3, 64, 64), 128, dtype=torch.uint8), 10.0, rng).double() - 128
    assert abs(noise.mean()) < 0.5 and noise.std() == pytest.approx(10, rel=0.05)
    smooth = torch.arange(64, dtype=torch.uint8).mul(3).expand(3, 48, 64)
    assert 0 < (compress(smooth, 30).int() - smooth.int()).abs().max() < 30
    steps = steps_of("strong") | {
        name: {**STEPS[name]().model_dump(), "p": 1}
        for name in ("hsv", "brightness_contrast", "blur", "noise", "jpeg")
    }
    first, again = (apply_effects(image, steps, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, image)


def view(*boxes: list[float], masks: bool = False, side: int = 40) -> View:
    """A black view with boxes xyxy in pixels, whose masks are they."""
    ends = np.array(boxes, np.float32).reshape(-1, 4)
    drawn = np.zeros((len(ends), side, side), bool)
    for mask, (left, top, right, bottom) in zip(drawn, ends.astype(int), strict=True):
        mask[top:bottom, left:right] = True
    relative = np.concatenate((ends[:, :2] + ends[:, 2:], 2 * (ends[:, 2:] - ends[:, :2])), 1)
    image = torch.zeros((3, side, side), dtype=torch.uint8)
    labels = np.arange(len(ends))
    return View(image, relative / 2 / side, labels, drawn if masks else None)


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_mostly_hidden_is_dropped(masks: bool) -> None:
    """Of 20 columns, 5 are a quarter."""
    front = np.zeros((40, 40), bool)
    for shown, kept in ((20, True), (5, True), (4, False), (0, False)):
        front[:] = False
        front[:, 10 + shown : 30] = True
        left = hidden(view([10, 10, 30, 30], [32, 0, 36, 9], masks=masks), front)
        assert left.labels.tolist() == ([0, 1] if kept else [1])
        if kept and masks:  # the box follows what is left
            assert corners_of(left.boxes_cxcywh[0], 40, 40) == pytest.approx(
                [10, 10, 10 + shown, 30]
            )
            assert left.masks is not None and left.masks[0].sum() == 20 * shown
        elif kept:
            assert corners_of(left.boxes_cxcywh[0], 40, 40) == pytest.approx([10, 10, 30, 30])


ALWAYS = {
    "mosaic": {"p": 1, "until": 0.8, "centre": (0.4, 0.6)},
    "copy_paste": {"p": 1, "until": 1, "objects": (50, 50)},
    "mixup": {"p": 1, "until": 0.5, "share": (0.5, 0.5)},
    "cutout": {"p": 1, "holes": (2, 2), "size": (0.2, 0.2)},
}


def of_size(k: int, size: tuple[int, int], drawn: bool) -> View:
    """View k is of gray 10 k + 50, with a white square of its own class."""
    height, width = size
    image = torch.full((3, height, width), 10 * k + 50, dtype=torch.uint8)
    mask = np.zeros((1, height, width), bool)
    mask[0, height // 4 : height // 2, width // 4 : width // 2] = True
    image[:, torch.from_numpy(mask[0])] = 255
    x, y, right, bottom = bounds_of(mask[0])
    box = np.array([[(x + right) / 2 / width, (y + bottom) / 2 / height, (right - x) / width,
                     (bottom - y) / height]], np.float32)  # fmt: skip
    x, y, right, bottom = bounds_of(mask[0])
    points = np.array([[x, y], [right, y], [right, bottom], [x, bottom]], np.float32)
    outline, frame = Segmentation((points,), b"", height, width), Crop(0, 0, width, height)
    return View(image, box, np.array([k]), mask if drawn else None, [outline], frame)


def test_mixed_views_have_the_objects_of_all_and_end_early() -> None:
    def composed(*names: str, progress: float = 0.0) -> View:
        steps = {name: ALWAYS[name] for name in names}
        return compose(of_size, steps, np.random.default_rng(4), (60, 80), progress)

    quarters = composed("mosaic")
    assert sorted(quarters.labels.tolist()) == [0, 1, 2, 3] and quarters.masks is not None
    for box, mask in zip(quarters.boxes_cxcywh, quarters.masks, strict=True):
        assert bounds_of(mask) == pytest.approx(corners_of(box, 60, 80), abs=1e-3)
        assert (quarters.image[:, torch.from_numpy(mask)] == 255).all()
    pasted = composed("copy_paste")  # the one is where the other was: that is gone
    assert pasted.labels.tolist() == [4] and pasted.masks is not None
    assert bounds_of(pasted.masks[0]) == pytest.approx(corners_of(pasted.boxes_cxcywh[0], 60, 80))
    blended = composed("mixup")
    assert blended.labels.tolist() == [0, 5] and blended.image[0, 0, 0] == (50 + 100) // 2
    holes = composed("cutout").image
    assert 0.04 <= (holes == 128).double().mean() <= 0.08
    for progress, count in ((0.5, 2), (0.51, 1)):
        assert len(composed("mixup", progress=progress).labels) == count
    assert len(composed("mosaic", progress=0.81).labels) == 1


@pytest.fixture(scope="module")
def drawn_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve drawn images with outlines."""
    return generate(tmp_path_factory.mktemp("augment") / "drawn", 24, sides=(96, 128), plain=True)


def sample_set(root: Path, steps: dict[str, Any], **options: Any) -> DetectionDataset:
    index = load_index(find_splits(root), "train", masks=options.pop("outlines", True))
    single = {name: step for name, step in steps.items() if name not in MIXING}
    mixing = {name: step for name, step in steps.items() if name in MIXING}
    return DetectionDataset(
        index, TrainTransform(48, 0.2, single), seed=5, mixing=mixing, **options
    )


def samples(dataset: DetectionDataset, workers: int, sizes: Any = None) -> list[Any]:
    order: dict[str, Any] = {"progress": lambda epoch: (epoch + 1) / 10, "sizes": sizes}
    sampler = EpochSampler(len(dataset), shuffle=True, seed=5, epoch=2, **order)
    loader = build_loader(dataset, sampler, batch_size=1, num_workers=workers)
    return [(images.tensors, target) for images, (target,) in loader]


def test_samples_are_the_same_with_any_number_of_workers(drawn_set: Path) -> None:
    everything = {name: {**STEPS[name]().model_dump(), "p": 0.6} for name in STEPS}
    dataset = sample_set(drawn_set, everything)
    with_workers = samples(dataset, 2)
    torch.set_num_threads(threads := torch.get_num_threads() + 1)
    alone = samples(sample_set(drawn_set, everything), 0)
    torch.set_num_threads(threads - 1)
    for (image, target), (other, same) in zip(with_workers, alone, strict=True):
        assert torch.equal(image, other) and target.keys() == same.keys()
        assert all(torch.equal(target[name], same[name]) for name in target)


@pytest.mark.parametrize("preset", PRESETS)
def test_boxes_are_those_of_the_masks(drawn_set: Path, preset: str) -> None:
    """Within a pixel: outlines are drawn by COCO's rule, which rounds."""
    dataset = sample_set(drawn_set, steps_of(preset))
    near = objects = 0
    sizes = itertools.cycle([(192, 256), (256, 192)])  # no shape is thinner than a pixel
    for image, target in samples(dataset, 0, lambda: sizes):
        height, width = image.shape[-2:]
        assert len({len(target[name]) for name in ("labels", "boxes", "masks")}) == 1
        assert ((target["boxes"] >= 0) & (target["boxes"] <= 1)).all()
        for box, mask in zip(target["boxes"].numpy(), target["masks"].numpy(), strict=True):
            if mask.any():
                apart = np.abs(corners_of(box, height, width) - bounds_of(mask)).max()
                near, objects = near + bool(apart <= 1.5), objects + 1
    assert objects > 20 and near >= 0.97 * objects


def test_of_a_detection_model_the_outlines_make_boxes_and_no_masks(drawn_set: Path) -> None:
    steps = {"rotate": {"p": 1, "degrees": (30, 30)}, "copy_paste": ALWAYS["copy_paste"]}
    _, target = sample_set(drawn_set, steps, masks=False)[0, 1]
    assert "masks" not in target and len(target["labels"])
    turned = {"rotate": steps["rotate"]}
    exact, rough = (
        sample_set(drawn_set, turned, outlines=outlines, masks=False)[0, 1][1]["boxes"]
        for outlines in (None, False)
    )
    assert not torch.equal(exact, rough)


def test_tiles_are_mixed_with_tiles_of_their_file(drawn_set: Path) -> None:
    dataset = sample_set(drawn_set, {"mosaic": ALWAYS["mosaic"]})
    tiles, _ = cut_tiles(dataset.index, (64, 64), 0.2, training=True)
    dataset = DetectionDataset(tiles, dataset.transform, seed=5, mixing=dataset.mixing)
    assert dataset[0, 1][0].shape == (3, 48, 48)
    assert list(dataset._files) == [tiles.tiles.files[1]]  # type: ignore[union-attr]


def test_a_damaged_partner_is_replaced(tiny_coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = load_index(find_splits(tiny_coco), "train")
    for name in ("1.png", "2.jpg", "3.png", "4.jpg"):
        (tiny_coco / "train" / name).write_bytes(b"no image")
    options: dict[str, Any] = {"mixing": {"mosaic": ALWAYS["mosaic"]}, "forgiving": True}
    dataset = DetectionDataset(index, TrainTransform(48), seed=5, **options)
    assert all("undecodable" not in dataset[epoch, 0][1] for epoch in range(6))
    assert "replaced by" in caplog.text


def test_the_recipe_of_the_configuration_is_that_of_the_transform() -> None:
    assert steps_of("default") == RECIPE and all(steps_of(preset) for preset in PRESETS)
