"""Real runs small enough for a test: the tiny network on pictures of coloured rectangles."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
from tests.tiny import TINY

from rfdetr.config import ModelConfig, RFDETRMiniConfig, TrainConfig
from rfdetr.training import RFDETRDataModule, RFDETRModule, build_trainer
from rfdetr.training.callbacks import DataViewsCallback


class Run(NamedTuple):
    module: RFDETRModule
    datamodule: RFDETRDataModule
    trainer: pl.Trainer
    output: Path

    def fit(self, **kwargs: Any) -> Run:
        self.trainer.fit(self.module, self.datamodule, **kwargs)
        return self


class Watch(pl.Callback):
    """Calls `look(trainer, module)` in a hook of the run."""

    def __init__(self, hook: str, look: Callable[[pl.Trainer, RFDETRModule], object]) -> None:
        setattr(self, hook, lambda trainer, module, *_: look(trainer, module))


class Ranks:
    """`ranks(count, script, arguments, folder)` runs a script in `count` processes, which find what
    torchrun tells its own; all that they print is in `stdout` of what it gives.
    """

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "scripts" / "ranks.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def __call__(
        self, count: int, script: Path, arguments: dict[str, Any], folder: Path
    ) -> subprocess.CompletedProcess[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none",
        }  # fmt: skip
        ranks = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(count)]
        if count == 1:
            ranks = [{}]  # no torchrun
        self.output.write_text("")
        line = {
            "command": [str(script), json.dumps(arguments)],
            "folder": str(folder),
            "output": str(self.output),
            "ranks": [{name: str(value) for name, value in rank.items()} for rank in ranks],
        }
        assert self.process.stdin and self.process.stdout
        print(json.dumps(line), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        told = self.output.read_text()
        return subprocess.CompletedProcess(line["command"], code, told, told)


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    started = Ranks(tmp_path_factory.mktemp("ranks"))
    yield started
    os.killpg(started.process.pid, signal.SIGKILL)
    started.process.communicate()


@pytest.fixture
def with_repetition() -> None:
    """A test that names this repeats the six training images to five updates an epoch, as every
    other run does.
    """


@pytest.fixture(autouse=True)
def _without_repetition(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_repetition" not in request.fixturenames:
        monkeypatch.setattr(RFDETRDataModule, "least_updates", 1)


@pytest.fixture(autouse=True)
def _without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_plots" not in request.fixturenames:
        monkeypatch.setattr(DataViewsCallback, "on_train_start", lambda *_: None)


@pytest.fixture
def tiny_model() -> Callable[..., ModelConfig]:
    return lambda **changes: RFDETRMiniConfig(**{**TINY, "num_classes": 3, **changes})


@pytest.fixture
def train_config(make_tiny_coco: Callable[..., Path], tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration for six training images, shared by all runs of a test; `output` names the
    output folder.
    """
    dataset = make_tiny_coco()

    def configure(output: str = "output", **changes: Any) -> TrainConfig:
        defaults = {
            "dataset_dir": dataset, "output_dir": tmp_path / output, "epochs": 2, "batch_size": 2,
            "grad_accum_steps": 2, "num_workers": 0, "seed": 7, "lr": 1e-3, "multi_scale": False,
        }  # fmt: skip
        return TrainConfig(**{**defaults, **changes})

    return configure


@pytest.fixture
def make_run(
    tiny_model: Callable[..., ModelConfig], train_config: Callable[..., TrainConfig]
) -> Callable[..., Run]:
    """`make_run(trainer={...}, model={...}, watch={hook: look}, **train_config)`; nothing has run
    yet.
    """

    def make(
        trainer: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        watch: dict[str, Callable[..., object]] | None = None,
        **train: Any,
    ) -> Run:
        model_config, config = tiny_model(**(model or {})), train_config(**train)
        built = build_trainer(config, model_config, **(trainer or {}))
        built.callbacks[:0] = [Watch(hook, look) for hook, look in (watch or {}).items()]
        parts = RFDETRModule(model_config, config), RFDETRDataModule(model_config, config)
        return Run(*parts, built, config.output_dir)

    return make


@pytest.fixture
def add_outlines(
    edit_coco: Callable[..., None], train_config: Callable[..., Any]
) -> Callable[[], None]:
    """Gives each box of the tiny dataset its outline."""

    def outline(content: dict[str, Any]) -> None:
        for record in content["annotations"]:
            x, y, w, h = record["bbox"]
            record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]

    def add() -> None:
        for split in ("train", "valid"):
            edit_coco(train_config().dataset_dir / split / "_annotations.coco.json", outline)

    return add
