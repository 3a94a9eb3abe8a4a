"""Files from short runs of this package and of the published one, each read by the other, and by
transformers: the same detections. `make interop` runs these.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.interop.published_side import SIZE, THRESHOLD

from rfdetr import RFDETR, RFDETRNano, RFDETRSegNano
from rfdetr.synthetic import generate
from rfdetr.weights.writing import save_checkpoint

PYTHON = os.environ.get("RFDETR_PUBLISHED_PYTHON")
SIDE = Path(__file__).with_name("published_side.py")
RUN: dict[str, Any] = {"batch_size": 2, "grad_accum_steps": 1, "num_workers": 0}
SHORT: dict[str, Any] = {**RUN, "multi_scale": False, "progress_bar": False}
BACKGROUND = "__background__"  # rows that the published package returns, and this one never
CLOSE = 1e-4

pytestmark = [
    pytest.mark.skipif(
        not PYTHON,
        reason="RFDETR_PUBLISHED_PYTHON names no interpreter with rfdetr 1.11.2 and transformers",
    ),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]


def published(call: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Runs a function of published_side.py in its environment, without this package on the path."""
    job = json.dumps({"call": call, **settings}, default=str)
    keep = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(PYTHON), "-W", "ignore", str(SIDE), job]
    return subprocess.run(command, env=keep, capture_output=True, text=True, timeout=1200)


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("interop") / "data", 12, sides=(96, 128))


@pytest.fixture(scope="session")
def images(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A picture of the model's own size, as neither package resizes it, and as it is."""
    original = next((data / "test").glob("*.jpg"))
    side = SIZE["resolution"]
    own = tmp_path_factory.mktemp("image") / "own.png"
    Image.open(original).convert("RGB").resize((side, side)).save(own)
    return [own, original]


@pytest.fixture(scope="session")
def our_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours") / "run"
    model = RFDETRNano(pretrain_weights=None, device="cpu", **SIZE)
    model.train(dataset_dir=data, output_dir=folder, epochs=1, seed=1, **SHORT)
    return folder


@pytest.fixture(scope="session")
def their_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs") / "run"
    done(published("train", dataset_dir=data, output_dir=folder, epochs=1, seed=1))
    return folder


def assert_same(detections: Any, out: Path, *, boxes_within: float = 0.02) -> None:
    """Each of our rows is in theirs, and theirs has no more (but for background)."""
    theirs = dict(np.load(out))
    kept = theirs["class_name"] != BACKGROUND
    scores, names = theirs["confidence"][kept], theirs["class_name"][kept]
    assert len(detections) == kept.sum() > 0
    order = np.argsort(-scores, kind="stable")
    assert np.abs(scores[order] - detections.confidence).max() < CLOSE
    for row in range(len(detections)):
        alike = names == detections.data["class_name"][row]
        alike &= np.abs(scores - detections.confidence[row]) < CLOSE
        if "xyxy" in theirs:
            near = np.abs(theirs["xyxy"][kept].clip(0) - detections.xyxy[row]) < boxes_within
            alike &= near.all(-1)
        else:
            differ = (theirs["mask"][kept] != detections.mask[row]).mean((1, 2))
            alike &= differ < 1e-3
        assert alike.any(), (row, detections.xyxy[row], detections.confidence[row])


def test_the_environment_is_told() -> None:
    told = json.loads(done(published("versions")))
    print(told)
    assert told["rfdetr"] == "1.11.2"


@pytest.mark.parametrize("run", ["our_run", "their_run"])
@pytest.mark.parametrize("name", ["checkpoint_best_total.pth", "last.ckpt"])
def test_both_packages_find_the_same_with_one_file(
    run: str, name: str, images: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    weights, out = request.getfixturevalue(run) / name, tmp_path / "found.npz"
    done(published("predict", weights=weights, image=images[0], out=out))
    model = RFDETR.from_checkpoint(weights, device="cpu")
    assert_same(model.predict(images[0], threshold=THRESHOLD), out)


def test_a_rectangle_is_loaded_as_a_square_and_finds_the_same_at_its_shape(
    images: list[Path], tmp_path: Path
) -> None:
    shape = 96, 160
    torch.manual_seed(0)
    settings: dict[str, Any] = {**SIZE, "resolution": shape, "num_classes": 3}
    model = RFDETRNano(pretrain_weights=None, device="cpu", **settings)
    weights, picture, out = (tmp_path / name for name in ("a.pth", "a.png", "found.npz"))
    save_checkpoint(weights, model.weights(), model.model_config, ["a", "b", "c"])
    Image.open(images[1]).convert("RGB").resize(shape[::-1]).save(picture)
    done(published("predict", weights=weights, image=picture, out=out, shape=shape))
    model = RFDETRNano.from_checkpoint(weights, device="cpu")
    assert_same(model.predict(picture, threshold=THRESHOLD), out)


@pytest.mark.parametrize("image", [0, 1], ids=["own-size", "resized"])
def test_our_folder_in_transformers(
    image: int, our_run: Path, images: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "found.npz"
    model = RFDETR.from_checkpoint(our_run / "checkpoint_best_total.pth", device="cpu")
    folder = model.export(tmp_path / "hf", format="hf")
    done(published("transformers_predict", folder=folder, image=images[image], out=out))
    assert_same(model.predict(images[image], threshold=THRESHOLD), out)


def test_our_masks_in_transformers(images: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RFDETRSegNano(pretrain_weights=None, device="cpu", **SIZE, num_classes=3)
    folder, out = model.export(tmp_path / "hf", format="hf"), tmp_path / "found.npz"
    done(published("transformers_predict", folder=folder, image=images[0], out=out))
    assert_same(model.predict(images[0], threshold=THRESHOLD), out)


def test_the_published_training_goes_on_from_our_weights(
    data: Path, our_run: Path, tmp_path: Path
) -> None:
    weights = our_run / "checkpoint_best_total.pth"
    settings = {"dataset_dir": data, "output_dir": tmp_path / "run", "epochs": 1}
    done(published("train", resume=weights, **settings))
    assert (tmp_path / "run" / "checkpoint_best_total.pth").is_file()


def test_the_published_training_takes_the_weights_of_last_but_not_its_optimizer(
    data: Path, our_run: Path, tmp_path: Path
) -> None:
    """Query, key and value are one parameter here, three there: the optimizers' groups differ."""
    settings = {"dataset_dir": data, "output_dir": tmp_path / "run", "epochs": 2}
    result = published("train", resume=our_run / "last.ckpt", **settings)
    assert result.returncode == 1
    assert "parameter group that doesn't match the size of optimizer's group" in result.stderr


@pytest.mark.parametrize("name", ["checkpoint_best_total.pth", "last.ckpt"])
def test_our_training_goes_on_from_published_files(
    name: str, data: Path, their_run: Path, tmp_path: Path
) -> None:
    model = RFDETRNano(pretrain_weights=None, device="cpu", **SIZE)
    run = {"dataset_dir": data, "output_dir": tmp_path / "run", "epochs": 3}
    model.train(**run, resume=their_run / name, **SHORT)
    assert (tmp_path / "run" / "checkpoint_best_total.pth").is_file()
