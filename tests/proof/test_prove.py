"""Exports are proven: which images, what is left beside and inside the artifact, exit codes."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from tests.tiny import TINY

from rfdetr import RFDETR, RFDETRMini
from rfdetr.cli import main
from rfdetr.errors import InputError
from rfdetr.export import Subject, writer_of
from rfdetr.inference.engines import open_artifact
from rfdetr.models.detector import detector_in
from rfdetr.proof.prove import reference_for
from rfdetr.weights.writing import save_checkpoint

SIZE = 256, 256


def subject(model: RFDETRMini, weights: Path | None = None) -> Subject:
    network = detector_in(model.model.model)
    return Subject(network, model.model_config, model.model.labels, weights)


def a_run(folder: Path, model: RFDETRMini, dataset: Path, **changes: Any) -> Path:
    """The weights of a run, with the config.yaml that it leaves beside them."""
    path = folder / "checkpoint_best_total.pth"
    state = detector_in(model.model.model).state_dict()
    save_checkpoint(path, state, model.model_config, model.class_names)
    train = {"dataset_dir": str(dataset), "dataset_file": "roboflow", "class_names": None}
    (folder / "config.yaml").write_text(yaml.safe_dump({"train": {**train, **changes}}))
    return path


def test_the_images_are_the_runs_own_or_those_given(
    trained: RFDETRMini, drawn: Path, tmp_path: Path
) -> None:
    weights = a_run(tmp_path, trained, drawn)
    for verify in (None, True):
        found = reference_for(subject(trained, weights), verify, SIZE)
        assert found is not None
        images = found.labelled
        assert (images.folder, images.split, len(images.numbers)) == (drawn, "valid", 3)
    assert reference_for(subject(trained, weights), False, SIZE) is None
    given = reference_for(subject(trained), drawn, SIZE)
    assert given is not None and given.labelled.folder == drawn
    with pytest.raises(InputError, match="no such folder"):
        reference_for(subject(trained), tmp_path / "absent", SIZE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (None, "no run's config.yaml, which names a data set, is beside the weights"),
        ({"dataset_dir": "/absent"}, "/absent: no such folder"),
        ({"class_names": ["a"]}, "class_names is"),
    ],
)
def test_where_no_images_are_known_a_line_says_so_and_how_to_prove_it(
    changes: dict[str, Any] | None,
    reason: str,
    trained: RFDETRMini,
    drawn: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights = tmp_path / "mine.pth" if changes is None else None
    one = subject(trained, weights or a_run(tmp_path, trained, drawn, **(changes or {})))
    with caplog.at_level(logging.WARNING):
        assert reference_for(one, None, SIZE) is None
    assert "the export is not proven" in caplog.text and reason in caplog.text
    assert "--verify" in caplog.text
    with pytest.raises(InputError, match=reason):
        reference_for(one, True, SIZE)


def test_a_broken_config_is_no_runs(trained: RFDETRMini, drawn: Path, tmp_path: Path) -> None:
    weights = a_run(tmp_path, trained, drawn)
    for text in ("", "[1]", "train: 3", "train: {}", "{", "\0"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(InputError, match=r"config\.yaml is not the config\.yaml of a run"):
            reference_for(subject(trained, weights), True, SIZE)


@pytest.mark.scheduled
def test_an_export_has_its_certificate_beside_and_inside(
    trained: RFDETRMini, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_run(tmp_path, trained, drawn)
    code = main(["export", str(path), "--format", "pt2", "--out", str(tmp_path / "out")])
    assert code == 0, capsys.readouterr().err
    assert "verdict" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "certificate.json").read_bytes())
    assert content["passed"] and content["data"]["split"] == "valid"
    assert content["agreement"]["reference_matched"] == 1
    assert content["models"]["exported"] == {
        "engine": "pt2",
        "dtype": "float32",
        "file": "inference_model.pt2",
        "weights_sha256": content["models"]["exported"]["weights_sha256"],
    }
    assert all(isinstance(peak, float) for peak in content["memory_mib"].values())
    _, metadata = open_artifact(tmp_path / "out" / "inference_model.pt2")
    inside = metadata.certificate
    assert inside is not None and inside["passed"] is True and abs(inside["loss"]) < 0.1
    assert inside["fingerprint"] == content["data"]["fingerprint"]


def spoiled_onnx(source: Path) -> Callable[..., Callable[[], list[Path]]]:
    """An exporter that gives an ONNX file with noise on its weights."""

    def write(folder: Path) -> list[Path]:
        model, rng = onnx.load(source), np.random.default_rng(0)
        for weights in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weights)
            if values.ndim > 1 and values.dtype == np.float32:
                noise = rng.standard_normal(values.shape, np.float32)
                values = values + 0.3 * values.std() * noise
                weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        folder.mkdir()
        onnx.save(model, folder / source.name)
        return [folder / source.name]

    return lambda _, folder, *rest: functools.partial(write, folder)


def faulty(model: RFDETRMini) -> Callable[..., Callable[[], list[Path]]]:
    """An exporter that spoils the weights on the way."""
    network = detector_in(model.model.model)
    return lambda one, *rest: writer_of(one._replace(detector=network), *rest)


@pytest.mark.slow
def test_an_export_that_loses_fails_and_stays_marked(
    trained: RFDETRMini,
    mini_exports: Path,
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = a_run(tmp_path, trained, drawn)
    exporter = spoiled_onnx(mini_exports / "inference_model.onnx")
    monkeypatch.setattr("rfdetr.published.writer_of", exporter)
    command = ["export", str(path), "--out", str(tmp_path / "out")]
    assert main([*command, "--verify", str(drawn)]) == 1
    err = capsys.readouterr().err
    assert "points of mAP 50:95 lost: inference_model.onnx" in err and "Traceback" not in err
    assert json.loads((tmp_path / "out" / "certificate.json").read_bytes())["passed"] is False
    artifact = tmp_path / "out" / "inference_model.onnx"
    assert open_artifact(artifact)[1].certificate["passed"] is False  # type: ignore[index]


@pytest.mark.scheduled
def test_a_file_of_another_program_is_left_and_a_loss_may_be_allowed(
    trained: RFDETRMini,
    damaged: RFDETRMini,
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = a_run(tmp_path, trained, drawn)
    monkeypatch.setattr("rfdetr.published.writer_of", faulty(damaged))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "certificate.json").write_text('{"of": "another program"}')
    command = ["export", str(path), "--format", "pt2", "--out", str(tmp_path / "out")]
    assert main([*command, "--verify", str(drawn), "--max-loss", "100"]) == 0
    assert "another" in (tmp_path / "out" / "certificate.json").read_text()
    beside = tmp_path / "out" / "inference_model.pt2.certificate.json"
    assert json.loads(beside.read_bytes())["passed"] is True


def test_random_weights_are_refused_before_the_work_where_a_proof_is_asked_for(
    trained: RFDETRMini, drawn: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    names = trained.class_names
    random = RFDETRMini(**TINY, num_classes=len(names), class_names=names)
    with pytest.raises(InputError, match="Random or untrained weights"):
        random.export(tmp_path / "a", format="pt2", verify=drawn)
    assert not (tmp_path / "a").exists()


@pytest.mark.scheduled
def test_random_weights_where_no_proof_is_asked_for_are_told(
    trained: RFDETRMini, drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = trained.class_names
    random = RFDETRMini(pretrain_weights=None, num_classes=len(names), class_names=names)
    path = a_run(tmp_path, random, drawn)
    with caplog.at_level(logging.WARNING):
        RFDETR.from_checkpoint(path).export(tmp_path / "b", format="pt2")
    assert "the export is not proven" in caplog.text
    assert "Random or untrained weights" in caplog.text
    assert not [*tmp_path.glob("?/certificate.json")]


@pytest.mark.scheduled
def test_no_verify_compares_nothing(
    trained: RFDETRMini, drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = a_run(tmp_path, trained, drawn)
    command = ["export", str(path), "--format", "pt2", "--out", str(tmp_path / "out")]
    assert main([*command, "--no-verify"]) == 0
    assert not (tmp_path / "out" / "certificate.json").exists() and "proven" not in caplog.text


def test_classes_that_the_model_does_not_know_are_told_before_the_work(
    trained: RFDETRMini, make_tiny_coco: Callable[..., Path], tmp_path: Path
) -> None:
    unknown = make_tiny_coco({"train": 1, "valid": 1})
    with pytest.raises(InputError, match=r"classes the model does not know: .*'blue'"):
        trained.export(tmp_path / "out", verify=unknown)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"max_loss": -1}, {"max_loss": "much"}])
def test_bad_settings_are_told_before_the_work(
    settings: dict[str, Any], trained: RFDETRMini, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="max_loss"):
        trained.export(tmp_path / "out", **settings)
    with pytest.raises(InputError, match="verify"):
        trained.export(tmp_path / "out", format="hf", verify=tmp_path)
    assert not (tmp_path / "out").exists()
