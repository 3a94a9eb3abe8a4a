"""Exported models predict, stream and are evaluated as the network they were made of."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import openvino
import pytest
import torch
from PIL import Image

from rfdetr import RFDETR, RFDETRMini, RFDETRSegMini
from rfdetr.cli import main
from rfdetr.errors import InputError, MissingPackageError
from rfdetr.export.metadata import KEY, Input, Metadata, Outputs
from rfdetr.files import digest_of, record_digests
from rfdetr.inference.engines import open_artifact
from rfdetr.predicting import ExportedDetector
from rfdetr.synthetic.generate import generate

CLASSES = ["arc", "bean", "disc", "drop", "kite", "pentagon"]  # which the bundled models know
ENDINGS = ["onnx", "xml", "pt2"]
METADATA = Metadata(
    variant=None,
    task="detect",
    classes={0: "cat", 1: "dog"},
    background=[2],
    num_logits=3,
    num_queries=4,
    num_select=4,
    patch_size=16,
    input=Input(dtype="uint8", height=32, width=32),
    outputs=Outputs(masks=None),
    weights_sha256="0",
)


def write_onnx(path: Path, text: str | None, outputs: tuple[str, str] = ("dets", "labels")) -> Path:
    """A model of constants: four boxes of an image, of which the second is a dog, the last none."""
    boxes = np.array([[[0.5, 0.5, 1, 1], [0.25, 0.5, 0.5, 1]] * 2], np.float32)
    logits = np.full((1, 4, 3), -9, np.float32)
    logits[0, 0, 0], logits[0, 1, 1], logits[0, 3, 2] = 2, 3, 4
    values = [onnx.numpy_helper.from_array(x, f"v{i}") for i, x in enumerate((boxes, logits))]
    nodes = [onnx.helper.make_node("Identity", [f"v{i}"], [name]) for i, name in enumerate(outputs)]
    shapes = (1, 4, 4), (1, 4, 3)
    given = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in zip(outputs, shapes, strict=True)
    ]
    taken = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.UINT8, (None, 3, 32, 32))
    graph = onnx.helper.make_graph(nodes, "constants", [taken], given, values)
    opsets = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if text is not None:
        onnx.helper.set_model_props(model, {KEY: text})
    path.write_bytes(model.SerializeToString())
    return path


def test_labels_threshold_and_boxes_are_those_of_the_metadata(tmp_path: Path) -> None:
    model = RFDETR.from_export(write_onnx(tmp_path / "m.onnx", METADATA.to_json()))
    assert model.class_names == ["cat", "dog"]
    found: Any = model.predict(np.zeros((10, 20, 3), np.uint8))
    assert found.data["class_name"].tolist() == ["dog", "cat"]  # the best pair is of no class
    assert found.xyxy.tolist() == [[0, 0, 10, 10], [0, 0, 20, 10]]
    assert np.allclose(found.confidence, 1 / (1 + np.exp([-3.0, -2.0])))


def test_a_fixed_batch_is_filled_and_split(tmp_path: Path) -> None:
    fixed = METADATA.input.model_copy(update={"batch": 1})
    text = METADATA.model_copy(update={"input": fixed}).to_json()
    model = RFDETR.from_export(write_onnx(tmp_path / "m.onnx", text))
    found = model.predict([np.zeros((10, 20, 3), np.uint8)] * 3, batch_size=3)
    assert [len(one) for one in found] == [2, 2, 2]


def test_metadata_may_lie_beside_and_a_folder_holds_one_artifact(tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", None)
    (tmp_path / "m.rfdetr.json").write_text(METADATA.to_json())
    assert RFDETR.from_export(tmp_path).class_names == ["cat", "dog"]
    write_onnx(tmp_path / "n.onnx", METADATA.to_json())
    with pytest.raises(InputError, match=r"holds m\.onnx, n\.onnx: name one of them"):
        RFDETR.from_export(tmp_path)


def write(content: bytes, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        (folder / Path(name).with_suffix(".bin").name).write_bytes(b"")
        return folder / name

    return make


def foreign_xml(folder: Path) -> Path:
    x = openvino.opset13.parameter([1, 3, 32, 32], openvino.Type.f32, name="input")
    openvino.save_model(openvino.Model([openvino.opset13.relu(x)], [x]), folder / "m.xml")
    return folder / "m.xml"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (write(b"nothing", "m.onnx"), r"m\.onnx: cannot be opened as an ONNX model"),
        (write(b"", "m.onnx"), r"m\.onnx: cannot be opened as an ONNX model"),
        (write(b"nothing", "m.xml"), r"m\.xml: .*found no <net"),
        (write(b"<net></net>", "m.xml"), r"m\.xml: .*found no <net"),
        (write(b"<net version='11'><", "m.xml"), r"m\.xml: cannot be opened as a model of Ope"),
        (write(b"nothing", "m.pt2"), r"m\.pt2: cannot be opened as a program of torch\.export"),
        (write(b"weights", "m.pth"), r"m\.pth: expected the name of a file ending in \.onnx"),
        (lambda folder: folder, r"expected a file ending in .*; it holds none"),
        (lambda folder: write_onnx(folder / "m.onnx", None), r"m\.onnx: no metadata of rfdetr"),
        (lambda folder: write_onnx(folder / "m.onnx", "{}"), r"m\.onnx: .*expected"),
        (foreign_xml, r"m\.xml: no metadata of rfdetr"),
        (
            lambda folder: write_onnx(folder / "m.onnx", METADATA.to_json(), ("a", "b")),
            r"gives {'a': .*'b': .*}, but its metadata says {'input': .*'dets': .*'labels': ",
        ),
    ],
)
def test_what_is_no_artifact_is_one_clear_error(
    tmp_path: Path, make: Callable[[Path], Path], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=told):
        RFDETR.from_export(make(tmp_path))
    assert capfd.readouterr().err == ""  # runtimes print beside


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_queries": 5}, r"gives .*but its metadata says .*\(5, 4\)"),
        ({"num_logits": 4}, r"\(4, 4\)"),
        ({"input": Input(dtype="uint8", height=64, width=32)}, r"\(3, 64, 32\)"),
        ({"num_select": 13}, "num_select is 13: expected at most 12"),
    ],
)
def test_metadata_must_fit_the_network(changed: dict[str, Any], told: str, tmp_path: Path) -> None:
    text = METADATA.model_copy(update=changed).to_json()
    with pytest.raises(InputError, match=told):
        RFDETR.from_export(write_onnx(tmp_path / "m.onnx", text))


def test_an_artifact_that_has_changed_is_refused(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", METADATA.to_json())
    record_digests(path, [digest_of(path)])
    RFDETR.from_export(path)
    path.write_bytes(path.read_bytes().replace(b"Identity", b"Sigmoid\0"))
    with pytest.raises(InputError, match=r"m\.onnx is damaged: .*export it again"):
        RFDETR.from_export(path)


def test_weights_of_openvino_must_be_beside(tmp_path: Path) -> None:
    foreign_xml(tmp_path).with_suffix(".bin").unlink()
    with pytest.raises(InputError, match=r"its weights, m\.bin, are not beside it"):
        RFDETR.from_export(tmp_path / "m.xml")
    with pytest.raises(FileNotFoundError, match="absent"):
        RFDETR.from_export(tmp_path / "absent.onnx")


@pytest.mark.parametrize(("module", "name"), [("onnxruntime", "m.onnx"), ("openvino", "m.xml")])
def test_a_missing_runtime_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    path = write(b"<net></net>", name)(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingPackageError, match=r"rfdetr-finetune\[export\]"):
        RFDETR.from_export(path)


def test_an_exported_model_only_predicts(tmp_path: Path) -> None:
    model: Any = RFDETR.from_export(write_onnx(tmp_path / "m.onnx", METADATA.to_json()))
    for call in (model.train, model.export, model.optimize_for_inference):
        with pytest.raises(InputError, match=r"from_checkpoint"):
            call()
    image = np.zeros((10, 20, 3), np.uint8)
    with pytest.raises(InputError, match=r"64 x 32 .* made for 32 x 32"):
        model.predict(image, shape=(64, 32))
    with pytest.raises(InputError, match=r"patch_size is 14 .*: this model's is 16"):
        model.predict(image, patch_size=14)
    assert len(model.predict(image, shape=(32, 32), patch_size=16)) == 2


def test_the_command_line_takes_artifacts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_onnx(tmp_path / "m.onnx", METADATA.to_json())
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    assert main(["predict", str(path), str(tmp_path / "a.png"), "--out", str(tmp_path / "o")]) == 0
    assert "1 images, 2 objects" in capsys.readouterr().out
    assert main(["info", str(path)]) == 0
    told = capsys.readouterr().out
    assert "0 cat, 1 dog" in told and "any number x 3 x 32 x 32 uint8" in told
    assert main(["predict", str(path), str(tmp_path / "a.png"), "--device", "cuda"]) == 2
    assert "an exported model runs on the CPU" in capsys.readouterr().err


class Trained(NamedTuple):
    """A bundled model, and its exports."""

    model: RFDETR
    folder: Path
    data: Path

    def images(self) -> list[Path]:
        return sorted((self.data / "test").glob("*.jpg"))

    def exported(self, ending: str) -> ExportedDetector:
        return RFDETR.from_export(self.folder / f"inference_model.{ending}")


@pytest.fixture(
    scope="module", params=[pytest.param(RFDETRMini, marks=pytest.mark.scheduled), RFDETRSegMini]
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    name = "mini_exports" if request.param is RFDETRMini else "seg_mini_exports"
    folder, data = request.getfixturevalue(name), tmp_path_factory.mktemp("trained") / "data"
    return Trained(request.param(device="cpu"), folder, generate(data, 40, CLASSES))


def assert_alike(got: Any, want: Any) -> None:
    assert len(got) == len(want)
    np.testing.assert_allclose(got.xyxy, want.xyxy, atol=0.01)
    np.testing.assert_allclose(got.confidence, want.confidence, atol=1e-4)
    assert got.class_id.tolist() == want.class_id.tolist()
    assert (got.mask is None) == (want.mask is None)
    if want.mask is not None and len(want):
        assert (got.mask == want.mask).mean() > 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_artifact_finds_what_the_network_finds(trained: Trained, ending: str) -> None:
    exported = trained.exported(ending)
    want = trained.model.predict(trained.images(), threshold=0.3)
    assert sum(len(one) for one in want) > 3
    for batch_size in (1, 3):
        got = exported.predict(trained.images(), threshold=0.3, batch_size=batch_size)
        for one, other in zip(got, want, strict=True):
            assert_alike(one, other)
    stream = exported.predict_stream(trained.images(), threshold=0.3)
    for one, other in zip(stream, want, strict=True):
        assert_alike(one.detections, other)
    large = np.tile(np.asarray(Image.open(trained.images()[0])), (2, 2, 1))
    in_tiles = (one.predict(large, 0.3, slice=True) for one in (exported, trained.model))
    assert_alike(*in_tiles)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_threads_find_what_one_after_the_other_finds(trained: Trained, ending: str) -> None:
    exported, images = trained.exported(ending), trained.images()[:4] * 6
    alone = [exported.predict(image, threshold=0.3) for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: exported.predict(image, threshold=0.3), images))
    for got, want in zip(together, alone, strict=True):
        assert_alike(got, want)


@pytest.mark.slow
def test_evaluation_gives_the_networks_figures(trained: Trained) -> None:
    how: dict[str, Any] = {"num_workers": 0}
    trained.model.model_config.amp = False  # the exports are float32
    want = trained.model.evaluate(trained.data, "test", **how)
    for ending in ("onnx", "xml"):
        got = trained.exported(ending).evaluate(trained.data, "test", **how)
        assert got.keys() == want.keys()
        assert got["test/mAP_50_95"] == pytest.approx(want["test/mAP_50_95"], abs=1e-3)


@pytest.mark.scheduled
def test_evaluation_in_tiles_gives_the_networks_figures(trained: Trained) -> None:
    how: dict[str, Any] = {"num_workers": 0, "slice": (128, 160)}
    trained.model.model_config.amp = False
    want = trained.model.evaluate(trained.data, "test", **how)
    got = trained.exported("onnx").evaluate(trained.data, "test", **how)
    assert got["test/mAP_50_95"] == pytest.approx(want["test/mAP_50_95"], abs=2e-3)


@pytest.mark.slow
def test_a_signal_after_models_of_openvino_are_gone_does_no_harm(trained: Trained) -> None:
    """Each `openvino.Core` frees the signal stack it gave its thread; two of them mix theirs up."""
    program = """
import gc, signal, sys, threading, numpy
from rfdetr import RFDETR
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
models = [RFDETR.from_export(sys.argv[1]) for _ in range(2)]
for model in models:
    model.predict(numpy.zeros((64, 64, 3), numpy.uint8))
del models[0], model
thread = threading.Thread(target=models.clear)
thread.start()
thread.join()
gc.collect()
signal.raise_signal(signal.SIGUSR1)
"""
    path = str(trained.folder / "inference_model.xml")
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr


@pytest.mark.scheduled
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_exported_model_can_be_copied_and_sent(trained: Trained, ending: str) -> None:
    exported, image = trained.exported(ending), trained.images()[0]
    want: Any = exported.predict(image, threshold=0.0)
    for twin in (copy.deepcopy(exported), pickle.loads(pickle.dumps(exported))):
        assert np.array_equal(twin.predict(image, threshold=0.0).confidence, want.confidence)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param("openvino", "float32", marks=pytest.mark.scheduled),
        pytest.param("openvino", "bfloat16", marks=pytest.mark.scheduled),
        pytest.param("onnx", "float32", marks=pytest.mark.scheduled),
    ],
)
def test_another_runtime_behind_predict_is_kept_by_copies_and_undone(
    backend: Any, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = generate(tmp_path / "data", 10)
    image = next((data / "test").glob("*.jpg"))
    model = RFDETRMini(device="cpu")
    want = model.predict(image, threshold=0.3)
    model.optimize_for_inference(backend=backend, dtype=dtype)
    got: Any = model.predict(image, threshold=0.3)
    assert model.model.engine().name == backend
    if dtype == "float32":
        assert_alike(got, want)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.model.engine().name == backend
        found = twin.predict(image, threshold=0.3)
        assert np.array_equal(found.confidence, got.confidence)
    with pytest.raises(InputError, match="made for 256 x 256"):
        model.predict(image, shape=(128, 128))
    model.remove_optimized_model()
    assert_alike(model.predict(image, threshold=0.3), want)
    model.optimize_for_inference(backend=backend, dtype=dtype)
    model.train(dataset_dir=data, output_dir=tmp_path / "run", epochs=1, num_workers=0)
    assert model.model.engine().name == "torch"
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run"}  # no file left behind


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"backend": "tensorrt"}, r"'tensorrt': expected \"torch\""),
        ({"backend": "onnx", "dtype": "bfloat16"}, 'use "openvino"'),
        ({"backend": "openvino", "dtype": "float16"}, "dtype"),
        ({"backend": "openvino", "dtype": "int8"}, "calibration"),
        ({"backend": "onnx", "inplace": True, "compile": False}, "no inplace"),
        ({"backend": "onnx", "compile_backend": "inductor"}, "inductor"),
        ({"calibration": "folder"}, 'backend="openvino"'),
    ],
)
def test_impossible_engines_are_refused(settings: dict[str, Any], told: str) -> None:
    model = RFDETRMini(device="cpu", pretrain_weights=None)
    with pytest.raises(InputError, match=told):
        model.optimize_for_inference(**settings)
    assert model.model.engine().name == "torch"


def test_an_engine_gives_memory_of_its_own(tmp_path: Path) -> None:
    engine, metadata = open_artifact(write_onnx(tmp_path / "m.onnx", METADATA.to_json()))
    assert metadata == METADATA
    first, second = (engine(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[0] for _ in range(2))
    first.zero_()
    assert second.any()
