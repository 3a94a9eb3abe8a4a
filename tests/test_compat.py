"""What scripts of the published package pass and call: nothing is dropped without a word."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import os
import pickle
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import TINY

import rfdetr
from rfdetr import RFDETR, RFDETRMini, compat
from rfdetr.config import (
    ExportConfig,
    ModelConfig,
    RFDETRMiniConfig,
    SegmentationTrainConfig,
    TrainConfig,
)
from rfdetr.datasets import aug_configs
from rfdetr.errors import InputError, RunError
from rfdetr.evaluation.evaluator import CocoEvaluator
from rfdetr.evaluation.run import labels_of
from rfdetr.weights.labels import renamed
from rfdetr.weights.reading import read_checkpoint

KEYWORDS = json.loads((Path(__file__).parent / "published_keywords.json").read_text())
"""Of rfdetr 1.11.2, by call, as its signatures and configurations tell them."""
CALLS = ("predict", "evaluate", "inference", "export_for_roboflow")
IMAGE = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def mini() -> RFDETR:
    return RFDETRMini(device=torch.device("cpu"))


def published_signatures(interpreter: str) -> dict[str, list[str]]:
    """The same lists as `KEYWORDS`, asked of an environment that has the package."""
    code = """
import inspect, json, rfdetr, rfdetr.config as c
of = lambda f: [n for n, p in inspect.signature(f).parameters.items() if p.kind != p.VAR_KEYWORD]
print(json.dumps({
    "train": [*c.SegmentationTrainConfig.model_fields, *c.KeypointTrainConfig.model_fields],
    "constructor": list(c.ModelConfig.model_fields),
    **{n: of(getattr(rfdetr.RFDETR, n)) for n in ("predict", "inference", "export")},
}))
"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [interpreter, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.skipif(
    "RFDETR_PUBLISHED_PYTHON" not in os.environ,
    reason="RFDETR_PUBLISHED_PYTHON names no interpreter with the published package",
)
def test_the_list_of_published_keywords_is_whole() -> None:
    for call, names in published_signatures(os.environ["RFDETR_PUBLISHED_PYTHON"]).items():
        assert set(names) - {"self"} <= set(KEYWORDS[call]), call


def test_every_published_keyword_has_an_answer() -> None:
    model, train = ModelConfig.model_fields, SegmentationTrainConfig.model_fields
    unanswered = {
        "train": [n for n in KEYWORDS["train"] if n not in {*train, *compat.TRAIN}],
        "older": [n for n in KEYWORDS["older"] if n not in {*train, *model, *compat.TRAIN}],
        "constructor": [n for n in KEYWORDS["constructor"] if n not in {*model, *compat.MODEL}],
    }
    known_to_export = {*inspect.signature(RFDETR.export).parameters, *ExportConfig.model_fields}
    known_to_export |= compat.EXPORT.keys()
    unanswered["export"] = [n for n in KEYWORDS["export"] if n not in known_to_export]
    for call in CALLS:
        known = inspect.signature(getattr(RFDETR, call)).parameters
        unanswered[call] = [name for name in KEYWORDS[call] if name not in known]
    assert not any(unanswered.values()), unanswered


def test_no_answer_hides_a_field() -> None:
    of_training = {n for n, fate in compat.TRAIN.items() if not isinstance(fate, compat.Moved)}
    assert not of_training & set(SegmentationTrainConfig.model_fields)
    assert not compat.MODEL.keys() & ModelConfig.model_fields.keys()
    assert not compat.EXPORT.keys() & ExportConfig.model_fields.keys()
    assert compat.OF_HF.keys() == ExportConfig.model_fields.keys() - {"notes"}


@pytest.mark.parametrize(
    ("config", "fates", "needed"),
    [
        (RFDETRMiniConfig, compat.MODEL, {}),
        (TrainConfig, compat.TRAIN, {"dataset_dir": "data"}),
        (ExportConfig, compat.EXPORT, {}),
    ],
)
def test_constants_are_taken_and_harmless_values_told_once(
    config: Any, fates: dict[str, compat.Fate], needed: dict[str, str]
) -> None:
    plain = config(**needed)
    for name, fate in fates.items():
        if isinstance(fate, compat.Moved | compat.Unpacked | compat.Translated | compat.Rewritten):
            continue
        usual = fate.values if isinstance(fate, compat.Constant) else (fate.default,)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert all(config(**needed, **{name: value}) == plain for value in usual), name
        if isinstance(fate, compat.Harmless):
            with pytest.warns(UserWarning, match=f"without effect here: {name}='odd'"):
                assert config(**needed, **{name: "odd"}) == plain
        else:
            with pytest.raises(InputError, match=f"^{name}='odd' of the published package has no"):
                config(**needed, **{name: "odd"})


def test_training_keywords_reach_their_owners() -> None:
    settings = {
        "epochs": 3,
        "device": torch.device("cuda:1"),
        "resolution": 512,
        "gradient_checkpointing": True,
        "strategy": "ddp",
        "num_nodes": 2,
        "num_sanity_val_steps": 1,
        "amp_dtype": "bf16",
    }
    train, model, trainer = compat.split_moved(settings)
    assert train == {"epochs": 3, "accelerator": "gpu"}
    assert model == {
        "device": "cuda:1",
        "resolution": 512,
        "gradient_checkpointing": True,
    }
    assert trainer == {
        "strategy": "ddp",
        "num_nodes": 2,
        "num_sanity_val_steps": 1,
        "precision": "bf16-mixed",
        "devices": [1],
    }
    assert compat.split_moved({"device": "cpu", "amp_dtype": None})[::2] == (
        {"accelerator": "cpu"},
        {"precision": "32-true"},
    )
    assert compat.split_moved({"device": "cuda:0", "devices": 2})[2] == {"devices": 2}
    with pytest.raises(InputError, match="amp_dtype='fp8': expected"):
        compat.split_moved({"amp_dtype": "fp8"})


def test_older_keywords_are_taken_at_their_defaults_and_told_at_others() -> None:
    defaults = {name: fate for name, fate in compat.OLDER.items() if name != "ema"}
    usual = {
        n: f.values[0] if isinstance(f, compat.Constant) else f.default for n, f in defaults.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compat.split_moved({**usual, "ema": False}) == ({"use_ema": False}, {}, {})
    with pytest.warns(UserWarning, match="print_freq=50 .*; num_classes=4 .*the data count"):
        assert compat.split_moved({"print_freq": 50, "num_classes": 4}) == ({}, {}, {})
    with pytest.raises(
        InputError, match=r"set_cost_giou=5 .* override RFDETRModule.compute_losses"
    ):
        compat.split_moved({"set_cost_giou": 5})
    with pytest.raises(InputError, match="ema and use_ema are one setting: give one of them"):
        compat.split_moved({"use_ema": True, "ema": False})


@pytest.mark.parametrize("name", ["strategy", "devices", "num_nodes", "callbacks"])
def test_what_belongs_to_the_trainer_is_no_field(name: str) -> None:
    with pytest.raises(ValueError, match=f"pass {name}= to build_trainer"):
        TrainConfig(dataset_dir="data", **{name: "auto"})


@pytest.mark.slow
def test_a_published_script_trains_and_evaluates(tiny_coco: Path, tmp_path: Path) -> None:
    model = RFDETRMini(two_stage=True, num_channels=3)
    with pytest.warns(UserWarning, match=r"without effect here: fp16_eval=True"):
        model.train(
            dataset_dir=tiny_coco,
            output_dir=tmp_path / "run",
            epochs=1,
            batch_size=2,
            grad_accum_steps=1,
            device="cpu",
            resolution=128,
            devices=1,
            strategy="auto",
            num_workers=0,
            fp16_eval=True,
            optimizer="adamw",
            aug_config=None,
        )  # type: ignore[call-arg]
    assert model.model_config.resolution == model.model.resolution == 128
    args = read_checkpoint(tmp_path / "run" / "checkpoint_best_total.pth").args
    assert args["resolution"] == 128
    with pytest.warns(UserWarning, match=r"evaluate\(\) trains nothing; without effect: epochs$"):
        found = model.evaluate(dataset_dir=tiny_coco, split="val", num_workers=0, epochs=9)
    assert found["val/mAP_50_95"] == found["mAP_50_95"] == found.overall["mAP_50_95"]
    assert dict(found)["val/F1"] == found.overall["F1"]
    assert json.loads(json.dumps(found)) == found == {k: found[k] for k in found}
    assert all(name.startswith("val/") for name in found)
    published = {
        f"val/{name}"
        for name in ["mAP_50_95", "mAP_50", "mAP_75", "mAR", "F1", "precision", "recall"]
    }
    assert published <= found.keys()
    assert "F1" in found and "test/F1" not in found and found.get("F1") == found["val/F1"]
    with pytest.raises(InputError, match="device='mps': this model is on cpu"):
        model.evaluate(tiny_coco, device="mps")


def test_figures_are_a_mapping_of_the_defined_ones() -> None:
    metrics = CocoEvaluator(["cat"]).compute()
    assert "mAP_50_95" not in metrics  # there was no image
    assert metrics.get("test/mAP_50_95") is None
    with pytest.raises(KeyError):
        metrics["mAP"]
    metrics = dataclasses.replace(metrics, overall={"F1": 0.5, "mAR": math.nan}, prefix="test/")
    assert dict(metrics) == {"test/F1": 0.5}
    assert metrics["F1"] == metrics["test/F1"] == metrics.get("F1") == 0.5
    assert "mAR" not in metrics and metrics.get("mAR", 0.0) == 0.0
    for name in ("mAR", "test/mAR", "val/F1", "test/test/F1"):
        with pytest.raises(KeyError, match=name):
            metrics[name]
    assert pickle.loads(pickle.dumps(metrics)) == copy.deepcopy(metrics) == metrics


def test_predictions_carry_their_image_as_published(mini: RFDETR) -> None:
    found = mini.predict(IMAGE, 0.01)
    assert found.data["source_shape"].tolist() == [[90, 120]] * len(found)
    assert np.array_equal(found.metadata["source_image"], IMAGE)
    assert mini.predict(IMAGE, 0.01, include_source_image=False).metadata == {}
    none = mini.predict(IMAGE, 1.0)
    assert none.data["source_shape"].shape == (0, 2)
    (streamed,) = mini.predict_stream(IMAGE, 0.01)
    assert streamed.detections.metadata == {}


def test_another_shape_is_seen_by_the_network(mini: RFDETR) -> None:
    square = mini.predict(IMAGE, 0.01, shape=(256, 256))
    assert np.array_equal(square.xyxy, mini.predict(IMAGE, 0.01).xyxy)
    wide = mini.predict(IMAGE, 0.01, shape=(192, 256), patch_size=16)
    assert len(wide) and not np.array_equal(wide.confidence, square.confidence)
    for shape, text in [((100, 100), "multiples of"), (256, "expected"), ((0, 32), "1 or more")]:
        with pytest.raises(ValueError, match=text):
            mini.predict(IMAGE, shape=shape)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"patch_size is 14 .*: this model's is 16"):
        mini.predict(IMAGE, patch_size=14)


def test_inference_is_undone_unless_in_place(tmp_path: Path) -> None:
    model = RFDETRMini(device="cpu")
    before = model.predict(IMAGE, 0.01)
    model.inference()
    assert np.array_equal(model.predict(IMAGE, 0.01).confidence, before.confidence)
    model.optimize_for_inference(compile=False, batch_size=1, dtype=torch.bfloat16)
    assert not np.array_equal(model.predict(IMAGE, 0.01).confidence, before.confidence)
    model.remove_optimized_model()
    assert np.array_equal(model.predict(IMAGE, 0.01).confidence, before.confidence)
    with pytest.raises(InputError, match="inplace=True needs compile=False"):
        model.inference(inplace=True)
    model.inference(compile=False, dtype="bfloat16", inplace=True)
    assert model.is_optimized_inplace
    assert next(model.model.model.parameters()).dtype == torch.bfloat16
    with pytest.warns(UserWarning, match="not undone"):
        model.remove_optimized_model()
    with pytest.raises(RunError, match="load the model"):
        model.export_for_roboflow(tmp_path)


def test_the_bundle_for_roboflow_is_weights_and_names(mini: RFDETR, tmp_path: Path) -> None:
    mini.export_for_roboflow(tmp_path / "new")
    assert (tmp_path / "new" / "class_names.txt").read_text().split("\n") == mini.class_names
    content = torch.load(tmp_path / "new" / "weights.pt", weights_only=False)
    assert content["args"].class_names == mini.class_names
    again = rfdetr.from_checkpoint(tmp_path / "new" / "weights.pt", trust_checkpoint=False)
    assert type(again) is RFDETRMini
    assert np.array_equal(again.predict(IMAGE, 0.01).xyxy, mini.predict(IMAGE, 0.01).xyxy)
    with pytest.raises(InputError, match="export_for_roboflow"):
        mini.deploy_to_roboflow("workspace", "project", 1, api_key="key")


def test_configurations_can_be_asked_for(mini: RFDETR) -> None:
    assert type(mini.get_train_config(dataset_dir="data")) is TrainConfig
    assert mini.get_model_config(resolution=128).resolution == 128
    assert mini.get_model_config() == mini.model_config


def test_names_stand_where_scripts_import_them() -> None:
    from rfdetr.datasets.aug_config import AUG_AERIAL
    from rfdetr.datasets.aug_configs import AUG_AERIAL as SAME
    from rfdetr.util.coco_classes import COCO_CLASSES

    assert COCO_CLASSES[18] == "dog"
    assert AUG_AERIAL is SAME
    from rfdetr import RFDETRDataModule, RFDETRModelModule, build_trainer, from_checkpoint, training

    assert RFDETRModelModule is training.RFDETRModule
    assert RFDETRDataModule is training.RFDETRDataModule
    assert build_trainer is training.build_trainer
    assert from_checkpoint == RFDETR.from_checkpoint


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"device": "cuda:x"}, "device='cuda:x': expected"),
        ({"device": "abacus"}, "device='abacus': expected"),
        ({"device": "cpu", "accelerator": "gpu"}, "give one of them"),
        ({"amp_dtype": ["bf16"]}, r"amp_dtype=\['bf16'\]: expected"),
        ({"keypoint_oks_sigmas": np.array([0.1, 0.2])}, "has no equivalent here"),
    ],
)
def test_what_cannot_be_is_told_before_a_run(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        compat.split_moved(settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_here_is_told_before_the_data_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device 'cuda' cannot be used here; there is cpu"):
        RFDETRMini(device="cpu").train(dataset_dir=tmp_path / "gone", device="cuda")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"horizontal_flip": {"p": 0.0}}),
        (aug_configs.AUG_CONFIG, {"horizontal_flip": {"p": 0.5}}),
        (
            aug_configs.AUG_INDUSTRIAL,
            {
                "horizontal_flip": {"p": 0.3},
                "brightness_contrast": {
                    "p": 0.5, "brightness": [-0.2, 0.2], "contrast": [-0.2, 0.2]
                },
                "blur": {"p": 0.3, "radius": [0.8, 0.8]},
                "noise": {"p": 0.3, "deviation": [0.01, 0.05]},
            },
        ),
        (
            {"RandomRotate90": {"p": 1}, "HueSaturationValue": {"val_shift_limit": 51}},
            {
                "horizontal_flip": {"p": 0.0},
                "quarter_turn": {"p": 0.75},
                "hsv": {
                    "p": 0.5, "hue": [-40, 40], "value": [-0.2, 0.2],
                    "saturation": pytest.approx([-30 / 255, 30 / 255]),
                },
            },
        ),
    ],
)  # fmt: skip
def test_albumentations_names_are_read_as_steps(given: Any, expected: dict[str, Any]) -> None:
    assert TrainConfig(dataset_dir="data", aug_config=given).augment == expected
    assert compat.split_moved({"aug_config": given})[0]["augment"].keys() == expected.keys()


def test_every_published_preset_is_read() -> None:
    presets = {name: value for name, value in vars(aug_configs).items() if name.startswith("AUG_")}
    read = {
        name: TrainConfig(dataset_dir="data", aug_config=value).augment
        for name, value in presets.items()
    }
    assert len(read) == 5 and [*read["AUG_AGGRESSIVE"]] == [
        *("horizontal_flip", "vertical_flip", "rotate", "affine", "hsv", "brightness_contrast")
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"HorizontalFlp": {}}, "has no equivalent here: did you mean 'HorizontalFlip'?"),
        ({"CLAHE": {}}, "'CLAHE' has no equivalent here: read are HorizontalFlip"),
        (
            {"Rotate": {"border_mode": 1}},
            "of border_mode is not read here, only of p, limit",
        ),
        ({"Rotate": 3}, "Rotate of 3 is not read here"),
        ({"Rotate": {"limit": "x"}}, "Rotate.*limit"),
        (["HorizontalFlip"], "expected a dict of names"),
        ({"ColorJitter": {}, "HueSaturationValue": {}}, "HueSaturationValue is 'hsv' here"),
        ({"GaussNoise": {"std_range": (0, 3)}}, "noise.deviation.1: Input should be less"),
    ],
)
def test_what_has_no_equivalent_is_told(given: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        TrainConfig(dataset_dir="data", aug_config=given)
    with pytest.raises(InputError, match=r"aug_config says augment .* but augment is 'strong'"):
        TrainConfig(dataset_dir="data", aug_config={}, augment="strong")


def test_advice_says_what_to_do_instead() -> None:
    with pytest.raises(InputError, match=r"optimizer='sgd' .*override .*docs"):
        compat.split_moved({"optimizer": "sgd"})
    for value in (True, False):
        with pytest.raises(InputError, match=f'^resume: expected "last" .* found {value}'):
            TrainConfig(dataset_dir="data", resume=value)


def test_classes_of_one_name_are_refused_where_given_and_told_where_a_file_has_them(
    tmp_path: Path, tiny_coco: Path
) -> None:
    twice = ["blue", "red", "blue"]
    with pytest.raises(InputError, match="'blue' occur twice; expected a name of its own"):
        RFDETRMini(**TINY, num_classes=3, class_names=twice)
    model = RFDETRMini(**TINY, num_classes=3, class_names=["blue", "red", "green"])
    model.export_for_roboflow(tmp_path / "bundle")
    content = torch.load(tmp_path / "bundle" / "weights.pt", weights_only=False)
    content["args"].class_names = twice
    torch.save(content, tmp_path / "twice.pt")
    with pytest.warns(UserWarning, match=r"classes of one name: blue; evaluate\(\) takes") as told:
        model = RFDETR.from_checkpoint(tmp_path / "twice.pt", device="cpu")
    assert len(told) == 1
    assert model.class_names == twice
    assert labels_of(model.model.labels, ["blue", "red"]).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("device", [None, "auto"])
def test_no_device_leaves_the_choice(device: str | None) -> None:
    assert compat.split_moved({"device": device}) == ({}, {}, {})


def test_evaluation_refuses_names_that_nobody_knows(mini: RFDETR, tiny_coco: Path) -> None:
    with pytest.raises(InputError, match=r"evaluate\(\) has no keyword 'resolutoin'"):
        mini.evaluate(tiny_coco, resolutoin=256)


def test_a_bundle_is_written_over_nothing(mini: RFDETR, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_text("mine")
    with pytest.raises(InputError, match="no empty folder"):
        mini.export_for_roboflow(tmp_path)
    assert (tmp_path / "weights.pt").read_text() == "mine"


@pytest.mark.parametrize("given", [["dog", "bird", "owl"], "abc", 5])
def test_names_of_one_another_and_what_is_no_list_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match="class_names is"):
        renamed(["cat", "dog", "owl"], given)


def test_another_number_of_classes_takes_those_that_the_file_knows_by_name(mini: RFDETR) -> None:
    known = mini.class_names
    fewer = RFDETRMini(num_classes=2, class_names=[known[5], known[1]], device="cpu")
    rows = mini.model.model.class_head.weight
    assert torch.equal(fewer.model.model.class_head.weight, rows[[5, 1, len(known)]])
    renamed_all = RFDETRMini(class_names=known[::-1], device="cpu")  # as many: names for its logits
    assert torch.equal(renamed_all.model.model.class_head.weight, rows)
