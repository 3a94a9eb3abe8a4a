from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import types
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rfdetr.weights.names import to_published
from rfdetr.weights.reading import CheckpointError, read_checkpoint
from rfdetr.weights.writing import save_checkpoint, save_safetensors

MODEL = {"backbone.0.x": torch.arange(3.0), "class_embed.weight": torch.ones(2, 2)}


class _Attack:
    """Pickles to a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def _write(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def _same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_published_file_with_a_namespace(tmp_path: Path, zipped: bool) -> None:
    args = argparse.Namespace(
        resolution=np.int64(384),
        lr=np.float32(0.5),
        amp=np.bool_(True),
        output_dir=PosixPath("/data") if os.name == "posix" else PurePosixPath("/data"),
        class_names=("a", "b"),
        nested=types.SimpleNamespace(x=1),
    )
    content = {"model": {**MODEL, "_kp_active_mask": torch.zeros(0, 0)}, "args": args, "epoch": 7}
    checkpoint = read_checkpoint(
        _write(tmp_path / "a.pth", content, _use_new_zipfile_serialization=zipped)
    )
    _same(checkpoint.model, MODEL)
    assert checkpoint.args == {
        "resolution": 384,
        "lr": 0.5,
        "amp": True,
        "output_dir": "/data",
        "class_names": ["a", "b"],
        "nested": {"x": 1},
    }
    assert type(checkpoint.args["resolution"]) is int
    assert checkpoint.extra == {"epoch": 7}


def test_names_of_types_from_other_systems_and_versions_are_known(tmp_path: Path) -> None:
    """A path of Windows or of Python 3.13, and a scalar of NumPy 1, as a pickle spells them."""
    content = {"model": MODEL, "args": {"path": PurePosixPath("a"), "number": np.float64(2)}}
    for old, new in (
        (b"pathlib\nPurePosixPath", b"pathlib\nWindowsPath"),
        (b"pathlib\nPurePosixPath", b"pathlib._local\nPosixPath"),
        (b"numpy._core.multiarray\nscalar", b"numpy.core.multiarray\nscalar"),
    ):
        plain = _write(
            tmp_path / "a.pth", content, _use_new_zipfile_serialization=False
        ).read_bytes()
        (tmp_path / "b.pth").write_bytes(plain.replace(old, new))
        assert read_checkpoint(tmp_path / "b.pth").args == {"path": "a", "number": 2.0}


def test_a_file_without_args_has_none(tmp_path: Path) -> None:
    assert read_checkpoint(_write(tmp_path / "a.pt", {"model": MODEL})).args == {}


def test_a_lightning_file_of_published_names(tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in MODEL.items()}
    checkpoint = read_checkpoint(
        _write(tmp_path / "a.ckpt", {"state_dict": state, "args": {"x": 1}, "epoch": 1})
    )
    _same(checkpoint.model, MODEL)
    assert (checkpoint.args, checkpoint.extra) == ({"x": 1}, {"epoch": 1})


def test_a_lightning_file_of_our_names_compiled(tmp_path: Path, tiny: Any) -> None:
    state = tiny.detector(tiny.config()).state_dict()
    wrapped = {f"model._orig_mod.{name}": tensor for name, tensor in state.items()}
    checkpoint = read_checkpoint(_write(tmp_path / "a.ckpt", {"state_dict": wrapped}))
    expected = to_published(state)
    expected.pop("_kp_active_mask")
    _same(checkpoint.model, expected)


def test_a_file_whose_name_is_not_utf8(tmp_path: Path) -> None:
    with (path := tmp_path / os.fsdecode(b"caf\xe9.pth")).open("wb") as stream:
        torch.save({"model": MODEL}, stream)
    _same(read_checkpoint(path).model, MODEL)


def test_a_safetensors_file_of_ours(tmp_path: Path, tiny: Any) -> None:
    config = tiny.config()
    state = tiny.detector(config).state_dict()
    save_safetensors(tmp_path / "a.safetensors", state, config, list("abcd"), notes={"seed": 1})
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.args["class_names"] == list("abcd")
    assert json.loads(checkpoint.extra["notes"]) == {"seed": 1}
    torch.testing.assert_close(
        checkpoint.model["query_feat.weight"], state["query_content"], rtol=0, atol=0
    )


def test_a_safetensors_file_of_somebody_else(tmp_path: Path) -> None:
    save_file(MODEL, tmp_path / "a.safetensors")
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    _same(checkpoint.model, MODEL)
    assert checkpoint.args == {}


def test_tensors_stay_on_the_disk_until_used(tmp_path: Path, tiny: Any) -> None:
    save_checkpoint(
        tmp_path / "a.pth", tiny.detector(tiny.config()).state_dict(), tiny.config(), None
    )
    model = read_checkpoint(tmp_path / "a.pth").model
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("needs Linux's list of mapped files")
    assert str(tmp_path / "a.pth") in mapped.read_text()
    assert model


@pytest.mark.parametrize("place", ["model", "args", "elsewhere"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_not_run(tmp_path: Path, place: str, zipped: bool) -> None:
    target = tmp_path / "attacked"
    content: dict[str, Any] = {"model": dict(MODEL), "args": argparse.Namespace(x=1)}
    content[place] = {"x": _Attack(target)}
    path = _write(tmp_path / "a.pth", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"a\.pth") as caught:
        read_checkpoint(path)
    assert not target.exists()
    assert "mkdir" in str(caught.value)
    pickle.loads(pickle.dumps(_Attack(target)))  # the attack works where code is allowed
    assert target.exists()


def test_a_refused_file_names_the_types_and_the_way_out(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.pth", {"model": MODEL, "args": random.Random(0)})
    with pytest.raises(
        CheckpointError, match=r"could run code.*random\.Random.*weights_only=False"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, world\n" * 20, "cannot be read"),
        (b"PK\x03\x04" + b"\0" * 300, "cannot be read"),
    ],
    ids=["empty", "text", "no archive"],
)
def test_a_file_of_another_kind_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} {message}"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, name: str, share: float) -> None:
    content = {"x.weight": torch.zeros(10_000)}
    save_file(content, tmp_path / name) if "safe" in name else _write(
        tmp_path / name, {"model": content}
    )
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damage_never_gives_another_error(tmp_path: Path, zipped: bool) -> None:
    path = _write(tmp_path / "a.pth", {"model": MODEL}, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            assert "a.pth" in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": MODEL, "epoch": 1}, "no tensors under 'model' .* it has: epoch, weights"),
        ({"model": [1, 2]}, "no tensors under 'model'"),
        ({"model": {}}, "holds no tensors"),
        ({"model": {"a": 1}}, "'a' among the model's tensors is no named tensor"),
        (torch.zeros(3), "holds a Tensor; expected a dict"),
    ],
)
def test_a_file_of_other_content_says_what_it_has(
    tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(_write(tmp_path / "a.pth", content))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        read_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match="is a directory"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.ckpt"])
def test_weights_that_are_not_finite_are_refused_by_name(
    bad: float, name: str, tmp_path: Path
) -> None:
    broken = {
        **MODEL,
        "backbone.0.y": torch.tensor([1.0, bad]),
        "backbone.0.z": torch.tensor([bad]).bfloat16(),
    }
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(broken, path)
    else:
        _write(path, {"model" if path.suffix == ".pth" else "state_dict": broken})
    with pytest.raises(
        CheckpointError,
        match=rf"{name} holds NaN or infinity in 2 of 4 tensors: backbone\.0\.y, .*z;",
    ):
        read_checkpoint(path)
