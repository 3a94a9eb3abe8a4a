"""No file that a path leads to can run code: a pickle or YAML that would make a folder makes none,
and is refused.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rfdetr import RFDETR, RFDETRMini
from rfdetr.cli import main
from rfdetr.config import RFDETRMiniConfig, TrainConfig
from rfdetr.data.findings import DatasetError
from rfdetr.data.layout import find_splits
from rfdetr.training import RFDETRDataModule, RFDETRModule, build_trainer, convert_legacy_checkpoint
from rfdetr.weights.reading import CheckpointError

MODEL = RFDETRMiniConfig(pretrain_weights=None, resolution=64, num_classes=3, num_select=20)
CONTENT = {"model": {"class_embed.weight": torch.zeros(2, 2)}, "state_dict": {}, "args": {}}


class Attack:
    """Pickles to a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def _plain_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def _legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _fit(path: Path, data: Path) -> None:
    run = TrainConfig(dataset_dir=data, output_dir=path.parent / "out", epochs=1, num_workers=0)
    trainer = build_trainer(run, MODEL, accelerator="cpu", precision="32-true")
    trainer.fit(RFDETRModule(MODEL, run), RFDETRDataModule(MODEL, run), ckpt_path=str(path))


def _train(path: Path, data: Path) -> None:
    settings = {"resolution": 64, "num_select": 20, "pretrain_weights": None, "num_classes": 3}
    RFDETRMini(**settings).train(
        dataset_dir=data, output_dir=path.parent / "out", resume=str(path), num_workers=0
    )


PLACES: dict[str, Callable[[Path, Path], object]] = {
    "pretrain_weights": lambda path, data: RFDETRMini(pretrain_weights=path),
    "from_checkpoint": lambda path, data: RFDETR.from_checkpoint(path),
    "module": lambda path, data: RFDETRModule(
        RFDETRMiniConfig(pretrain_weights=path), TrainConfig(dataset_dir=data)
    ),
    "resume": _train,
    "ckpt_path": _fit,
    "convert_legacy_checkpoint": lambda path, data: convert_legacy_checkpoint(
        path, path.with_name("new.ckpt")
    ),
}


FILES = [
    ("evil.pth", torch.save),
    ("evil.pth", _legacy),
    ("evil.ckpt", torch.save),
    ("evil.ckpt", _plain_pickle),
    ("evil.safetensors", _plain_pickle),
]


@pytest.mark.parametrize(
    ("name", "save"), FILES, ids=["pth", "old-pth", "ckpt", "pickle", "safetensors"]
)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_pickle_is_run_wherever_a_path_is_taken(
    place: str, name: str, save: Callable[[Any, Path], None], shared_tiny_coco: Path, tmp_path: Path
) -> None:
    target = tmp_path / "attacked"
    save({**CONTENT, "epoch": Attack(target)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"evil.*(could run code|cannot be read)") as caught:
        PLACES[place](tmp_path / name, shared_tiny_coco)
    assert not target.exists() and "\n" not in str(caught.value)


def test_the_attack_works_where_code_is_allowed(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Attack(tmp_path / "attacked")))
    assert (tmp_path / "attacked").exists()


def test_load_from_checkpoint_runs_none_either(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "epoch": Attack(tmp_path / "attacked")}, tmp_path / "evil.ckpt")
    run = TrainConfig(dataset_dir=tmp_path)
    with pytest.raises(CheckpointError, match="objects that could run code"):
        RFDETRModule.load_from_checkpoint(
            tmp_path / "evil.ckpt", model_config=MODEL, train_config=run
        )
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "verb", ["info {file}", "predict {file} {data}/test", "evaluate {file} {data}"]
)
def test_the_command_line_runs_none(
    verb: str, shared_tiny_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**CONTENT, "epoch": Attack(tmp_path / "attacked")}, tmp_path / "evil.pth")
    assert main(verb.format(file=tmp_path / "evil.pth", data=shared_tiny_coco).split()) == 2
    err = capsys.readouterr().err
    assert "could run code" in err and err.count("\n") == 1 and not (tmp_path / "attacked").exists()


YAML_ATTACKS = [
    "!!python/object/apply:os.mkdir [{0}]",
    "!!python/object/new:os.mkdir [{0}]",
    "!!python/name:os.mkdir {0}",
]


@pytest.mark.parametrize("attack", YAML_ATTACKS)
def test_no_yaml_runs_code(
    attack: str, tiny_yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "attacked"
    (tmp_path / "run.yaml").write_text(f"epochs: {attack.format(target)}\n")
    assert main(["train", str(tiny_yolo), f"--config={tmp_path / 'run.yaml'}"]) == 2
    assert "run.yaml: cannot be read as YAML" in capsys.readouterr().err
    (tiny_yolo / "data.yaml").write_text(f"names: {attack.format(target)}\ntrain: train/images\n")
    with contextlib.suppress(DatasetError):  # tags mean nothing there: what follows is text
        find_splits(tiny_yolo)
    assert not target.exists()


def test_nested_yaml_aliases_fill_no_memory(
    tiny_yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = [
        "a0: &a0 [x, x]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)),
    ]
    for last in ("names: *a11", "train: *a11", "path: *a11"):
        (tiny_yolo / "data.yaml").write_text("\n".join([*layers, last]))
        with pytest.raises(DatasetError, match=r"data\.yaml.*expected"):
            find_splits(tiny_yolo)
    nested = "&a0 [x, x]"
    for n in range(1, 12):
        nested = f"&a{n} [{nested}, {', '.join([f'*a{n - 1}'] * 8)}]"
    for name in ("epochs", "resolution", "model", "unknown"):
        (tmp_path / "run.yaml").write_text(f"{name}: {nested}\n")
        assert main(["train", str(tiny_yolo), f"--config={tmp_path / 'run.yaml'}"]) == 2
        assert len(capsys.readouterr().err) < 1000
