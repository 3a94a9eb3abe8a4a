"""Prediction: one preprocessing with validation, batches that change nothing, labels, streaming."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rfdetr.config import RFDETRMiniConfig
from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.layout import find_splits, load_index
from rfdetr.data.sources import in_batches, load_image, one_ahead
from rfdetr.data.transforms import EvalTransform
from rfdetr.inference.predictor import NetworkPredictor
from rfdetr.models.build import build_detector

SIDE = 96
CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
SIZES = ((50, 80), (120, 30), (96, 96), (33, 44), (64, 64))
IMAGES = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def build(labels: dict[int, str], **changes: object) -> NetworkPredictor:
    settings = {
        "pretrain_weights": None,
        "resolution": SIDE,
        "num_classes": 3,
        "num_select": 30,
        **changes,
    }
    config = RFDETRMiniConfig(**settings)
    torch.manual_seed(0)
    model = build_detector(config)
    return NetworkPredictor(
        model, resolution=SIDE, num_select=config.num_select, labels=labels, device=CPU
    )


@pytest.fixture(scope="module")
def predictor() -> NetworkPredictor:
    return build({0: "cat", 1: "dog", 2: "owl"})


def test_predict_and_validation_see_the_same_tensors(
    predictor: NetworkPredictor, tiny_coco: Path
) -> None:
    index = load_index(find_splits(tiny_coco), "valid")
    dataset = DetectionDataset(index, EvalTransform(SIDE), evaluation=True)
    for position in range(len(dataset)):  # JPEG and PNG in turn
        for source in (index.path(position), Image.open(index.path(position))):
            assert torch.equal(predictor.preprocess([load_image(source)])[0], dataset[position][0])


def test_boxes_are_inside_the_image_and_best_first(predictor: NetworkPredictor) -> None:
    for image, found in zip(IMAGES, predictor.predict(IMAGES, threshold=0.0), strict=True):
        height, width = image.shape[:2]
        assert (
            found.xyxy.dtype == np.float32
            and found.confidence is not None
            and found.class_id is not None
        )
        assert (found.xyxy >= 0).all() and (found.xyxy <= [width, height, width, height]).all()
        assert (np.diff(found.confidence) <= 0).all()
        names = [predictor.labels[label] for label in found.class_id.tolist()]
        assert found.data["class_name"].tolist() == names


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_the_batch_size_changes_nothing(predictor: NetworkPredictor, batch_size: int) -> None:
    alone = [predictor.predict([image], threshold=0.0)[0] for image in IMAGES]
    together = predictor.predict(IMAGES, threshold=0.0, batch_size=batch_size)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a.confidence, b.confidence, atol=1e-5)
        np.testing.assert_allclose(a.xyxy, b.xyxy, atol=1e-2)


def test_the_threshold_is_the_lowest_confidence_reported(predictor: NetworkPredictor) -> None:
    everything = predictor.predict(IMAGES[:1], threshold=0.0)[0]
    assert everything.confidence is not None
    limit = float(everything.confidence[4])
    assert len(predictor.predict(IMAGES[:1], threshold=limit)[0]) == 5
    nothing = predictor.predict(IMAGES[:1], threshold=1.0)[0]
    assert (
        len(nothing) == 0
        and nothing.xyxy.shape == (0, 4)
        and nothing.data["class_name"].shape == (0,)
    )


def test_thresholds_by_class_go_before_the_common_one(predictor: NetworkPredictor) -> None:
    (found,) = predictor.predict(IMAGES[:1], 0.0)
    name = str(found.data["class_name"][0])
    of_class = found.data["class_name"] == name
    limit = float(np.median(found.confidence[of_class]))
    (kept,) = predictor.predict(IMAGES[:1], 0.0, thresholds={name: limit})
    expected = found.confidence[~of_class | (found.confidence >= limit)]
    np.testing.assert_array_equal(kept.confidence, expected)
    with pytest.raises(ValueError, match=r"no class 'unicorn'; this model knows "):
        predictor.predict(IMAGES[:1], thresholds={"unicorn": 0.5})
    with pytest.raises(ValueError, match=r"thresholds\['.*'\] is 1.5"):
        predictor.predict(IMAGES[:1], thresholds={name: 1.5})


def test_logits_without_a_name_are_never_reported() -> None:
    found = build({1: "dog"}, num_select=300).predict(IMAGES[:1], threshold=0.0)[0]
    assert len(found) > 0 and set(found.data["class_name"].tolist()) == {"dog"}


@pytest.mark.parametrize(
    ("threshold", "batch_size", "match"), [(-0.1, 4, "thr"), (1.5, 4, "thr"), (0.5, 0, "batch")]
)
def test_impossible_arguments_are_refused(
    predictor: NetworkPredictor, threshold: float, batch_size: int, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        predictor.predict(IMAGES, threshold, batch_size)


def test_a_segmentation_network_gives_masks() -> None:
    found = build({0: "cat"}, segmentation_head=True).predict(IMAGES[:1], threshold=0.0)[0]
    assert (
        found.mask is not None
        and found.mask.shape == (len(found), 50, 80)
        and found.mask.dtype == bool
    )


def test_a_stream_names_its_sources_and_reads_no_more_than_it_needs(
    predictor: NetworkPredictor, tmp_path: Path
) -> None:
    handed_out: list[Path] = []

    def files() -> Iterator[Path]:
        for number in range(20):
            Image.fromarray(IMAGES[0]).save(tmp_path / f"{number}.png")
            handed_out.append(tmp_path / f"{number}.png")
            yield handed_out[-1]

    stream = predictor.stream(files(), threshold=0.0, batch_size=2)
    first = next(stream)
    assert first.source == str(tmp_path / "0.png") and first.image.shape == IMAGES[0].shape
    time.sleep(0.05)
    assert len(handed_out) <= 4  # the batch in work and the next one
    assert [Path(str(p.source)).stem for p in stream] == [str(n) for n in range(1, 20)]


def test_an_unreadable_image_stops_the_stream_by_name(
    predictor: NetworkPredictor, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.png"):
        predictor.predict([IMAGES[0], tmp_path / "bad.png"])


def test_one_ahead_works_in_a_thread_and_passes_errors_on() -> None:
    threads = []

    def items() -> Iterator[int]:
        for number in range(3):
            threads.append(threading.current_thread())
            yield number
        raise RuntimeError("the source broke")

    seen = []
    with pytest.raises(RuntimeError, match="the source broke"):
        seen.extend(one_ahead(items()))
    assert threading.main_thread() not in threads


def test_in_batches() -> None:
    assert list(in_batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(in_batches([], 2)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_optimised_network_is_a_copy_that_predicts_alike(dtype: torch.dtype) -> None:
    predictor = build({0: "cat", 1: "dog", 2: "owl"})
    with (
        torch.no_grad()
    ):  # random weights rank cells almost alike; equal queries make it no matter which gets which
        predictor.model.query_content.copy_(predictor.model.query_content[0].clone())
    exact = predictor.predict(IMAGES, threshold=0.0)
    predictor.optimize(dtype, compiled=False)
    for a, b in zip(exact, predictor.predict(IMAGES, threshold=0.0), strict=True):
        np.testing.assert_allclose(a.confidence[:5], b.confidence[:5], atol=0.01)  # type: ignore[index]
    assert all(parameter.dtype == torch.float32 for parameter in predictor.model.parameters())
    predictor.optimize(torch.float32, compiled=False)
    for a, b in zip(exact, predictor.predict(IMAGES, threshold=0.0), strict=True):
        np.testing.assert_array_equal(a.xyxy, b.xyxy)


def bad_items(folder: Path) -> list[Any]:
    (folder / "damaged.jpg").write_bytes(b"no picture")
    (folder / "empty").mkdir()
    array, tensor = IMAGES[0].astype(np.uint16), torch.full((3, 4, 4), float("nan"))
    return [
        folder / "damaged.jpg",
        folder / "absent.jpg",
        folder / "empty",
        array,
        tensor,
        {"image": 1},
        7,
        None,
    ]


@pytest.mark.parametrize("kind", range(8))
def test_an_error_names_the_place_in_the_list_and_a_skipped_image_keeps_it(
    predictor: NetworkPredictor, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: int
) -> None:
    bad = bad_items(tmp_path)[kind]
    images = [IMAGES[0], IMAGES[1], bad, IMAGES[2]]
    with pytest.raises((ValueError, TypeError, OSError), match=r"^image 3 of 4: "):
        predictor.predict(images)
    with pytest.raises((ValueError, TypeError, OSError), match=r"^image 3: "):
        predictor.predict(image for image in images)
    found = predictor.predict(images, threshold=0.0, batch_size=2, on_error="skip")
    whole = predictor.predict([*IMAGES[:3]], threshold=0.0, batch_size=2)
    assert (
        len(found) == 4
        and len(found[2]) == 0
        and found[2].metadata["error"].startswith("image 3 of 4: ")
    )
    for got, want in zip([found[0], found[1], found[3]], whole, strict=True):
        assert np.array_equal(got.xyxy, want.xyxy) and "error" not in got.metadata
    assert "image 3 of 4: " in caplog.text and "skipped" in caplog.text
    (one,) = predictor.stream([bad], on_error="skip")
    assert one.error == one.detections.metadata["error"] and one.image.shape == (0, 0, 3)


def test_skipping_hides_no_error_of_the_callers_own(predictor: NetworkPredictor) -> None:
    def images() -> Iterator[np.ndarray]:
        yield IMAGES[0]
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        predictor.predict(images(), on_error="skip")
    with pytest.raises(ValueError, match='expected "raise" or "skip"'):
        predictor.predict(IMAGES[0], on_error="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_an_optimised_predictor_can_be_copied_and_sent(duplicate: Any, dtype: torch.dtype) -> None:
    first = build({0: "cat", 1: "dog", 2: "owl"})
    first.optimize(dtype, compiled=False)
    twin = duplicate(first)
    want, got = (one.predict(IMAGES[0], threshold=0.0)[0] for one in (first, twin))
    assert np.array_equal(got.confidence, want.confidence) and np.array_equal(got.xyxy, want.xyxy)
    assert twin.model is not first.model


@pytest.mark.slow
def test_a_network_compiled_in_place_of_the_plain_one_predicts(predictor: NetworkPredictor) -> None:
    other = copy.deepcopy(predictor)
    other.model = torch.compile(other.model, backend="eager")  # type: ignore[assignment]
    want, got = (one.predict(IMAGES[0], threshold=0.0)[0].confidence for one in (predictor, other))
    assert np.allclose(got, want, atol=1e-5)
    other.optimize(torch.bfloat16, compiled=False)
    assert len(other.predict(IMAGES[0], threshold=0.0)[0])
