"""The public face: construction, checkpoints, training, evaluation and prediction on small real
data.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

import rfdetr
from rfdetr import RFDETR, RFDETRMini, RFDETRNano
from rfdetr.assets.coco_classes import COCO_CLASSES
from rfdetr.config import VARIANTS, RFDETRMiniConfig, SegmentationTrainConfig
from rfdetr.config.training import TrainSettings
from rfdetr.evaluation.run import labels_of
from rfdetr.models.build import build_detector
from rfdetr.variants import FACES
from rfdetr.weights.labels import class_labels
from rfdetr.weights.writing import save_checkpoint

SMALL = {"pretrain_weights": None, "resolution": 96, "num_select": 40}
IMAGE = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A Mini of another size than the variant's, with class names."""
    config = RFDETRMiniConfig(**SMALL, num_classes=3, dec_layers=1)
    torch.manual_seed(0)
    path = tmp_path / "small.pth"
    save_checkpoint(path, build_detector(config).state_dict(), config, ["cat", "dog", "owl"])
    return path


def test_every_variant_has_its_class() -> None:
    assert list(FACES) == list(VARIANTS)
    for name, face in FACES.items():
        assert face.config_class is VARIANTS[name]
        assert (
            f"{face.__name__}Config" == VARIANTS[name].__name__ and face.__name__ in rfdetr.__all__
        )


def test_a_typo_is_answered_with_the_nearest_name_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="did you mean 'resolution'"):
        RFDETRNano(resolutoin=384)
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        RFDETRMini(**SMALL).train(dataset_dir="nowhere", epoch=3)


def test_a_file_restores_classes_resolution_and_names(checkpoint: Path) -> None:
    for model in (RFDETRMini(pretrain_weights=str(checkpoint)), RFDETR.from_checkpoint(checkpoint)):
        assert type(model) is RFDETRMini
        assert model.class_names == ["cat", "dog", "owl"]
        config = model.model_config
        assert (config.resolution, config.num_classes, config.dec_layers) == (96, 3, 1)


def test_a_fresh_process_predicts_the_same_from_the_file_alone(
    checkpoint: Path, tmp_path: Path
) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    here = RFDETRMini(pretrain_weights=checkpoint).predict(tmp_path / "image.png", threshold=0.0)
    program = (
        "import sys; from rfdetr import RFDETR;"
        "found = RFDETR.from_checkpoint(sys.argv[1]).predict(sys.argv[2], 0.0);"
        "print(found.confidence.tolist(), *found.data['class_name'][:3])"
    )
    command = [sys.executable, "-c", program, str(checkpoint), str(tmp_path / "image.png")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    numbers, _, names = output.rpartition("]")
    np.testing.assert_allclose(json.loads(numbers + "]"), here.confidence, atol=1e-5)
    assert names.split() == here.data["class_name"][:3].tolist()


def test_what_is_given_wins_over_the_file(checkpoint: Path) -> None:
    model = RFDETRMini(pretrain_weights=checkpoint, resolution=128, num_classes=5)
    assert model.model_config.resolution == 128 and model.class_names == ["0", "1", "2", "3", "4"]
    assert RFDETR.from_checkpoint(checkpoint, resolution=128).class_names == ["cat", "dog", "owl"]


def test_a_file_of_another_variant_is_refused_with_the_right_one(checkpoint: Path) -> None:
    with pytest.raises(
        ValueError, match=r"small\.pth holds an RFDETRMini, not an RFDETRNano: use RFDETRMini\("
    ):
        RFDETRNano(pretrain_weights=checkpoint)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        RFDETRMini(pretrain_weights="absent.pth")


@pytest.mark.parametrize(
    ("names", "num_classes", "expected"),
    [
        (["a", "b"], 2, {0: "a", 1: "b"}),
        (None, 90, COCO_CLASSES),
        (None, 2, {0: "0", 1: "1"}),
        ([str(n) for n in range(90)], 90, {n: str(n) for n in range(90)}),
    ],
)
def test_labels(names: list[str] | None, num_classes: int, expected: dict[int, str]) -> None:
    assert class_labels(names, num_classes) == expected


def test_coco_has_80_classes_with_ids_to_90() -> None:
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES.values())) == 80
    assert (min(COCO_CLASSES), max(COCO_CLASSES), COCO_CLASSES[90]) == (1, 90, "toothbrush")


def test_one_image_gives_detections_and_several_a_list(checkpoint: Path, tmp_path: Path) -> None:
    model = RFDETRMini(pretrain_weights=checkpoint)
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    one = model.predict(IMAGE, threshold=0.0)
    assert len(one.xyxy) > 0
    for several in ([IMAGE], tmp_path, f"{tmp_path}/*.png", (image for image in [IMAGE])):
        (found,) = model.predict(several, threshold=0.0)
        np.testing.assert_array_equal(found.xyxy, one.xyxy)
    with pytest.raises(ValueError, match="no images"):
        model.predict([])


def test_optimize_for_inference_finds_the_same_with_other_weights(checkpoint: Path) -> None:
    model = RFDETRMini(pretrain_weights=checkpoint)
    exact = model.predict(IMAGE, threshold=0.0)
    model.optimize_for_inference(dtype="bfloat16")
    close = model.predict(IMAGE, threshold=0.0)
    assert not np.array_equal(exact.confidence, close.confidence)  # or nothing was optimised
    np.testing.assert_allclose(close.confidence, exact.confidence, atol=0.02)
    near = [
        np.abs(close.xyxy[np.abs(close.confidence - one) < 0.02] - box).max(axis=1).min()
        for one, box in zip(exact.confidence[:9], exact.xyxy[:9], strict=True)
    ]
    # Pixels of an image of 80 x 50; of queries that score alike, another may be chosen.
    assert np.median(near) < 2, near
    model.optimize_for_inference(dtype="float32")
    np.testing.assert_array_equal(model.predict(IMAGE, threshold=0.0).confidence, exact.confidence)
    with pytest.raises(ValueError, match="dtype 'int8' is not one of float32, bfloat16, float16"):
        model.optimize_for_inference(dtype="int8")


def test_the_keywords_of_train_are_the_fields_of_its_configuration() -> None:
    """Names, order and types, ranges aside; where a field is a path, text will do."""
    fields = get_type_hints(SegmentationTrainConfig)
    text = str | os.PathLike[str]
    wanted = {name: fields[name] for name in SegmentationTrainConfig.model_fields}
    wanted |= {"output_dir": text, "resume": text | None}
    wanted |= {"dataset_dir": text | Sequence[text] | Mapping[text, float]}  # type: ignore[valid-type]
    wanted |= {"classes": Sequence[str] | Mapping[str, Sequence[str]] | None}  # becomes a mapping
    wanted |= {"augment": text | Mapping[str, Any]}
    wanted |= {"resolution": int | tuple[int, int] | Literal["auto"]}  # of the model
    wanted |= {"tiles": bool | int | tuple[int, int] | None}  # a number becomes a pair
    keywords = get_type_hints(TrainSettings)
    assert list(keywords) == list(wanted) and keywords == wanted
    assert TrainSettings.__required_keys__ == frozenset()
    assert RFDETR.train.__annotations__["settings"] == "Unpack[TrainSettings]"


@pytest.mark.slow
def test_training_starts_from_the_present_weights(
    checkpoint: Path, tiny_coco: Path, tmp_path: Path
) -> None:
    model = RFDETRMini(pretrain_weights=checkpoint)
    before = model.model.model.encoder.position_embeddings.clone()
    model.train(
        dataset_dir=tiny_coco,
        output_dir=tmp_path / "out",
        epochs=1,
        lr=1e-9,
        lr_encoder=0,
        num_workers=0,
    )
    after = RFDETR.from_checkpoint(tmp_path / "out" / "checkpoint_best_total.pth")
    assert torch.allclose(after.model.model.encoder.position_embeddings, before, atol=1e-6)
    assert after.class_names == ["blue", "green", "red"]  # three others than the file's


def _start_of_training(model: RFDETR, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """The module that `train` gives to Lightning, which does not go on from there."""
    started: list[Any] = []
    monkeypatch.setattr(pl.Trainer, "fit", lambda _, module, *__, **___: started.append(module))
    model.train(num_workers=0, seed=3, **settings)
    return started[0]


@pytest.mark.parametrize("settings", [{}, {"num_classes": 3}, {"num_classes": 5}])
def test_training_starts_classes_from_the_files_of_the_same_name(
    tmp_path: Path, tiny_coco: Path, settings: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data's blue, green, red from a file of four classes, whatever was asked of the model."""
    config = RFDETRMiniConfig(**SMALL, num_classes=4, dec_layers=1)
    torch.manual_seed(0)
    file = build_detector(config)
    path, names = tmp_path / "four.pth", ["Red", "pink", "greens", "grey"]
    save_checkpoint(path, file.state_dict(), config, names)
    model = RFDETRMini(pretrain_weights=path, **settings)
    data = {"dataset_dir": tiny_coco, "output_dir": tmp_path / "out"}
    module = _start_of_training(model, monkeypatch, **data)
    rows = [0, 2, 0, 4]  # blue is of no name there: the first row, as ever
    assert module.detector.class_head.weight.equal(file.class_head.weight[rows])
    assert module.detector.proposals.class_head.bias.equal(file.proposals.class_head.bias[:, rows])
    told = "class head 5 -> 4 logits, 2 of 3 classes by name, to be trained (8)"
    assert module.changes == [told] and module.class_names == ["blue", "green", "red"]


def test_a_head_that_was_set_by_hand_is_trained_as_it_is(
    checkpoint: Path, tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RFDETRMini(pretrain_weights=checkpoint, num_classes=2)
    with torch.no_grad():
        head = model.model.model.class_head.weight.normal_().clone()
    data = {"dataset_dir": tiny_coco, "output_dir": tmp_path / "out"}
    module = _start_of_training(model, monkeypatch, **data)
    assert module.detector.class_head.weight.equal(head[[0, 1, 2, 0]])


def test_more_queries_than_the_file_has_are_selected_told_and_drawn_from_the_runs_seed(
    checkpoint: Path,
    tiny_coco: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The file has 100 a group and selects 40; above it the selection follows, below it stays."""
    below = RFDETRMini(pretrain_weights=checkpoint, num_queries=60)
    assert below.model_config.num_select == 40
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    chosen = RFDETRMini(pretrain_weights=checkpoint, num_queries=120, num_select=50)
    assert chosen.model_config.num_select == 50
    data = {"dataset_dir": tiny_coco, "output_dir": tmp_path / "out"}
    starts = []
    for _ in range(2):
        model = RFDETRMini(pretrain_weights=checkpoint, num_queries=120)
        assert model.model_config.num_select == model.model.num_select == 120
        assert "20 queries of each group repeat the file's" in caplog.text
        built = model.model.model.query_content.clone()
        module = _start_of_training(model, monkeypatch, **data)
        assert "queries 3 x 100 -> 3 x 120" in module.changes[0]
        starts.append(module.detector.query_content)
        assert not starts[-1].equal(built)  # drawn once more, from the seed
    assert starts[0].equal(starts[1])


def test_evaluation_matches_classes_by_name(checkpoint: Path, tiny_coco: Path) -> None:
    with pytest.raises(
        ValueError, match=r"classes the model does not know: \['blue', 'green', 'red'\]"
    ):
        RFDETRMini(pretrain_weights=checkpoint).evaluate(tiny_coco, num_workers=0)
    known = {0: "red", 1: "spare", 2: "blue", 3: "green"}
    assert labels_of(known, ["blue", "green", "red"]).tolist() == [2, 3, 0, 1, 3]


def test_evaluation_names_the_splits_there_are(checkpoint: Path, tiny_coco: Path) -> None:
    with pytest.raises(ValueError, match="found train, valid, test"):
        RFDETRMini(pretrain_weights=checkpoint).evaluate(tiny_coco, split="holdout")
