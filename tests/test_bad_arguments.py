"""What every public entry point answers to what cannot be: one error of ours that names what was
found and expected.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pydantic import ValidationError

import rfdetr
from rfdetr import RFDETR, RFDETRMini, RFDETRNano
from rfdetr.cli import main
from rfdetr.config import ModelConfig, RFDETRMiniConfig, TrainConfig
from rfdetr.data.findings import DatasetError
from rfdetr.data.images import MAX_PIXELS, ImageError, check_size
from rfdetr.models.build import build_detector
from rfdetr.training import RFDETRDataModule, RFDETRModule, build_trainer
from rfdetr.training.run_folder import OutputFolderError
from rfdetr.weights.reading import CheckpointError
from rfdetr.weights.writing import save_checkpoint

# Its header promises 65535 x 65535.
HUGE_JPEG = b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + bytes(30)
IMAGE = np.zeros((40, 50, 3), np.uint8)
OURS = (str(Path(rfdetr.__file__).parent), str(Path(__file__)), "pydantic", "lightning")


@dataclass
class World:
    """A folder with good and bad files, a detector, and the settings of a run that would work."""

    folder: Path
    data: Path
    checkpoint: Path
    detector: RFDETR
    port: int  # nobody listens there

    def train(self, **settings: Any) -> None:
        usual = {
            "dataset_dir": self.data,
            "output_dir": self.folder / "out",
            "epochs": 1,
            "num_workers": 0,
        }
        self.detector.train(**{**usual, **settings})

    def run(self, **settings: Any) -> TrainConfig:
        return TrainConfig(dataset_dir=self.data, output_dir=self.folder / "out", **settings)

    def trainer(self, **settings: Any) -> pl.Trainer:
        return build_trainer(self.run(), MODEL, **settings)


MODEL = RFDETRMiniConfig(pretrain_weights=None, resolution=64, num_classes=3, num_select=20)


@pytest.fixture
def world(
    shared_tiny_coco: Path, tmp_path: Path, checkpoint: Path, detector: RFDETR, unheard_port: int
) -> World:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "huge.jpg").write_bytes(HUGE_JPEG)
    (tmp_path / "text.pth").write_text("no checkpoint at all")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("epochs: [1")
    (tmp_path / "code.yaml").write_text(
        f"epochs: !!python/object/apply:os.mkdir ['{tmp_path / 'attacked'}']"
    )
    (tmp_path / "date.yaml").write_text("epochs: 2001-99-99")
    (tmp_path / "typo.yaml").write_text("epoch: 3")
    (tmp_path / "model.yaml").write_text("model: [1]")
    return World(tmp_path, shared_tiny_coco, checkpoint, detector, unheard_port)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    save_checkpoint(path, build_detector(MODEL).state_dict(), MODEL, ["blue", "green", "red"])
    return path


@pytest.fixture(scope="module")
def detector(checkpoint: Path) -> RFDETR:
    return RFDETRMini(pretrain_weights=checkpoint)


@pytest.fixture(scope="module")
def unheard_port() -> Any:
    with socket.socket() as taken:  # bound, never listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


Call = Callable[[World], object]
Case = tuple[Call, type[Exception], str]

PREDICT: list[Case] = [
    (lambda w: w.detector.predict(None), TypeError, "NoneType is no image: expected a path"),
    (lambda w: w.detector.predict(3), TypeError, "int is no image"),
    (lambda w: w.detector.predict(b"bytes"), TypeError, "bytes is no image"),
    (lambda w: w.detector.predict({"image": IMAGE}), TypeError, "dict is no image"),
    (lambda w: w.detector.predict([IMAGE, None]), TypeError, "NoneType is no image"),
    (lambda w: w.detector.predict([]), ValueError, "the list is empty"),
    (lambda w: w.detector.predict(""), ValueError, "the image's path is empty"),
    (lambda w: w.detector.predict("a\0b.jpg"), ValueError, "null character"),
    (lambda w: w.detector.predict("a" * 5000), ImageError, "name too long"),
    (
        lambda w: w.detector.predict("no/such.jpg"),
        FileNotFoundError,
        "no/such.jpg: no such image file or folder",
    ),
    (
        lambda w: w.detector.predict(w.folder / "text.jpg"),
        ImageError,
        "text.jpg: cannot be decoded as an image",
    ),
    (
        lambda w: w.detector.predict(w.folder / "empty.jpg"),
        ImageError,
        "empty.jpg: cannot be decoded .* it is empty",
    ),
    (lambda w: w.detector.predict(w.folder / "huge.jpg"), ImageError, "huge.jpg: .*65535 x 65535"),
    (
        lambda w: w.detector.predict(w.folder / "nothing"),
        ValueError,
        "nothing: no image files there",
    ),
    (lambda w: w.detector.predict(f"{w.folder}/*.bmp"), ValueError, "no image files there"),
    (lambda w: w.detector.predict("/dev/null"), ImageError, "/dev/null: not a file"),
    (
        lambda w: w.detector.predict(f"http://127.0.0.1:{w.port}/a.jpg"),
        ValueError,
        "could not be downloaded.*refused",
    ),
    (
        lambda w: w.detector.predict(f"http://127.0.0.1:{w.port}/ä b.jpg"),
        ValueError,
        "could not be downloaded",
    ),
    (
        lambda w: w.detector.predict("http://[::1/a.jpg"),
        ValueError,
        "could not be downloaded: Invalid IPv6",
    ),
    (lambda w: w.detector.predict("http://a b/c.jpg"), ValueError, "could not be downloaded"),
    (
        lambda w: w.detector.predict("ftp://host/a.jpg"),
        ValueError,
        "expected an http:// or https:// address",
    ),
    (
        lambda w: w.detector.predict(np.zeros((0, 9, 3), np.uint8)),
        ValueError,
        r"shape \(0, 9, 3\): expected \(height",
    ),
    (
        lambda w: w.detector.predict(np.zeros((9, 9, 2), np.uint8)),
        ValueError,
        r"shape \(9, 9, 2\): expected",
    ),
    (lambda w: w.detector.predict(np.zeros((2, 9, 9, 3), np.uint8)), ValueError, "expected"),
    (
        lambda w: w.detector.predict(np.zeros((9, 9, 3), np.int64)),
        ValueError,
        "int64: expected uint8, or floats",
    ),
    (lambda w: w.detector.predict(np.full((9, 9, 3), np.nan)), ValueError, "NaN or infinite"),
    (
        lambda w: w.detector.predict(np.full((9, 9, 3), 255.0)),
        ValueError,
        r"from 255 to 255: expected floats in \[0",
    ),
    (lambda w: w.detector.predict(np.full((9, 9, 3), "a")), ValueError, "expected uint8"),
    (
        lambda w: w.detector.predict(np.broadcast_to(np.zeros(3, np.uint8), (20_000, 20_000, 3))),
        ValueError,
        "is 20000 x 20000: expected 1 to",
    ),
    (
        lambda w: w.detector.predict(torch.zeros(2, 3, 9, 9)),
        ValueError,
        r"a batch goes in as list\(batch\)",
    ),
    (
        lambda w: w.detector.predict(torch.zeros(9, 9, 3)),
        ValueError,
        "expected .1, 3 or 4, height, width",
    ),
    (lambda w: w.detector.predict(torch.full((3, 9, 9), torch.nan)), ValueError, "NaN or infinite"),
    (
        lambda w: w.detector.predict(torch.zeros(3, 9, 9).to_sparse()),
        TypeError,
        "expected a dense tensor",
    ),
    (
        lambda w: w.detector.predict(torch.zeros(3, 9, 9, device="meta")),
        TypeError,
        "dense tensor with data",
    ),
    (lambda w: w.detector.predict(Image.new("RGB", (0, 9))), ImageError, "0 x 9: expected"),
    (
        lambda w: w.detector.predict(IMAGE, threshold=-0.1),
        ValueError,
        "threshold is -0.1: expected a number from 0 to",
    ),
    (lambda w: w.detector.predict(IMAGE, threshold=1.1), ValueError, "threshold is 1.1"),
    (lambda w: w.detector.predict(IMAGE, threshold=np.nan), ValueError, "threshold is nan"),
    (
        lambda w: w.detector.predict(IMAGE, threshold="0.5"),
        TypeError,
        r"threshold is '0.5' \(str\): expected a number",
    ),
    (lambda w: w.detector.predict(IMAGE, threshold=None), TypeError, "threshold is None"),
    (
        lambda w: w.detector.predict(IMAGE, batch_size=0),
        ValueError,
        "batch_size is 0: expected 1 or more",
    ),
    (
        lambda w: w.detector.predict(IMAGE, batch_size=1.5),
        TypeError,
        "batch_size is 1.5 .*expected a whole number",
    ),
    (lambda w: w.detector.predict(IMAGE, batch_size=True), TypeError, "batch_size is True"),
    (lambda w: w.detector.predict_stream(IMAGE, threshold=-1), ValueError, "threshold is -1"),
    (lambda w: w.detector.predict(IMAGE, treshold=1), TypeError, "treshold"),
    (
        lambda w: w.detector.optimize_for_inference(dtype="int8"),
        ValueError,
        "dtype 'int8' is not one of",
    ),
    (lambda w: w.detector.optimize_for_inference(dtype=[]), ValueError, "is not one of float32"),
]

CONSTRUCTORS: list[Case] = [
    (lambda w: RFDETRMini(resolutoin=64), ValidationError, "did you mean 'resolution'"),
    (lambda w: RFDETRMini(epochs=5), ValidationError, r"^epochs belongs to train\(epochs=5\)"),
    (
        lambda w: RFDETR.from_checkpoint(w.checkpoint, epochs=5),
        ValidationError,
        r"^epochs belongs to train\(epochs=5\)",
    ),
    (lambda w: RFDETRMini(resolution="wide"), ValidationError, "resolution.*valid integer"),
    (lambda w: RFDETRMini(resolution=100), ValidationError, "the nearest that fit are 96 and 128"),
    (
        lambda w: RFDETRMini(resolution=-64),
        ValidationError,
        "resolution.*greater than or equal to 1",
    ),
    (lambda w: RFDETRMini(resolution=2**40), ValidationError, "resolution.*less than"),
    (
        lambda w: RFDETRMini(resolution=9600),
        ValidationError,
        "resolution: .* less than or equal to 8192; found 9600",
    ),
    (lambda w: RFDETRMini(num_classes=0), ValidationError, "num_classes"),
    (lambda w: RFDETRMini(num_classes=10**12), ValidationError, "num_classes.*less than"),
    (
        lambda w: RFDETRMini(group_detr=20),
        CheckpointError,
        "3 query groups.*group_detr=20; set group_detr",
    ),
    (lambda w: RFDETRMini(encoder="resnet"), ValidationError, "encoder.*dinov2_windowed_small"),
    (
        lambda w: RFDETRMini(device="gpu"),
        ValueError,
        "device 'gpu' cannot be used here; there is cpu",
    ),
    (lambda w: RFDETRMini(device="cuda:99"), ValueError, "device 'cuda:99' cannot be used here"),
    (lambda w: RFDETRMini(device="meta"), ValueError, "device 'meta' cannot be used here"),
    (lambda w: RFDETRMini(device=0), ValidationError, "device.*valid string"),
    (
        lambda w: RFDETRMini(pretrain_weights="no.pth"),
        FileNotFoundError,
        "there is no weights file .*no.pth",
    ),
    (
        lambda w: RFDETRMini(pretrain_weights="rf-detr-nanoo.pth"),
        FileNotFoundError,
        "did you mean 'rf-detr-nano.pth'",
    ),
    (
        lambda w: RFDETRMini(pretrain_weights=w.folder),
        CheckpointError,
        "is a directory, not a checkpoint file",
    ),
    (
        lambda w: RFDETRMini(pretrain_weights=w.folder / "empty.pth"),
        CheckpointError,
        "empty.pth is empty",
    ),
    (
        lambda w: RFDETRMini(pretrain_weights=w.folder / "text.pth"),
        CheckpointError,
        "text.pth cannot be read",
    ),
    (lambda w: RFDETRMini(pretrain_weights=3), TypeError, r"is 3 \(int\): expected a path"),
    (lambda w: RFDETRMini(pretrain_weights=""), ValueError, "is empty: expected a path"),
    (lambda w: RFDETRMini(pretrain_weights="a\0b"), ValueError, "null character"),
    (
        lambda w: RFDETRNano(pretrain_weights=w.checkpoint),
        ValueError,
        "holds an RFDETRMini, not an RFDETRNano: use",
    ),
    (lambda w: RFDETRMini("small.pth"), TypeError, "positional"),
    (lambda w: RFDETR.from_checkpoint(None), TypeError, "the checkpoint is None .*expected a path"),
    (lambda w: RFDETR.from_checkpoint(b"a.pth"), TypeError, "expected a path"),
    (lambda w: RFDETR.from_checkpoint("no.pth"), FileNotFoundError, "no.pth"),
    (lambda w: RFDETR.from_checkpoint("~nobody/no.pth"), FileNotFoundError, "no.pth"),
    (lambda w: RFDETR.from_checkpoint(w.folder), CheckpointError, "is a directory"),
    (lambda w: RFDETR.from_checkpoint(w.folder / "text.jpg"), CheckpointError, "cannot be read"),
    (
        lambda w: RFDETR.from_checkpoint(w.checkpoint, resolutoin=3),
        ValidationError,
        "did you mean 'resolution'",
    ),
    (
        lambda w: RFDETR.from_checkpoint(w.checkpoint, resolution=3),
        ValidationError,
        "resolution 3 is not a multiple",
    ),
]

EVALUATE: list[Case] = [
    (lambda w: w.detector.evaluate(None), TypeError, "dataset_dir is None .*expected a path"),
    (lambda w: w.detector.evaluate(w.folder / "gone"), DatasetError, "gone: no such folder"),
    (lambda w: w.detector.evaluate(w.checkpoint), DatasetError, "small.pth: no such folder"),
    (
        lambda w: w.detector.evaluate(w.folder / "nothing"),
        DatasetError,
        "no dataset found: looked for .*found nothing",
    ),
    (
        lambda w: w.detector.evaluate(w.data, "holdout"),
        DatasetError,
        "no 'holdout' split.*found train, valid, test",
    ),
    (lambda w: w.detector.evaluate(w.data, 3), TypeError, r"split is 3 \(int\): expected str"),
    (
        lambda w: w.detector.evaluate(w.data, batch_size=0),
        ValueError,
        "batch_size is 0: expected 1 or more",
    ),
    (lambda w: w.detector.evaluate(w.data, batch_size="4"), TypeError, "batch_size is '4'"),
    (
        lambda w: w.detector.evaluate(w.data, num_workers=-1),
        ValueError,
        "num_workers is -1: expected 0 or more",
    ),
    (lambda w: w.detector.evaluate(w.data, max_dets=0), ValueError, "max_dets is 0"),
    (
        lambda w: w.detector.evaluate(w.data, dataset_file="voc"),
        DatasetError,
        "'voc'; expected one of roboflow, coco",
    ),
    (
        lambda w: RFDETRMini(pretrain_weights=w.checkpoint, num_classes=5).evaluate(w.data),
        ValueError,
        r"classes the model does not know: \['blue', 'green', 'red'\]",
    ),
]

TRAIN: list[Case] = [
    (lambda w: w.detector.train(), ValidationError, "dataset_dir"),
    (lambda w: w.train(dataset_dir=None), ValidationError, "dataset_dir"),
    (lambda w: w.train(dataset_dir="a\0b"), ValidationError, "null character"),
    (lambda w: w.train(dataset_dir=w.folder / "gone"), DatasetError, "gone: no such folder"),
    (lambda w: w.train(dataset_dir=w.checkpoint), DatasetError, "no such folder"),
    (lambda w: w.train(dataset_dir=w.folder / "nothing"), DatasetError, "no dataset found"),
    (
        lambda w: w.train(dataset_file="voc"),
        ValidationError,
        "dataset_file.*'roboflow', 'coco' or 'yolo'",
    ),
    (lambda w: w.train(epoch=3), ValidationError, "did you mean 'epochs'"),
    (
        lambda w: w.train(num_queries=50),
        ValueError,
        r"^num_queries belongs to the model: RFDETRMini\(num_queries=50\)$",
    ),
    (lambda w: w.train(epochs=0), ValidationError, "epochs.*greater than or equal to 1"),
    (lambda w: w.train(epochs=10**30), ValidationError, "epochs.*less than"),
    (lambda w: w.train(epochs="ten"), ValidationError, "epochs.*valid integer"),
    (lambda w: w.train(batch_size=-1), ValidationError, "batch_size"),
    (lambda w: w.train(lr=float("nan")), ValidationError, "lr.*finite"),
    (lambda w: w.train(seed=2**70), ValidationError, "seed.*less than"),
    (lambda w: w.train(num_workers=10**9), ValidationError, "num_workers.*less than"),
    (lambda w: w.train(warmup_epochs=3), ValidationError, "warmup_epochs 3.0 leaves nothing"),
    (lambda w: w.train(accelerator="abacus"), ValueError, "accelerator='abacus'"),
    (lambda w: w.train(resume=3), ValidationError, "resume"),
    (lambda w: w.train(resume="gone.ckpt"), FileNotFoundError, "gone.ckpt"),
    (lambda w: w.train(resume=w.folder), CheckpointError, "is a directory"),
    (lambda w: w.train(resume=w.folder / "text.pth"), CheckpointError, "text.pth"),
    (
        lambda w: w.train(resume=_written(w, "text.ckpt", b"no checkpoint")),
        CheckpointError,
        "text.ckpt",
    ),
    (lambda w: w.train(resume=_written(w, "empty.ckpt", b"")), CheckpointError, "empty.ckpt"),
    (lambda w: w.train(resume=_saved(w, "list.ckpt", [1])), CheckpointError, "list.ckpt"),
    (lambda w: w.train(resume=_saved(w, "other.ckpt", {"a": 1})), CheckpointError, "other.ckpt"),
    (
        lambda w: w.train(output_dir=w.checkpoint),
        OutputFolderError,
        "small.pth cannot be written to",
    ),
    (
        lambda w: w.train(output_dir=w.checkpoint / "x"),
        OutputFolderError,
        "small.pth/x cannot be written to",
    ),
]

OBJECTS: list[Case] = [
    (
        lambda w: build_trainer(None, MODEL),
        TypeError,
        "train_config is None .*expected TrainConfig",
    ),
    (
        lambda w: build_trainer({"epochs": 1}, MODEL),
        TypeError,
        "train_config is .*dict.*expected TrainConfig",
    ),
    (
        lambda w: build_trainer(MODEL, w.run()),
        TypeError,
        "train_config is RFDETRMiniConfig.*expected TrainConfig",
    ),
    (lambda w: build_trainer(w.run(), {}), TypeError, "model_config is .*expected ModelConfig"),
    (lambda w: w.trainer(epochs=3), TypeError, "unexpected keyword argument 'epochs'"),
    (lambda w: w.trainer(callbacks=[3]), TypeError, r"callbacks is 3 \(int\): expected Callback"),
    (lambda w: w.trainer(callbacks="ema"), TypeError, "callbacks is 'ema'"),
    (lambda w: w.trainer(devices=-3), TypeError, "devices"),
    (lambda w: w.trainer(strategy="abacus"), ValueError, "strategy='abacus'"),
    (lambda w: w.trainer(precision="8"), ValueError, "Precision '8' is invalid. Allowed"),
    (lambda w: w.trainer(max_epochs=-5), ValueError, "max_epochs.*You passed in -5"),
    (lambda w: w.trainer(limit_train_batches=-1), ValueError, "-1 for limit_train_batches"),
    (
        lambda w: RFDETRModule(None, w.run()),
        TypeError,
        "model_config is None .*expected ModelConfig",
    ),
    (lambda w: RFDETRModule(w.run(), MODEL), TypeError, "model_config is .*expected ModelConfig"),
    (
        lambda w: RFDETRDataModule(w.run(), MODEL),
        TypeError,
        "model_config is .*expected ModelConfig",
    ),
    (
        lambda w: RFDETRDataModule(MODEL, w.run()).index("holdout"),
        DatasetError,
        "no 'holdout' split",
    ),
    (lambda w: TrainConfig("data"), TypeError, "positional"),
    (
        lambda w: _fit(w, num_classes=2),
        ValueError,
        "num_classes=2, but the data has 3 classes .blue, green, red",
    ),
    (lambda w: _fit(w, ckpt_path="gone.ckpt"), FileNotFoundError, "gone.ckpt"),
    (lambda w: _fit(w, ckpt_path=str(w.folder)), CheckpointError, "is a directory"),
    (lambda w: _fit(w, ckpt_path=str(w.folder / "text.pth")), CheckpointError, "text.pth"),
]


def _written(world: World, name: str, content: bytes) -> Path:
    (world.folder / name).write_bytes(content)
    return world.folder / name


def _saved(world: World, name: str, content: Any) -> Path:
    torch.save(content, world.folder / name)
    return world.folder / name


def _fit(world: World, ckpt_path: str | None = None, **changes: Any) -> None:
    model: ModelConfig = RFDETRMiniConfig(**{**MODEL.model_dump(), **changes})
    run = world.run(num_workers=0)
    build_trainer(run, model).fit(
        RFDETRModule(model, run), RFDETRDataModule(model, run), ckpt_path=ckpt_path
    )


def _ids(prefix: str, cases: list[Case]) -> list[Any]:
    return [pytest.param(*case, id=f"{prefix}-{number}") for number, case in enumerate(cases)]


@pytest.mark.parametrize(
    ("call", "expected", "words"),
    [
        *_ids("predict", PREDICT),
        *_ids("constructor", CONSTRUCTORS),
        *_ids("evaluate", EVALUATE),
        *_ids("train", TRAIN),
        *_ids("objects", OBJECTS),
    ],
)
def test_bad_arguments_are_answered_by_one_clear_error(
    world: World, call: Call, expected: type[Exception], words: str
) -> None:
    with pytest.raises(expected, match=f"(?s){words}") as caught:
        call(world)
    raised_in = traceback.extract_tb(caught.tb)[-1].filename
    assert any(part in raised_in for part in OURS), f"from inside: {raised_in}"


COMMANDS: list[tuple[str, str]] = [
    ("tran", 'Did you mean "train"?'),
    ("predict {checkpoint}", "which images?"),
    ("predict {folder}/no.pth {data}/test", "no.pth"),
    ("predict {folder}/text.pth {data}/test", "text.pth cannot be read"),
    ("predict {folder}/empty.pth {data}/test", "empty.pth is empty"),
    ("predict {folder} {data}/test", "is a directory"),
    ("predict {checkpoint} {folder}/no.jpg", "no.jpg: no such image file or folder"),
    ("predict {checkpoint} {folder}/text.jpg", "text.jpg: cannot be decoded"),
    ("predict {checkpoint} {folder}/nothing", "no image files there"),
    ("predict {checkpoint} {folder}/*.bmp", "no image files there"),
    ("predict {checkpoint} http://127.0.0.1:{port}/a.jpg", "could not be downloaded"),
    (
        "predict {checkpoint} {data}/test --threshold=-1",
        "threshold is -1.0: expected a number from 0 to 1",
    ),
    ("predict {checkpoint} {data}/test --threshold=high", "high"),
    ("predict {checkpoint} {data}/test --batch-size=0", "batch_size is 0"),
    ("predict {checkpoint} {data}/test --device=gpu", "device 'gpu' cannot be used here"),
    ("predict {checkpoint} {data}/test --out={data}", "nothing is overwritten"),
    ("evaluate {checkpoint}", "requires an argument"),
    ("evaluate {folder}/no.pth {data}", "no.pth"),
    ("evaluate {checkpoint} {folder}/gone", "gone: no such folder"),
    ("evaluate {checkpoint} {data} --split=holdout", "no 'holdout' split"),
    ("evaluate {checkpoint} {data} --batch-size=0", "batch_size is 0"),
    (
        "evaluate {checkpoint} {data} --batch-size=99999999999999999999",
        "expected 1,000,000 or less",
    ),
    ("evaluate {checkpoint} {data} --dataset-file=voc", "voc"),
    ("train", "which folder"),
    ("train {folder}/gone --model=mini", "gone: no such folder"),
    ("train {folder}/nothing --model=mini", "no dataset found"),
    ("train {data} --model=minii", "did you mean 'mini'?"),
    ("train {data} --epoch=3", "Did you mean --epochs?"),
    ("train {data} --epochs=0", "epochs: Input should be greater than or equal to 1; found 0"),
    ("train {data} --model=mini --resolution=100", "resolution 100 is not a multiple"),
    ("train {data} --pretrain-weights={folder}/no.pth", "no.pth"),
    (
        "train {data} --model=mini --pretrain-weights=none --accelerator=abacus",
        "accelerator='abacus'",
    ),
    ("train {data} --model=mini --pretrain-weights=none --accelerator=tpu", "'accelerator': 'tpu'"),
    ("train {data} --config={folder}/gone.yaml", "gone.yaml"),
    ("train {data} --config={folder}", "cannot be read"),
    ("train {data} --config={folder}/list.yaml", "expected lines of `name: value`, found list"),
    ("train {data} --config={folder}/broken.yaml", "broken.yaml: cannot be read as YAML"),
    ("train {data} --config={folder}/code.yaml", "code.yaml: cannot be read as YAML"),
    ("train {data} --config={folder}/date.yaml", "date.yaml: cannot be read as YAML"),
    (
        "train {data} --config={folder}/typo.yaml",
        "typo.yaml: no setting 'epoch'; did you mean 'epochs'?",
    ),
    ("train {data} --config={folder}/model.yaml", "no model [1]"),
    ("train {data} --model=mini --pretrain-weights=none --resume={folder}/gone.ckpt", "gone.ckpt"),
    ("train {data} --model=mini --pretrain-weights=none --output-dir={checkpoint}", "small.pth"),
    ("info {folder}/no.pth", "no.pth"),
    ("info {folder}/text.pth", "text.pth cannot be read"),
    ("info {folder}/nothing", "no dataset found"),
]


@pytest.mark.parametrize(("command", "words"), COMMANDS)
def test_the_command_line_answers_in_one_line_with_code_2(
    world: World,
    command: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(world.folder)
    places = {
        "folder": world.folder,
        "data": world.data,
        "checkpoint": world.checkpoint,
        "port": world.port,
    }
    assert main(command.format(**places).split()) == 2
    out, err = capsys.readouterr()
    assert words in err and err.startswith("rfdetr: ") and err.count("\n") == 1 and not out
    assert not (world.folder / "attacked").exists() and not list(world.folder.glob("predictions*"))


def test_the_largest_image_is_taken_and_a_pixel_more_is_not() -> None:
    check_size(1, MAX_PIXELS)
    with pytest.raises(ImageError, match="expected 1 to 178,956,970 pixels"):
        check_size(1, MAX_PIXELS + 1)
