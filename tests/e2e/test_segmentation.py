"""Instance segmentation from labelled outlines to masks in pictures, by the high-level face and by
three objects.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import TINY

from rfdetr import RFDETR, RFDETRMini, RFDETRSegMini
from rfdetr.config import RFDETRSegMiniConfig, SegmentationTrainConfig, TrainConfig
from rfdetr.training import RFDETRDataModule, RFDETRModule, build_trainer
from rfdetr.weights.names import to_published

SHORT: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 2,
    "grad_accum_steps": 1,
    "num_workers": 0,
    "seed": 3,
}
COUNTS = {"train": 4, "valid": 4}
DETECTOR = "rf-detr-mini.safetensors"


def outlined_coco(root: Path) -> Path:
    """Every rectangle outlined by its corners, one as run lengths; the first object of all has no
    outline.
    """
    for path in root.glob("*/_annotations.coco.json"):
        content = json.loads(path.read_text())
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for record in content["annotations"]:
            x, y, w, h = record["bbox"]
            record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]] * (record["id"] > 1)
            if record["id"] == 2:
                height, width = sizes[record["image_id"]]
                counts = [x * height + y, *[h, height - h] * (w - 1), h]
                counts.append(height * width - sum(counts))
                record["segmentation"] = {"size": [height, width], "counts": counts}
        path.write_text(json.dumps(content))
    return root


def outlined_yolo(root: Path) -> Path:
    """The same rectangles as lines of polygons."""
    for path in root.glob("*/labels/*.txt"):
        lines = []
        for line in path.read_text().splitlines():
            label, x, y, w, h = line.split()
            left, top, right, bottom = (
                float(centre) + sign * float(side) / 2
                for sign in (-1, 1)
                for centre, side in ((x, w), (y, h))
            )
            corners = (left, top, right, top, right, bottom, left, bottom)
            lines.append(" ".join([label, *(f"{min(max(v, 0), 1):.6f}" for v in corners)]))
        path.write_text("\n".join(lines))
    return root


@pytest.fixture(params=["coco", "yolo"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name = f"tiny_{request.param}"
    return {"coco": outlined_coco, "yolo": outlined_yolo}[request.param](
        request.getfixturevalue(name)
    )


@pytest.fixture
def coco(make_tiny_coco: Callable[..., Path]) -> Path:
    return outlined_coco(make_tiny_coco(COUNTS))


@pytest.mark.slow
def test_train_leaves_masks_metrics_and_a_file_that_predicts_them(
    dataset: Path, tmp_path: Path, with_plots: None
) -> None:
    model = RFDETRSegMini(**TINY)
    run = tmp_path / "run"
    model.train(dataset_dir=dataset, output_dir=run, mask_dice_loss_coef=4.0, **SHORT)
    record = json.loads((run / "log.txt").read_text().splitlines()[-1])
    assert {
        "train/loss_mask_ce",
        "train/loss_mask_dice",
        "train/loss_mask_ce_enc",
        "val/loss",
    } <= record.keys()
    assert {
        f"val/{name}" for name in ("mAP_50_95", "segm_mAP_50_95", "segm_mAP_50", "ema_segm_mAP_50")
    } <= record.keys()
    assert "mask_dice_loss_coef: 4.0" in (run / "config.yaml").read_text()

    again = RFDETR.from_checkpoint(run / "checkpoint_best_total.pth")
    assert type(again) is RFDETRSegMini and again.class_names == ["blue", "green", "red"]
    image = next(path for path in sorted(dataset.rglob("*")) if path.suffix in (".jpg", ".png"))
    found = again.predict(image, threshold=0.0)
    assert np.asarray(found.mask).shape == (len(found), *Image.open(image).size[::-1])
    for name, weight in model.model.model.state_dict().items():
        assert torch.equal(weight.cpu(), again.model.model.state_dict()[name].cpu()), name


@pytest.mark.parametrize("config_class", [TrainConfig, SegmentationTrainConfig])
def test_the_three_objects_train_masks_with_either_configuration(
    config_class: type[TrainConfig], coco: Path
) -> None:
    train_config = config_class(dataset_dir=coco, **SHORT)
    model_config = RFDETRSegMiniConfig(**TINY, num_classes=3)
    module = RFDETRModule(model_config, train_config)
    before = {
        name: weight.clone() for name, weight in module.model.segmentation_head.state_dict().items()
    }
    trainer = build_trainer(train_config, model_config, fast_dev_run=2)
    trainer.fit(module, RFDETRDataModule(model_config, train_config))
    after = module.model.segmentation_head.state_dict()
    assert all(not torch.equal(after[name].cpu(), weight) for name, weight in before.items())
    assert (
        module.criterion.weights["loss_mask_ce"] == module.criterion.weights["loss_mask_dice"] == 5
    )
    assert "val/segm_mAP_50_95" in trainer.callback_metrics


def test_the_bundled_weights_fill_the_whole_model(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = RFDETRSegMini()
    assert "random" not in caplog.text and "adapted" not in caplog.text
    assert len(model.class_names) == len(RFDETRMini().class_names)
    head = model.model.model.segmentation_head.state_dict()
    assert all(weight.float().std() > 0 for name, weight in head.items() if name.endswith("weight"))


def test_weights_of_a_detector_start_a_segmentation_model(
    caplog: pytest.LogCaptureFixture, coco: Path
) -> None:
    caplog.set_level(logging.INFO)
    model = RFDETRSegMini(pretrain_weights=DETECTOR)
    assert (
        "tensors stay random, as the file is of a model without a segmentation head" in caplog.text
    )
    assert model.model_config.segmentation_head and not RFDETRMini().model_config.segmentation_head
    detector = to_published(RFDETRMini().model.model.state_dict())
    segmenter = to_published(model.model.model.state_dict())
    assert {name for name in segmenter if name not in detector} == {
        n for n in segmenter if "segmentation_head" in n
    }
    assert all(torch.equal(segmenter[name], weight) for name, weight in detector.items())
    module = RFDETRModule(
        RFDETRSegMiniConfig(pretrain_weights=DETECTOR),
        SegmentationTrainConfig(dataset_dir=coco, seed=1),
    )
    assert torch.equal(module.model.query_content, model.model.model.query_content.cpu())


@pytest.mark.slow
def test_a_fresh_mask_head_is_drawn_from_the_seed_of_the_run(coco: Path, tmp_path: Path) -> None:
    heads = []
    for run in ("a", "b"):
        # Its head was drawn from whatever the process had drawn before.
        model = RFDETRSegMini(resolution=64, pretrain_weights=DETECTOR)
        model.train(
            dataset_dir=coco, output_dir=tmp_path / run, multi_scale=False, run_test=False, **SHORT
        )
        heads.append(model.model.model.segmentation_head.state_dict())
    for name, weight in heads[0].items():
        assert torch.equal(weight, heads[1][name]), name


def test_settings_of_masks_are_no_settings_of_a_detector(coco: Path) -> None:
    with pytest.raises(
        ValueError, match="mask_ce_loss_coef belongs to the training of a segmentation model"
    ):
        RFDETRMini(**TINY).train(dataset_dir=coco, mask_ce_loss_coef=1.0)
    with pytest.raises(ValueError, match="did you mean 'mask_ce_loss_coef'"):
        RFDETRSegMini(**TINY).train(dataset_dir=coco, mask_ce_los_coef=1.0)
