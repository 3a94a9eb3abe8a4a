"""Figures of masks: equal to pycocotools on run lengths, streamed, and independent of the figures
of boxes.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from rfdetr.evaluation.evaluator import CocoEvaluator
from rfdetr.evaluation.metrics import metrics_table, write_results
from rfdetr.evaluation.plots import plot_metrics

HEIGHT, WIDTH, CLASSES = 120, 160, ["a", "b", "c", "absent"]


def random_images(seed: int, count: int = 10, absent: float = 0.0) -> tuple[list[Any], list[Any]]:
    """Discs of all of COCO's sizes, found somewhat displaced; crowds; image 0 is empty, in image 1
    nothing is found.
    """
    rng = np.random.default_rng(seed)
    detections, targets = [], []
    for image in range(count):
        objects = 0 if image == 0 else int(rng.integers(1, 7))
        centre, radius = (
            rng.uniform(0, 1, (objects, 2)) * (WIDTH, HEIGHT),
            rng.uniform(4, 60, objects),
        )
        labels = rng.integers(0, 3, objects)
        copies = np.repeat(np.arange(objects), rng.integers(0, 3, objects))
        copies = copies[:0] if image == 1 else copies
        found = discs(
            centre[copies] + rng.normal(0, 3, (len(copies), 2)),
            radius[copies] * rng.uniform(0.8, 1.2),
        )
        guessed = np.where(
            rng.random(len(copies)) < 0.2, rng.integers(0, 5, len(copies)), labels[copies]
        )
        detections.append(detection(rng.random(len(copies)).round(2), guessed, found))
        missing = rng.random(objects) < absent
        targets.append(
            target(image + 5, labels, discs(centre, radius), rng.random(objects) < 0.2, missing)
        )
    return detections, targets


def discs(centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return np.hypot(x - centres[:, :1, None], y - centres[:, 1:, None]) <= np.reshape(
        radii, (-1, 1, 1)
    )


def detection(scores: Any, labels: Any, masks: np.ndarray) -> dict[str, torch.Tensor]:
    return {
        "scores": torch.as_tensor(np.asarray(scores), dtype=torch.float32),
        "labels": torch.as_tensor(np.asarray(labels), dtype=torch.int64),
        "boxes": torch.zeros(len(masks), 4),  # so that figures of boxes are others
        "mask_logits": torch.from_numpy(masks).float() * 2 - 1,
    }


def target(
    image_id: int, labels: Any, masks: np.ndarray, crowd: Any = None, missing: Any = None
) -> dict[str, Any]:
    encoded = [mask_api.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    x, y, w, h = np.reshape([mask_api.toBbox(rle) for rle in encoded], (-1, 4)).T
    missing = np.zeros(len(masks), bool) if missing is None else missing
    counts = [b"" if none else rle["counts"] for none, rle in zip(missing, encoded, strict=True)]
    return {
        "image_id": torch.tensor(image_id),
        "orig_size": torch.tensor([HEIGHT, WIDTH]),
        "labels": torch.as_tensor(np.asarray(labels, np.int64)),
        "boxes_xyxy": torch.from_numpy(np.stack((x, y, x + w, y + h), 1)),
        "area": torch.as_tensor([float(mask_api.area(rle)) for rle in encoded]),
        "iscrowd": torch.zeros(len(masks), dtype=torch.bool)
        if crowd is None
        else torch.from_numpy(crowd),
        "rle_bytes": torch.from_numpy(np.frombuffer(bytearray(b"".join(counts)), np.uint8)),
        "rle_offsets": torch.from_numpy(np.cumsum([0, *map(len, counts)])),
    }


def evaluated(detections: list[Any], targets: list[Any], max_dets: int = 500) -> CocoEvaluator:
    evaluator = CocoEvaluator(CLASSES, max_dets, masks=True)
    evaluator.update(detections, targets)
    return evaluator


def reference(detections: list[Any], targets: list[Any], max_dets: int) -> dict[str, Any]:
    """pycocotools on run lengths, of objects without a mask as crowds the size of their box."""
    truth, found, size = COCO(), [], [HEIGHT, WIDTH]
    notes: list[dict[str, Any]] = []
    for seen, wanted in zip(detections, targets, strict=True):
        image_id, content = int(wanted["image_id"]), wanted["rle_bytes"].numpy().tobytes()
        ends = wanted["rle_offsets"].tolist()
        for k, (x, y, right, bottom) in enumerate(wanted["boxes_xyxy"].tolist()):
            counts, box = content[ends[k] : ends[k + 1]], [x, y, right - x, bottom - y]
            rle = (
                {"size": size, "counts": counts}
                if counts
                else mask_api.frPyObjects(np.array([box]), *size)[0]
            )
            crowd = int(bool(wanted["iscrowd"][k]) or not counts)
            note = {
                "image_id": image_id,
                "category_id": int(wanted["labels"][k]),
                "bbox": box,
                "iscrowd": crowd,
            }
            notes.append(
                {
                    **note,
                    "id": len(notes) + 1,
                    "area": float(wanted["area"][k]),
                    "segmentation": rle,
                }
            )
        for label, score, logits in zip(
            seen["labels"], seen["scores"], seen["mask_logits"], strict=True
        ):
            rle = mask_api.encode(np.asfortranarray(logits.numpy() > 0, dtype=np.uint8))
            found.append(
                {
                    "image_id": image_id,
                    "category_id": int(label),
                    "segmentation": rle,
                    "score": float(score),
                }
            )
    truth.dataset = {
        "images": [
            {"id": int(wanted["image_id"]), "height": HEIGHT, "width": WIDTH} for wanted in targets
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES)],
        "annotations": notes,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(
            truth, truth.loadRes([entry for entry in found if entry["category_id"] < 4]), "segm"
        )
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return {name: evaluation.eval[name][..., -1] for name in ("precision", "recall")}


def mean(values: np.ndarray) -> float:
    return float(values[values > -1].mean()) if (values > -1).any() else math.nan


@pytest.mark.parametrize(
    ("seed", "max_dets", "absent"),
    [(0, 500, 0), (1, 500, 0), (2, 100, 0), (3, 2, 0), (4, 500, 0.3)],
)
def test_figures_equal_pycocotools_on_run_lengths(seed: int, max_dets: int, absent: float) -> None:
    images = random_images(seed, absent=absent)
    metrics = evaluated(*images, max_dets).compute().masks
    expected = reference(*images, max_dets)
    precision, recall = expected["precision"], expected["recall"]
    assert metrics is not None and 0.05 < metrics.overall["mAP_50_95"] < 1
    for name, values in {
        "mAP_50_95": precision[..., 0],
        "mAP_50": precision[0, ..., 0],
        "mAP_75": precision[5, ..., 0],
        "mAP_small": precision[..., 1],
        "mAP_medium": precision[..., 2],
        "mAP_large": precision[..., 3],
        "mAR": recall[..., 0],
    }.items():
        assert metrics.overall[name] == pytest.approx(mean(values), abs=1e-12, nan_ok=True), name
    for label, row in enumerate(metrics.per_class):
        assert row["AP"] == pytest.approx(mean(precision[:, :, label, 0]), abs=1e-12, nan_ok=True)
        assert row["AR"] == pytest.approx(mean(recall[:, label, 0]), abs=1e-12, nan_ok=True)


def test_masks_and_boxes_have_figures_of_their_own() -> None:
    masks = discs(np.array([[40.0, 40], [100, 80]]), np.array([20.0, 15]))
    found = detection([0.9, 0.8], [0, 1], masks)
    truth = target(1, [0, 1], masks)
    metrics = evaluated([found], [truth]).compute()
    assert metrics.masks is not None
    assert (metrics.overall["mAP_50_95"], metrics.masks.overall["mAP_50_95"]) == (
        0,
        pytest.approx(1),
    )
    assert (metrics.overall["F1"], metrics.masks.overall["F1"]) == (0, pytest.approx(1))
    assert metrics.masks.masks is None and metrics.masks.confusion()[0, 0] == 1


def test_what_is_found_where_an_object_has_no_outline_is_neither_right_nor_wrong() -> None:
    masks = discs(np.array([[40.0, 40], [100, 80]]), np.array([20.0, 15]))
    truth = target(1, [0, 0], masks, missing=np.array([False, True]))
    metrics = evaluated([detection([0.8, 0.9], [0, 0], masks)], [truth]).compute()
    assert metrics.masks is not None and metrics.masks.overall["mAP_50_95"] == pytest.approx(1)
    assert metrics.masks.overall["F1"] == 1
    assert (metrics.masks.num_boxes, metrics.num_boxes) == (1, 2)


def test_mask_logits_are_enlarged_to_the_image() -> None:
    logits = torch.full((1, 4, 4), -1.0)
    logits[0, 1:3, 1:3] = 1.0
    shown = torch.nn.functional.interpolate(logits[None], (HEIGHT, WIDTH), mode="bilinear")[0] > 0
    found = {**detection([0.9], [0], np.zeros((1, 1, 1), bool)), "mask_logits": logits}
    metrics = evaluated([found], [target(1, [0], shown.numpy())]).compute()
    assert metrics.masks is not None and metrics.masks.overall["mAP_50_95"] == pytest.approx(1)


def test_shards_and_repeats_make_no_difference() -> None:
    detections, targets = random_images(6)
    whole = evaluated(detections, targets).compute()
    parts = [evaluated(detections[:6], targets[:6]), evaluated(detections[4:], targets[4:])]
    merged = CocoEvaluator.merge([parts[0], pickle.loads(pickle.dumps(parts[1]))]).compute()
    assert whole.masks is not None and merged.masks is not None
    assert merged.masks.overall == whole.masks.overall and repr(merged.overall) == repr(
        whole.overall
    )
    with pytest.raises(ValueError, match="masks"):
        CocoEvaluator.merge([parts[0], CocoEvaluator(CLASSES)])


def test_what_is_kept_of_an_image_does_not_grow_with_its_pixels() -> None:
    def kept(scale: int) -> int:
        mask = np.kron(
            discs(np.array([[70.0, 60]]), np.array([30.0]))[0], np.ones((scale, scale), bool)
        )[None]
        truth = {**target(1, [0], mask), "orig_size": torch.tensor(mask.shape[1:])}
        return len(pickle.dumps(evaluated([detection([0.9], [0], mask)], [truth])))

    # Pickle writes equal bytes once: of another bit for the size, some bytes more or less.
    assert abs(kept(8) - kept(1)) < 8 and kept(1) < 10_000


def test_logged_names_table_and_file(tmp_path: Any) -> None:
    metrics = evaluated(*random_images(1)).compute()
    assert metrics.masks is not None
    logged, masks = metrics.logged("val/ema_"), metrics.masks.overall
    assert logged["val/ema_mAP_50_95"] == metrics.overall["mAP_50_95"]
    assert logged["val/ema_segm_mAP_50_95"] == masks["mAP_50_95"]
    assert logged["val/ema_segm_mAP_50"] == masks["mAP_50"]
    assert logged["val/ema_segm_AP/a"] == metrics.masks.per_class[0]["AP"]
    assert not [
        name for name in metrics.logged(per_class=False) if "/AP/" in name or "segm_AP" in name
    ]

    console = Console(width=160)
    with console.capture() as captured:
        console.print(metrics_table(metrics))
    row = next(line for line in captured.get().splitlines() if " all " in line)
    for figures in (masks, metrics.overall):
        assert f" {figures['mAP_50_95']:.3f} " in row

    write_results(tmp_path / "results.json", {"test": metrics}, "w.pth")
    record = json.loads((tmp_path / "results.json").read_text())["splits"]["test"]
    assert record["masks"]["overall"]["mAP_50_95"] == masks["mAP_50_95"]
    assert record["masks"]["per_class"][0]["name"] == "a" and "masks" not in record["masks"]


def test_targets_without_masks_are_refused_with_what_to_do() -> None:
    masks = discs(np.array([[40.0, 40]]), np.array([20.0]))
    truth = target(1, [0], masks)
    del truth["rle_bytes"], truth["rle_offsets"]
    with pytest.raises(ValueError, match="masks=True"):
        evaluated([detection([0.9], [0], masks)], [truth])


def test_masks_have_plots_of_their_own(tmp_path: Any, with_plots: None) -> None:
    plot_metrics(evaluated(*random_images(1, 4)).compute(), tmp_path, "valid")
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 8 and {name.removeprefix("segm_") for name in names} <= names
