"""What other runtimes read: each artifact is run, and gives what the network gives."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from rfdetr import RFDETR, RFDETRMini, RFDETRSegMini
from rfdetr.data.images import normalize
from rfdetr.export import artifacts, rfdetr_decode
from rfdetr.export.calibration import calibration_images
from rfdetr.export.metadata import KEY, Metadata, digest_of_tensors
from rfdetr.export.openvino import HINT, core, openvino_model, save
from rfdetr.export.program import Exportable
from rfdetr.synthetic import generate

pytestmark = pytest.mark.slow
NAMES = ["dets", "labels", "masks"]


class Case(NamedTuple):
    """A model, the folder of its artifacts, and what their input is made of uint8 images by."""

    model: RFDETR
    folder: Path
    to_input: Callable[[Tensor], Tensor]

    @property
    def path(self) -> Path:
        return self.folder / "inference_model"

    def expected(self, images: Tensor) -> list[np.ndarray]:
        """What the network itself gives."""
        network = Exportable(self.model.model.model, (256, 256)).eval()
        return [output.numpy() for output in network(normalize(images))]

    def metadata(self) -> Metadata:
        path = self.path.with_suffix(".rfdetr.json")
        return Metadata.from_json(path.read_bytes(), str(path))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes of what the bundled models were trained on."""
    return generate(tmp_path_factory.mktemp("scenes") / "data", 12, ("heart", "house", "key"))


@pytest.fixture(scope="module")
def boxes(mini_exports: Path) -> Case:
    return Case(RFDETRMini(), mini_exports, normalize)


@pytest.fixture(scope="module")
def masks(seg_mini_exports: Path) -> Case:
    return Case(RFDETRSegMini(), seg_mini_exports, lambda images: images)


@pytest.fixture(params=["boxes", "masks"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found


def images_of(scenes: Path, count: int) -> Tensor:
    """(count, 3, 256, 256) uint8."""
    return torch.from_numpy(np.concatenate(calibration_images(scenes, (256, 256), count)))


def run_onnx(path: Path, images: Tensor) -> list[np.ndarray]:
    found: list[np.ndarray] = onnxruntime.InferenceSession(path).run(
        None, {"input": images.numpy()}
    )
    return found


def run_openvino(path: Path, images: Tensor) -> list[np.ndarray]:
    model = core().read_model(path)
    hint = model.get_rt_info(HINT).astype(str)
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    assert [output.get_any_name() for output in compiled.outputs] == NAMES[: len(compiled.outputs)]
    return list(compiled(images.numpy()).values())


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert [x.shape for x in found] == [x.shape for x in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_gives_what_the_network_gives(case: Case, scenes: Path, batch: int) -> None:
    images = images_of(scenes, batch)
    found = run_onnx(case.path.with_suffix(".onnx"), case.to_input(images))
    assert_close(found, case.expected(images))


@pytest.mark.parametrize("batch", [1, 3])
def test_openvino_gives_what_the_network_gives(case: Case, scenes: Path, batch: int) -> None:
    images = images_of(scenes, batch)
    found = run_openvino(case.path.with_suffix(".xml"), case.to_input(images))
    assert_close(found, case.expected(images))


def test_the_program_of_torch_gives_what_the_network_gives(boxes: Case, scenes: Path) -> None:
    images, extra = images_of(scenes, 3), {KEY: ""}
    program = torch.export.load(boxes.path.with_suffix(".pt2"), extra_files=extra)
    found = [output.numpy() for output in program.module()(normalize(images))]
    assert_close(found, boxes.expected(images))
    assert Metadata.from_json(extra[KEY], "pt2") == boxes.metadata()


def test_names_and_shapes_are_the_published_ones(case: Case) -> None:
    model = onnx.load(case.path.with_suffix(".onnx"))
    onnx.checker.check_model(model, full_check=True)
    outputs = [output.name for output in model.graph.output]
    assert outputs == NAMES[: len(outputs)]
    assert len(outputs) == (3 if case.model.model_config.segmentation_head else 2)
    (taken,) = model.graph.input
    sides = [side.dim_param or side.dim_value for side in taken.type.tensor_type.shape.dim]
    assert (taken.name, sides[0].isidentifier(), sides[1:]) == ("input", True, [3, 256, 256])
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]


def test_the_metadata_is_inside_and_beside(case: Case) -> None:
    told, config = case.metadata(), case.model.model_config
    (inside,) = onnx.load(case.path.with_suffix(".onnx")).metadata_props
    assert (inside.key, Metadata.from_json(inside.value, "onnx")) == (KEY, told)
    model = core().read_model(case.path.with_suffix(".xml"))
    assert Metadata.from_json(model.get_rt_info(KEY).astype(str), "xml") == told
    assert told.classes == case.model.model.labels
    assert sorted([*told.classes, *told.background]) == list(range(told.num_logits))
    assert (told.num_logits, told.num_queries) == (config.num_classes + 1, config.num_queries)
    assert told.weights_sha256 == digest_of_tensors(case.model.weights())
    assert (told.input.batch, told.opset, told.dtype) == ("dynamic", 20, "float32")
    assert told.task == ("segment" if config.segmentation_head else "detect")


def test_notes_are_kept(boxes: Case) -> None:
    assert boxes.metadata().notes == "of the harbour"


def test_little_is_told(masks: Case) -> None:
    lines = (masks.folder / "told.txt").read_text().splitlines()
    assert lines[:3] == [
        str(masks.folder / f"inference_model.{ending}") for ending in ("onnx", "xml", "pt2")
    ]
    assert len(lines) <= 9, lines
    assert not [line for line in lines if "torchvision" in line or "Warning" in line]


def test_bfloat16_is_told_to_whoever_compiles(boxes: Case, scenes: Path, tmp_path: Path) -> None:
    source = onnx.load(boxes.path.with_suffix(".onnx"))
    path = tmp_path / "a.xml"
    save(openvino_model(source, boxes.metadata(), dtype="bfloat16"), path)
    model = core().read_model(path)
    assert model.get_rt_info(HINT).astype(str) == "bf16"
    told = Metadata.from_json(model.get_rt_info(KEY).astype(str), "xml")
    assert told == boxes.metadata().model_copy(update={"dtype": "bfloat16"})
    images = images_of(scenes, 1)
    found, expected = run_openvino(path, normalize(images)), boxes.expected(images)
    assert found[0].dtype == np.float32
    best = expected[1][0].max(-1).argmax()
    assert np.abs(found[0] - expected[0])[0, best].max() < 0.02
    assert np.abs(found[1] - expected[1])[0, best].max() > 0


def test_weights_that_bfloat16_rounds_too_far_are_in_two_parts(case: Case) -> None:
    source = onnx.load(case.path.with_suffix(".onnx"))
    block = case.model.model.model.encoder.blocks[0]
    wanted = [linear.weight.detach() for linear in (block.qkv, block.out, block.fc1, block.fc2)]
    for dtype in ("float32", "bfloat16"):
        model = openvino_model(source, case.metadata(), dtype=dtype)
        sums = [one for one in model.get_ordered_ops() if one.get_type_name() == "Add"]
        found = []
        for one in sums:
            products = [one.input_value(side).get_node() for side in (0, 1)]
            if [product.get_type_name() for product in products] == ["MatMul", "MatMul"]:
                parts = [
                    torch.from_numpy(p.input_value(1).get_node().data.copy()) for p in products
                ]
                assert torch.equal(parts[0], parts[0].bfloat16().float())
                found.append(parts[0] + parts[1])
        assert len(found) == (4 if dtype == "bfloat16" else 0)
        for weight, own in zip(found, wanted, strict=False):
            same = weight if weight.shape == own.shape else weight.T
            assert torch.equal(same, own) or torch.equal(same.T, own)


def test_int8_is_of_encoder_and_projector_alone(case: Case, scenes: Path, tmp_path: Path) -> None:
    source = onnx.load(case.path.with_suffix(".onnx"))
    images = calibration_images(scenes, (256, 256), 8)
    model = openvino_model(source, case.metadata(), dtype="int8", calibration=images)
    products = {"MatMul", "Convolution"}
    quantized: dict[bool, set[str]] = {False: set(), True: set()}
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in products:
            scope = operation.get_friendly_name().split("/")[0]  # "network.encoder.blocks.0"
            part = scope.removeprefix("network").strip(".").split(".")[0]
            weight = operation.input_value(1).get_node()
            while weight.get_type_name() in ("Multiply", "Convert", "Reshape", "Subtract"):
                weight = weight.input_value(0).get_node()
            quantized[str(weight.get_element_type()) == "<Type: 'int8_t'>"].add(part)
    assert quantized[True] == {"encoder", "projector"}
    assert {"decoder", "proposals", "class_head", "box_head"} <= quantized[False]
    save(model, tmp_path / "a.xml")
    one = images_of(scenes, 1)
    found, expected = run_openvino(tmp_path / "a.xml", case.to_input(one)), case.expected(one)
    scores = [1 / (1 + np.exp(-outputs[1].max())) for outputs in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=0.1)


def decoder_of(case: Case) -> ModuleType:
    """The file beside the artifact, as a program of its own imports it."""
    spec = importlib.util.spec_from_file_location("decoder", case.folder / "rfdetr_decode.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pictures_of(scenes: Path, folder: Path) -> list[Path]:
    """Two scenes as PNG files of the models' size, and one of another size."""
    paths = []
    for number, source in enumerate(sorted((scenes / "train").glob("*.jpg"))[:3]):
        paths.append(folder / f"{number}.png")
        size = (256, 256) if number < 2 else (310, 200)
        Image.open(source).resize(size).save(paths[-1])
    return paths


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_the_decoder_finds_what_predict_finds(
    case: Case, scenes: Path, ending: str, tmp_path: Path
) -> None:
    """The same to the last but where an image is resized: Pillow rounds grays otherwise."""
    decoder = decoder_of(case)
    run, metadata = decoder.open_model(str(case.path.with_suffix(ending)))
    *same, other = pictures_of(scenes, tmp_path)
    for path in same:
        found = decoder.detect(run, metadata, Image.open(path), 0.1)
        expected: Any = case.model.predict(path, 0.1)
        assert len(expected) > 0
        assert [one["label"] for one in found] == expected.class_id.tolist()
        assert [one["name"] for one in found] == expected.data["class_name"].tolist()
        boxes, scores = ([one[part] for one in found] for part in ("box", "confidence"))
        np.testing.assert_allclose(boxes, expected.xyxy, atol=0.05)
        np.testing.assert_allclose(scores, expected.confidence, atol=1e-3)
        if expected.mask is not None:
            masks = np.array([one["mask"] for one in found])
            assert (masks != expected.mask).mean() < 1e-4
        fixed = {**metadata, "input": {**metadata["input"], "batch": 2}}
        again = decoder.detect(run, fixed, Image.open(path), 0.1)
        np.testing.assert_allclose([one["box"] for one in again], boxes, atol=0.05)
    found = decoder.detect(run, metadata, Image.open(other), 0.05)
    best: Any = case.model.predict(other, 0.01)[:1]
    assert any(
        one["label"] == best.class_id[0] and np.abs(one["box"] - best.xyxy[0]).max() < 3
        for one in found
    )


def test_the_decoder_is_short_and_needs_neither_torch_nor_us() -> None:
    text = Path(rfdetr_decode.__file__).read_text()
    assert len(text.splitlines()) <= 120
    lines = [line.split() for line in text.splitlines()]
    imported = {words[1].split(".")[0] for words in lines if words[:1] in (["import"], ["from"])}
    own = {"__future__", "json", "sys", "typing"}
    assert imported == own | {"numpy", "PIL", "onnxruntime", "openvino"}


def without_torch(folder: Path) -> list[str | Path]:
    """A Python in an environment of its own, with what the decoder's user installs."""
    venv.create(folder / "new", with_pip=True)
    python = folder / "new" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "onnxruntime", "numpy", "pillow"], check=True, timeout=240)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    return [python]


REFUSED = """
import runpy, sys
sys.modules["torch"] = sys.modules["rfdetr"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "python",
    [
        pytest.param(lambda _: [sys.executable, "-c", REFUSED], id="refused"),
        pytest.param(without_torch, id="absent", marks=pytest.mark.scheduled),
    ],
)
def test_an_artifact_runs_without_torch(
    boxes: Case, scenes: Path, tmp_path: Path, python: Callable[[Path], list[str | Path]]
) -> None:
    (image, *_) = pictures_of(scenes, tmp_path)
    decoder = boxes.folder / "rfdetr_decode.py"
    line = [*python(tmp_path), decoder, boxes.path.with_suffix(".onnx"), image]
    told = subprocess.run([*line, "0.1"], capture_output=True, text=True, check=True).stdout
    expected: Any = boxes.model.predict(image, 0.1)
    rows = [row.rsplit(" ", 5) for row in told.splitlines()]
    assert [row[0] for row in rows] == expected.data["class_name"].tolist()
    numbers = np.array([row[2:] for row in rows], float)
    np.testing.assert_allclose(numbers, expected.xyxy, atol=0.1)


@pytest.mark.scheduled
def test_a_certificate_can_be_put_in(boxes: Case, tmp_path: Path) -> None:
    proven = boxes.metadata().model_copy(update={"certificate": {"loss": 0.25}})
    for ending in (".onnx", ".xml", ".bin", ".pt2"):
        path = boxes.path.with_suffix(ending)
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for ending in (".onnx", ".xml", ".pt2"):
        artifacts.annotate((tmp_path / boxes.path.name).with_suffix(ending), proven)
    path = tmp_path / boxes.path.name
    (inside,) = onnx.load(path.with_suffix(".onnx")).metadata_props
    model = core().read_model(path.with_suffix(".xml"))
    extra = {KEY: ""}
    torch.export.load(path.with_suffix(".pt2"), extra_files=extra)
    texts = [inside.value, model.get_rt_info(KEY).astype(str), extra[KEY]]
    texts.append(path.with_suffix(".rfdetr.json").read_text())
    assert [Metadata.from_json(text, "") for text in texts] == [proven] * 4
    assert json.loads(texts[0])["certificate"] == {"loss": 0.25}
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


def test_nothing_is_written_over(boxes: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"inference_model\.onnx exists: give another output_dir"):
        boxes.model.export(boxes.folder)
    for name in ("rfdetr_decode.py", "inference_model.rfdetr.json"):
        (tmp_path / name).write_bytes((boxes.folder / name).read_bytes())
    (tmp_path / "rfdetr_decode.py").write_text("mine")
    with pytest.raises(ValueError, match=r"rfdetr_decode\.py is of another version"):
        boxes.model.export(tmp_path, notes="of the harbour")
    with pytest.raises(ValueError, match="of another model, or exported otherwise"):
        boxes.model.export(tmp_path, notes="of the hills")
    assert len([*tmp_path.iterdir()]) == 2
