from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from rfdetr import config as configs
from rfdetr.config import (
    VARIANTS,
    RFDETRLargeConfig,
    RFDETRMediumConfig,
    RFDETRMiniConfig,
    RFDETRNanoConfig,
    variant_name,
)
from rfdetr.models.build import build_detector
from rfdetr.weights.identify import config_from_checkpoint
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import Checkpoint, CheckpointError, read_checkpoint
from rfdetr.weights.writing import checkpoint_args, save_checkpoint

PUBLISHED_VARIANTS = [cls.__name__ for name, cls in VARIANTS.items() if "mini" not in name]


def _expected(cls: str, path: Path) -> configs.ModelConfig:
    config: configs.ModelConfig = getattr(configs, cls)(pretrain_weights=str(path))
    return config


@pytest.mark.parametrize("cls", PUBLISHED_VARIANTS)
@pytest.mark.parametrize("args", ["namespace", "none"])
def test_every_published_layout_is_recognised(
    cls: str, args: str, layouts: dict[str, Any], weightless: Any, tmp_path: Path
) -> None:
    """From the arguments a published file has, among them many we do not know, and from tensors
    alone.
    """
    content = {"model": weightless(layouts[cls])}
    if args == "namespace":
        content["args"] = argparse.Namespace(
            **layouts[cls]["config"], device="cuda:3", lr=1e-4, eval=True
        )
    path = tmp_path / "a.pth"
    torch.save(content, path)
    config, names = config_from_checkpoint(read_checkpoint(path))
    assert type(config).__name__ == cls
    assert config == _expected(cls, path)
    assert names is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_restored_from_our_own_file(variant: str) -> None:
    """Values other than the variant's, through the `args` we write, for networks that take no
    memory.
    """
    cls = VARIANTS[variant]
    usual = cls()
    step = usual.patch_size * usual.num_windows
    config = cls(
        num_classes=2,
        num_queries=50,
        num_select=20,
        group_detr=3,
        resolution=usual.resolution + step,
        pretrain_weights="x.pth",
    )
    with torch.device("meta"):
        state = to_published(build_detector(config).state_dict())
    checkpoint = Checkpoint(Path("x.pth"), state, checkpoint_args(config, ["cat", "dog"]))
    restored, names = config_from_checkpoint(checkpoint)
    assert variant_name(restored) == variant
    assert restored == config
    assert names == ["cat", "dog"]


def test_a_design_of_ones_own_is_restored_too() -> None:
    config = configs.ModelConfig(
        patch_size=8, num_windows=4, resolution=96, dec_layers=1, pretrain_weights="x.pth"
    )
    with torch.device("meta"):
        state = to_published(build_detector(config).state_dict())
    assert config_from_checkpoint(
        Checkpoint(Path("x.pth"), state, checkpoint_args(config, None))
    ) == (config, None)
    with pytest.raises(
        CheckpointError, match=r"x\.pth is none of the variants .* do not tell out_feature_indexes"
    ):
        config_from_checkpoint(Checkpoint(Path("x.pth"), state, {}))


def test_the_published_packages_name_of_a_class_is_believed(
    layouts: dict[str, Any], weightless: Any
) -> None:
    """Where the grid alone would tell another variant of that structure."""
    state = weightless(layouts["RFDETRMediumConfig"])
    config, _ = config_from_checkpoint(
        Checkpoint(Path("a"), state, {"resolution": 704}, {"model_name": "RFDETRLarge"})
    )
    assert config == RFDETRLargeConfig(
        resolution=704, positional_encoding_size=36, pretrain_weights="a"
    )


@pytest.mark.parametrize("said", [{"num_windows": 0}, {"num_windows": "2"}, {"resolution": [384]}])
def test_arguments_that_cannot_be_are_one_clear_error(
    said: dict[str, Any], layouts: dict[str, Any], weightless: Any
) -> None:
    state = weightless(layouts["RFDETRNanoConfig"])
    with pytest.raises(CheckpointError, match=rf"a\.pth: .*{next(iter(said))}"):
        config_from_checkpoint(Checkpoint(Path("a.pth"), state, said))


def test_how_to_run_is_not_taken_from_a_file(layouts: dict[str, Any], weightless: Any) -> None:
    args = {
        "device": "cuda:7",
        "amp": False,
        "gradient_checkpointing": True,
        "pretrain_weights": "/their/file",
    }
    config, _ = config_from_checkpoint(
        Checkpoint(Path("a"), weightless(layouts["RFDETRNanoConfig"]), args)
    )
    assert config == RFDETRNanoConfig(pretrain_weights="a")


def test_tensors_win_over_arguments(layouts: dict[str, Any], weightless: Any) -> None:
    args = {"num_classes": 3, "num_queries": 7, "hidden_dim": 64, "positional_encoding_size": 99}
    config, _ = config_from_checkpoint(
        Checkpoint(Path("a"), weightless(layouts["RFDETRNanoConfig"]), args)
    )
    assert config == RFDETRNanoConfig(pretrain_weights="a")


def test_resolution_of_a_foreign_file_is_kept(layouts: dict[str, Any], weightless: Any) -> None:
    """One that was fine-tuned at another resolution, on the position grid it started from."""
    state = weightless(layouts["RFDETRMediumConfig"])
    config, _ = config_from_checkpoint(Checkpoint(Path("a"), state, {"resolution": 640}))
    assert config == RFDETRMediumConfig(
        resolution=640, positional_encoding_size=36, pretrain_weights="a"
    )


def test_resolution_follows_from_another_grid_where_nothing_is_said() -> None:
    with torch.device("meta"):
        state = to_published(build_detector(RFDETRNanoConfig(resolution=448)).state_dict())
    config, _ = config_from_checkpoint(Checkpoint(Path("a"), state, {}))
    assert config == RFDETRNanoConfig(resolution=448, pretrain_weights="a")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ({0: "a", 1: "b"}, ["a", "b"]),
        ({"10": "b", "9": "a"}, ["a", "b"]),
        (["a", "b", "c"], None),
        ({"a": "b", "c": "d"}, None),
        (None, None),
        ("ab", None),
        (2, None),
    ],
)
def test_class_names_are_a_list_or_a_map_of_the_right_length(
    stored: Any, expected: list[str] | None
) -> None:
    with torch.device("meta"):
        state = to_published(build_detector(RFDETRMiniConfig(num_classes=2)).state_dict())
    _, names = config_from_checkpoint(Checkpoint(Path("a"), state, {"class_names": stored}))
    assert names == expected


def test_impossible_arguments_name_the_file(layouts: dict[str, Any], weightless: Any) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pth.*resolution 100 is not a multiple"):
        state = weightless(layouts["RFDETRNanoConfig"])
        config_from_checkpoint(Checkpoint(Path("a.pth"), state, {"resolution": 100}))


def test_another_kind_of_network_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"a\.pth holds no RF-DETR detector"):
        config_from_checkpoint(Checkpoint(Path("a.pth"), {"backbone.0.conv": torch.zeros(3)}, {}))


def test_an_unknown_encoder_is_refused(tiny: Any, tmp_path: Path) -> None:
    save_checkpoint(
        tmp_path / "a.pth", tiny.detector(tiny.config()).state_dict(), tiny.config(), None
    )
    with pytest.raises(CheckpointError, match="encoder of width 24 and 2 blocks"):
        config_from_checkpoint(read_checkpoint(tmp_path / "a.pth"))
