from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from safetensors import safe_open

from rfdetr.config import RFDETRMiniConfig
from rfdetr.files import atomic_write
from rfdetr.weights.names import to_published
from rfdetr.weights.writing import save_checkpoint, save_safetensors


def _fail_half_way(stream: BinaryIO) -> None:
    stream.write(b"half")
    raise KeyboardInterrupt


def test_atomic_write_replaces_content_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    atomic_write(path, lambda stream: stream.write(b"one"))
    atomic_write(path, lambda stream: stream.write(b"two"))
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]


def test_interrupted_write_leaves_the_last_good_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"good")
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, _fail_half_way)
    assert path.read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_a_link_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    target, link = tmp_path / "theirs", tmp_path / "ours"
    target.write_bytes(b"theirs")
    link.symlink_to(target)
    atomic_write(link, lambda stream: stream.write(b"ours"))
    assert target.read_bytes() == b"theirs"
    assert link.read_bytes() == b"ours"
    assert not link.is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_written_files_have_the_users_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    atomic_write(tmp_path / "atomic", lambda stream: stream.write(b""))
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_in_the_way_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        atomic_write(tmp_path / "taken", lambda stream: stream.write(b""))
    assert os.listdir(tmp_path) == ["taken"]


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
