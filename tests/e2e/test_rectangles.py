"""Networks whose input is no square: trained, resumed, saved, exported and asked for objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import TINY

from rfdetr import RFDETR, RFDETRMini, RFDETRNano, RFDETRSegMini
from rfdetr.config import RFDETRMiniConfig
from rfdetr.data.images import decode_image, resize
from rfdetr.models.build import build_detector
from rfdetr.training.callbacks import DataViewsCallback
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.weights.identify import config_from_checkpoint
from rfdetr.weights.reading import CheckpointError, read_checkpoint
from rfdetr.weights.writing import checkpoint_args, save_checkpoint, save_safetensors

SIZE = (64, 128)
SHORT = {"batch_size": 2, "grad_accum_steps": 1, "num_workers": 0, "seed": 5, "lr": 1e-3}
SHORT |= {"progress_bar": False, "run_test": False, "checkpoint_interval": 100}
SMALL = {**TINY, "amp": False}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RFDETRDataModule, "least_updates", 1)
    monkeypatch.setattr(DataViewsCallback, "on_train_start", lambda *_: None)


@pytest.mark.slow
def test_a_trained_rectangle_is_resumed_saved_and_exported(tiny_coco: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dataset_dir": tiny_coco, "resolution": SIZE, **SHORT}
    whole = RFDETRMini(**SMALL)
    whole.train(output_dir=tmp_path / "whole", epochs=2, **settings)
    assert whole.model_config.resolution == whole.model.size == SIZE

    RFDETRMini(**SMALL).train(output_dir=tmp_path / "parts", epochs=1, **settings)
    parts = RFDETR.from_checkpoint(tmp_path / "parts" / "last.ckpt", amp=False)
    assert parts.model_config.resolution == SIZE  # the file says it
    del settings["resolution"]
    parts.train(output_dir=tmp_path / "parts", epochs=2, resume="last", **settings)
    ends = [torch.load(tmp_path / run / "last.ckpt")["model"] for run in ("whole", "parts")]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    with pytest.raises(CheckpointError, match=r"resolution is \[64, 128\] in .*, 64 in the"):
        RFDETRMini(**SMALL).train(
            output_dir=tmp_path / "parts", epochs=3, resume="last", **settings
        )

    again = RFDETR.from_checkpoint(tmp_path / "whole" / "checkpoint_best_total.pth", amp=False)
    same(whole, again, sorted((tiny_coco / "test").glob("*.*g")))
    seen: list[Any] = []
    again.model.model.register_forward_pre_hook(lambda _, images: seen.append(images[0].shape[2:]))
    for own in ({}, {"resolution": (128, 64)}, {"resolution": 64}):
        again.evaluate(tiny_coco, "valid", num_workers=0, **own)
    assert seen == [SIZE, (128, 64), (64, 64)]
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["resolution"] == list(SIZE)


def same(one: Any, other: Any, images: list[Path]) -> None:
    for first, second in zip(
        *(m.predict(images, threshold=0.0) for m in (one, other)), strict=True
    ):
        assert len(first) == len(second) > 0
        np.testing.assert_allclose(first.confidence, second.confidence, atol=1e-5)
        np.testing.assert_allclose(first.xyxy, second.xyxy, atol=1e-3)


@pytest.mark.scheduled
def test_an_artifact_of_a_rectangle_finds_what_the_model_finds(
    tiny_coco: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = RFDETRMini(**{**SMALL, "resolution": SIZE, "num_classes": 3})
    exported = RFDETR.from_export(model.export(tmp_path / "out", verify=False))
    assert (exported.metadata.input.height, exported.metadata.input.width) == SIZE
    same(model, exported, sorted((tiny_coco / "test").glob("*.*g")))


def test_masks_of_a_rectangle_have_its_shape(tiny_coco: Path, edit_coco: Any) -> None:
    def outline(content: dict[str, Any]) -> None:
        for record in content["annotations"]:
            x, y, w, h = record["bbox"]
            record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]

    for split in ("train", "valid", "test"):
        edit_coco(tiny_coco / split / "_annotations.coco.json", outline)
    model = RFDETRSegMini(**{**SMALL, "resolution": SIZE})
    model.train(
        dataset_dir=tiny_coco, output_dir=tiny_coco.parent / "run", epochs=1,
        multi_scale="per-sample", **SHORT,
    )  # fmt: skip
    path = sorted((tiny_coco / "valid").glob("*.*g"))[1]
    seen = model.model.preprocess([decode_image(path)])
    (found,) = model.model.detect(seen, torch.tensor([[48, 64]]))
    assert found["mask_logits"][0].shape == (SIZE[0] // 4, SIZE[1] // 4)
    masks: Any = model.predict(path, threshold=0.0).mask
    assert masks.shape[1:] == (48, 64)


def test_boxes_are_those_of_the_picture_however_it_was_stretched_before() -> None:
    """The network sees the same pixels of a picture and of one stretched to its input, so that
    boxes are the same shares of both.
    """
    torch.manual_seed(1)
    model = RFDETRMini(**{**SMALL, "resolution": SIZE, "num_classes": 3})
    picture = np.random.default_rng(0).integers(0, 256, (300, 170, 3), np.uint8)
    stretched = resize(picture, SIZE).permute(1, 2, 0).numpy()
    whole, small = (model.predict(image, threshold=0.0) for image in (picture, stretched))
    shares = whole.xyxy / (170, 300, 170, 300)
    np.testing.assert_allclose(shares, small.xyxy / (128, 64, 128, 64), atol=1e-5)
    by_shape = RFDETRMini(**SMALL, num_classes=3)
    by_shape.model.model.load_state_dict(
        {k: v for k, v in model.weights().items() if "position" not in k}, strict=False
    )
    assert len(by_shape.predict(picture, threshold=0.0, shape=SIZE)) == len(whole)


@pytest.mark.parametrize("size", [64, (64, 64), (64, 128), (96, 32)])
def test_files_give_the_size_back_and_others_a_square(size: Any, tmp_path: Path) -> None:
    config = RFDETRMiniConfig(**{**SMALL, "num_classes": 3, "resolution": size})
    square = size == 64 or size == (64, 64)
    args = json.loads(json.dumps(checkpoint_args(config, None)))
    side = {64: 64, (64, 64): 64, (64, 128): 96, (96, 32): 64}[size]
    assert (args["resolution"], args["positional_encoding_size"]) == (side, side // 16)
    assert ("input_shape" in args) is not square
    assert args["resize"] == f"bilinear-antialias-{'square' if square else 'rectangle'}"
    if square:  # a square file does not change by how its size is written
        plain = RFDETRMiniConfig(**{**SMALL, "num_classes": 3})
        assert (config, args) == (plain, checkpoint_args(plain, None))
    state = build_detector(config).state_dict()
    save_checkpoint(tmp_path / "a.pth", state, config, ["a", "b", "c"])
    save_safetensors(tmp_path / "a.safetensors", state, config, ["a", "b", "c"])
    for path in tmp_path.glob("a.*"):
        read, _ = config_from_checkpoint(read_checkpoint(path))
        assert read == config.model_copy(update={"pretrain_weights": str(path), "amp": True})


@pytest.mark.parametrize(
    ("said", "told"),
    [([64, 96, 32], "resolution"), ("wide", "list"), ([64, 100], "100")],
)
def test_a_file_with_no_possible_size_is_refused(said: Any, told: str, tmp_path: Path) -> None:
    config = RFDETRMiniConfig(**{**SMALL, "num_classes": 3})
    path = tmp_path / "a.pth"
    save_checkpoint(path, build_detector(config).state_dict(), config, None)
    content = torch.load(path)
    for entry in ("args", "model_config"):
        content[entry]["input_shape"] = said
    torch.save(content, path)
    (tmp_path / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match=told):
        RFDETR.from_checkpoint(path)


def test_transformers_is_refused_what_is_no_square(tmp_path: Path) -> None:
    model = RFDETRMini(**{**SMALL, "resolution": SIZE})
    with pytest.raises(ValueError, match=r"takes square images, .* 64x128 pixels: .*resolution=96"):
        model.export(tmp_path / "hf", format="hf")


def test_auto_takes_the_shape_of_the_images_and_the_plan_says_why(
    tiny_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = RFDETRMini(**{**SMALL, "resolution": 128})
    settings: dict[str, Any] = {"resolution": "auto", "multi_scale": False, **SHORT}
    model.train(dataset_dir=tiny_coco, output_dir=tmp_path / "run", epochs=1, **settings)
    assert model.model_config.resolution == (96, 160)  # 48 x 64 in 4 x 4 windows
    told = "96x160, chosen: images are 3:4 (height:width); median object "
    plan = " ".join(capsys.readouterr().out.split())
    assert told in plan and "0.94x the cost of 128x128" in plan


def test_mini_takes_the_shape_of_the_images_where_nobody_says_a_resolution(
    tiny_coco: Path, tmp_path: Path
) -> None:
    small = {name: value for name, value in SMALL.items() if name != "resolution"}
    settings: dict[str, Any] = {"dataset_dir": tiny_coco, "multi_scale": False, **SHORT}
    run = {"output_dir": tmp_path / "run", **settings}
    model = RFDETRMini(**small)
    model.train(epochs=1, **run)
    assert model.model.size == (224, 288)  # of 48 x 64, in 4 x 4 windows
    again = RFDETR.from_checkpoint(tmp_path / "run" / "checkpoint_best_total.pth", amp=False)
    assert again.model.size == (224, 288)

    told = RFDETRMini(**small, resolution=96)
    told.train(epochs=1, **{**run, "output_dir": tmp_path / "told"})
    assert told.model.size == (96, 96)
    resumed = RFDETRMini(**small)
    resumed.train(epochs=2, **{**run, "output_dir": tmp_path / "told", "resume": "last"})
    assert resumed.model.size == (96, 96)  # the run's own
    other = RFDETRMini(**{**small, "patch_size": 32})
    for epochs in (2, 3):  # where nothing is left to train, and where something is
        with pytest.raises(
            CheckpointError, match=r"told.last.ckpt does not fit .*patch_size is 16"
        ):
            other.train(epochs=epochs, **{**run, "output_dir": tmp_path / "told", "resume": "last"})
    model.train(epochs=1, **{**run, "output_dir": tmp_path / "more"})
    assert model.model.size == (224, 288)
    assert not RFDETRNano.auto_resolution and RFDETRSegMini.auto_resolution
