"""The folder for transformers; tests/interop shows that they find the same objects in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import TINY

from rfdetr import RFDETR, RFDETRMini, RFDETRSegMini
from rfdetr.cli import main
from rfdetr.config import ModelConfig, RFDETRNanoConfig, RFDETRSegNanoConfig
from rfdetr.errors import InputError, RunError
from rfdetr.export.hf import NO_CLASS, hf_tensors
from rfdetr.models.build import build_detector
from rfdetr.weights.writing import save_checkpoint

FILES = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
NAMES = ["blue", "green", "red"]
SMALL = {**TINY, "num_classes": 3}

# SHA-256 of the lines "name shape" of the state dict in transformers 5.24.0, in order of name.
LAYOUTS = [
    (RFDETRNanoConfig, "bc0c19b409fdb20205cc419527d266f73dd5e9a030608facbc75c623cc8fdc4a"),
    (RFDETRSegNanoConfig, "86f520c474a5d254775e96f336b4f9d48f996e2017c0e6660524d1b295572169"),
]


def a_model(**settings: Any) -> RFDETR:
    return RFDETRMini(**{**SMALL, **settings}, class_names=NAMES)


@pytest.mark.parametrize(("variant", "digest"), LAYOUTS)
def test_names_and_shapes_are_those_of_transformers(
    variant: type[ModelConfig], digest: str
) -> None:
    config = variant(pretrain_weights=None, num_classes=3)
    with torch.device("meta"):
        state = build_detector(config).state_dict()
    tensors = hf_tensors({name: torch.empty(x.shape) for name, x in state.items()}, config)
    lines = sorted(f"{name} {tuple(x.shape)}\n" for name, x in tensors.items())
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == digest


def test_the_folder_holds_what_transformers_looks_for(tmp_path: Path) -> None:
    model = a_model()
    folder = model.export(tmp_path / "hf", format="hf", notes="of the harbour")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    config = json.loads((folder / "config.json").read_bytes())
    assert (config["model_type"], config["architectures"]) == (
        "rf_detr",
        ["RfDetrForObjectDetection"],
    )
    assert config["id2label"] == {"0": "blue", "1": "green", "2": "red", "3": NO_CLASS}
    assert (config["num_queries"], config["d_model"], config["decoder_ffn_dim"]) == (10, 32, 64)
    processor = json.loads((folder / "preprocessor_config.json").read_bytes())
    assert (processor["size"], processor["resample"]) == ({"height": 64, "width": 64}, 2)
    assert (processor["image_mean"], processor["image_std"]) == (model.means, model.stds)
    card = (folder / "README.md").read_text()
    assert all(text in card for text in ("64 x 64", "blue, green, red", "of the harbour"))
    assert "Figures" not in card


def test_positions_are_written_for_the_resolution(tmp_path: Path) -> None:
    model = a_model(resolution=96, positional_encoding_size=4)
    name = "model.backbone.backbone.embeddings.position_embeddings"
    folder = model.export(tmp_path, format="hf")
    written = load_file(folder / "model.safetensors")[name]
    stored: torch.Tensor = model.model.model.encoder.position_embeddings
    assert (stored.shape[1], written.shape[1]) == (1 + 4 * 4, 1 + 6 * 6)
    assert torch.equal(written[:, 0], stored[:, 0])
    assert json.loads((folder / "config.json").read_bytes())["backbone_config"]["image_size"] == 96


def test_masks_have_their_own_class_and_processor(tmp_path: Path) -> None:
    model = RFDETRSegMini(**SMALL)
    folder = model.export(tmp_path, format="hf")
    config = json.loads((folder / "config.json").read_bytes())
    assert config["architectures"] == ["RfDetrForInstanceSegmentation"]
    processor = json.loads((folder / "preprocessor_config.json").read_bytes())
    assert processor["image_processor_type"] == "RfDetrImageProcessor"
    assert "image-segmentation" in (folder / "README.md").read_text()


def saved(path: Path, weights: str) -> Path:
    """A checkpoint, and the results.json of its run, which are of the file `weights`."""
    config = RFDETRMini.config_class(**SMALL)
    save_checkpoint(path, build_detector(config).state_dict(), config, NAMES)
    figures = {"mAP_50_95": 0.5, "mAP_50": 0.75, "F1": None}
    splits = {"test": {"images": 7, "overall": figures}}
    path.with_name("results.json").write_text(json.dumps({"weights": weights, "splits": splits}))
    return path


def test_the_card_has_the_figures_of_these_weights_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "best.pth", "best.pth")
    row = "| test | 7 | boxes | 0.500 | 0.750 | - |"
    for number, (settings, has_figures) in enumerate([({}, True), ({"num_classes": 5}, False)]):
        folder = RFDETR.from_checkpoint(path, **settings).export(
            tmp_path / f"{number}", format="hf"
        )
        assert (row in (folder / "README.md").read_text()) is has_figures
    saved(path, "another.pth")
    folder = RFDETR.from_checkpoint(path).export(tmp_path / "other", format="hf")
    assert row not in (folder / "README.md").read_text()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for place, told in (
        (tmp_path, r"no empty folder; .* choose another for output_dir"),
        (tmp_path / "mine.txt", r"output_dir is .*mine\.txt is no folder; choose another"),
    ):
        with pytest.raises(InputError, match=told):
            a_model().export(place, format="hf")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_published_keywords_are_absorbed_told_or_refused(tmp_path: Path) -> None:
    model = a_model()
    model.export(tmp_path / "a", format="hf", opset_version=17, verbose=True, patch_size=16)
    with pytest.warns(UserWarning, match=r"opset_version=19 \(it is of ONNX\)"):
        model.export(tmp_path / "b", format="hf", opset_version=19)
    for settings, message in (
        ({"shape": (96, 96)}, "load the model with another resolution="),
        ({"patch_size": 14}, "this model's is 16"),
        ({"opset_versio": 17}, "no field 'opset_versio'; did you mean 'opset_version'"),
    ):
        with pytest.raises(InputError, match=message):
            model.export(tmp_path / "c", format="hf", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_queries": 17, "num_select": 10}, "num_queries 17 and at resolution 64 16 patches"),
        ({"projector_scale": ["P3", "P5"]}, "one feature level"),
        ({"encoder": "dinov2_registers_windowed_small"}, "without registers"),
    ],
)
def test_what_transformers_cannot_be_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        a_model(**settings).export(tmp_path, format="hf")
    assert not [*tmp_path.iterdir()]


def test_a_converted_network_is_refused(tmp_path: Path) -> None:
    model = a_model()
    model.inference(compile=False, dtype="bfloat16", inplace=True)
    with pytest.raises(RunError, match="load the model"):
        model.export(tmp_path, format="hf")


def test_the_command_line_exports_beside_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "best.pth", "best.pth")
    assert main(["export", str(path), "--format", "hf"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'best-hf'}\n"
    assert sorted(one.name for one in (tmp_path / "best-hf").iterdir()) == FILES
    line = ["export", str(path), "--format", "hf", "--resolution", "160"]
    assert main([*line, "--out", str(tmp_path / "wide")]) == 0
    sizes = json.loads((tmp_path / "wide" / "preprocessor_config.json").read_text())["size"]
    assert sizes == {"height": 160, "width": 160}
