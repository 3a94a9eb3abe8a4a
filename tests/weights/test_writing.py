from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rfdetr.config import RFDETRMiniConfig
from rfdetr.weights.names import to_published
from rfdetr.weights.writing import save_checkpoint, save_safetensors


def test_checkpoint_is_read_by_plain_torch_with_published_names(tmp_path: Path, tiny: Any) -> None:
    config = tiny.config()
    state = tiny.detector(config).state_dict()
    save_checkpoint(tmp_path / "a.pth", state, config, ["a", "b", "c", "d"], extra={"epoch": 3})
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert content["epoch"] == 3
    assert content["model"].keys() == to_published(state).keys()
    args = argparse.Namespace(**content["args"])  # the other shape readers of published files know
    assert (args.class_names, args.num_classes, args.resolution) == (["a", "b", "c", "d"], 4, 64)
    assert (args.resize, args.variant, args.positional_encoding_size) == (
        "bilinear-antialias-square",
        None,
        4,
    )


def test_another_lightning_trainer_finds_the_same_tensors_once(tmp_path: Path, tiny: Any) -> None:
    config = tiny.config()
    state = tiny.detector(config).state_dict()
    save_checkpoint(tmp_path / "a.pth", state, config, None)
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    for name, tensor in content["model"].items():
        assert content["state_dict"][f"model.{name}"].data_ptr() == tensor.data_ptr()
    assert content["optimizer_states"] == content["lr_schedulers"] == []
    weights = sum(tensor.nbytes for tensor in content["model"].values())
    assert (tmp_path / "a.pth").stat().st_size < 1.5 * weights


def test_checkpoint_names_the_variant(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", {}, RFDETRMiniConfig(), None)
    args = torch.load(tmp_path / "a.pth", weights_only=True)["args"]
    assert (args["variant"], args["class_names"]) == ("mini", None)


def test_views_are_written_alone_not_with_what_they_look_into(tmp_path: Path, tiny: Any) -> None:
    buffer = torch.zeros(1 << 20)
    save_checkpoint(tmp_path / "a.pth", {"encoder.norm.weight": buffer[:24]}, tiny.config(), None)
    assert (tmp_path / "a.pth").stat().st_size < 50_000


def test_safetensors_carry_dtype_arguments_and_notes(tmp_path: Path, tiny: Any) -> None:
    config = tiny.config()
    state = tiny.detector(config).state_dict()
    save_safetensors(
        tmp_path / "a.safetensors", state, config, None, dtype=torch.bfloat16, notes={"steps": 10}
    )
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["notes"]) == {"steps": 10}
        assert json.loads(file.metadata()["args"])["num_queries"] == 6
        torch.testing.assert_close(
            file.get_tensor("query_feat.weight"), state["query_content"].bfloat16()
        )
