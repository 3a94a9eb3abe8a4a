from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rfdetr.config import RFDETRMiniConfig, RFDETRNanoConfig
from rfdetr.models.build import build_detector
from rfdetr.weights import load as pretrained
from rfdetr.weights.download import DownloadError
from rfdetr.weights.load import load_pretrained, resolve_weights
from rfdetr.weights.writing import save_checkpoint, save_safetensors


def test_a_path_is_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").touch()
    assert resolve_weights(str(tmp_path / "mine.pth")) == tmp_path / "mine.pth"


def test_a_file_of_ones_own_may_bear_a_published_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rf-detr-nano.pth").touch()
    assert resolve_weights("./rf-detr-nano.pth").samefile(tmp_path / "rf-detr-nano.pth")


def test_a_published_name_is_looked_for_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RFDETR_HOME", str(tmp_path))
    monkeypatch.setenv("RFDETR_WEIGHTS_URL", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"rf-detr-nano\.pth.*To place it by hand"):
        resolve_weights("rf-detr-nano.pth")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match=r"did you mean 'rf-detr-nano\.pth'"):
        resolve_weights("rf-detr-nan.pth")
    with pytest.raises(FileNotFoundError, match=r"known by name: .*rf-detr-base\.pth"):
        resolve_weights("whatever")


def test_a_missing_bundled_file_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "BUNDLED", frozenset({"rf-detr-none.safetensors"}))
    with pytest.raises(FileNotFoundError, match="lacks its bundled weights"):
        resolve_weights("rf-detr-none.safetensors")


def test_none_leaves_random_weights() -> None:
    config = RFDETRMiniConfig(pretrain_weights=None)
    assert load_pretrained(build_detector(config), config) is None


def test_loading_is_told_in_a_line_for_each_fate_of_tensors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = RFDETRMiniConfig(num_classes=2)
    path = tmp_path / "mine.safetensors"
    save_safetensors(
        path, build_detector(source).state_dict(), source, ["cat", "dog"], dtype=torch.float16
    )
    config = RFDETRMiniConfig(num_classes=5, pretrain_weights=str(path))
    with caplog.at_level(logging.INFO, logger="rfdetr"):
        report = load_pretrained(build_detector(config), config)
    assert report is not None and report.class_names == ["cat", "dog"]
    assert [record.getMessage().split(" tensors")[0] for record in caplog.records] == [
        f"mine.safetensors: loaded {len(report.loaded)}",
        f"mine.safetensors: adapted {2 + 2 * config.group_detr}",
    ]


@pytest.mark.scheduled
def test_a_full_size_model_goes_through_a_file_in_a_fresh_process(tmp_path: Path) -> None:
    """Written here, restored there with no argument but the path, and equal to the last bit."""
    config = RFDETRNanoConfig(num_classes=3, resolution=416)
    detector = build_detector(config).eval()
    path = tmp_path / "nano.pth"
    save_checkpoint(path, detector.state_dict(), config, ["a", "b", "c"])
    code = (
        "import sys, torch\n"
        "from rfdetr.models.build import build_detector\n"
        "from rfdetr.weights.identify import config_from_checkpoint\n"
        "from rfdetr.weights.load import load_pretrained\n"
        "from rfdetr.weights.reading import read_checkpoint\n"
        "config, names = config_from_checkpoint(read_checkpoint(sys.argv[1]))\n"
        "detector = build_detector(config).eval()\n"
        "load_pretrained(detector, config)\n"
        "image = torch.linspace(-2, 2, 3 * 416 * 416).reshape(1, 3, 416, 416)\n"
        "with torch.no_grad(): output = detector(image)\n"
        "found = (type(config).__name__, config.resolution, names, output.boxes, output.logits)\n"
        "torch.save(found, sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "result")], check=True, timeout=120
    )
    name, resolution, names, boxes, logits = torch.load(tmp_path / "result", weights_only=True)
    assert (name, resolution, names) == ("RFDETRNanoConfig", 416, ["a", "b", "c"])
    image = torch.linspace(-2, 2, 3 * 416 * 416).reshape(1, 3, 416, 416)
    with torch.no_grad():
        output = detector(image)
    torch.testing.assert_close((boxes, logits), (output.boxes, output.logits), rtol=1e-5, atol=1e-6)
