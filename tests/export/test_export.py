"""The call and the command: formats, settings, errors; what every variant becomes."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import TINY

from rfdetr import RFDETR, RFDETRMini, RFDETRNano, RFDETRSegMini, RFDETRSegNano
from rfdetr.cli import main
from rfdetr.config import VARIANTS, EncoderDims, ExportConfig
from rfdetr.data.images import upright_rgb
from rfdetr.errors import InputError, MissingPackageError, RunError
from rfdetr.export import FORMATS, Subject, artifacts, formats_in, options_of, rfdetr_decode
from rfdetr.export.calibration import calibration_images, data_of_run
from rfdetr.export.metadata import Input, Metadata, metadata_of
from rfdetr.export.program import Exportable, exported, quiet
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector, detector_in


def a_model(**settings: Any) -> RFDETR:
    return RFDETRMini(**{**TINY, "num_classes": 3, **settings}, class_names=["cat", "dog", "owl"])


def network_of(variant: str) -> tuple[Detector, int]:
    """A variant's network of narrow layers, few queries and small images, and their side."""
    base = VARIANTS[variant](pretrain_weights=None)
    step = base.patch_size * base.num_windows
    side = 3 * step
    small = {"num_queries": 5, "num_select": 5, "group_detr": 1, "num_classes": 3}
    small |= {"out_feature_indexes": [1, 2], "dec_layers": 1, "dim_feedforward": 32}
    heads = {"hidden_dim": 48, "sa_nheads": 3, "ca_nheads": 6, "positional_encoding_size": 3}
    config = type(base)(pretrain_weights=None, resolution=side, **small, **heads)
    return build_detector(config, EncoderDims(24, 2, 2)), side


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_the_published_outputs(variant: str) -> None:
    detector, side = network_of(variant)
    images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    found = Exportable(detector, (side, side), "uint8").eval()(images)
    config, own = VARIANTS[variant](pretrain_weights=None), detector.eval()
    shapes = [(3, 5, 4), (3, 5, 4), (3, 5, side // 4, side // 4)]
    assert [tuple(x.shape) for x in found] == shapes[: 3 if config.segmentation_head else 2]
    mean, std = torch.tensor(RFDETR.means), torch.tensor(RFDETR.stds)
    normal = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    outputs = own(normal)
    torch.testing.assert_close(found[0], outputs.boxes[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], outputs.logits[-1], atol=1e-4, rtol=1e-4)
    if outputs.masks is not None:  # of one layer, before the proposals'
        torch.testing.assert_close(found[2], outputs.masks.mask_logits(0), atol=1e-4, rtol=1e-4)


OF_EACH_KIND = ("nano", "large-deprecated", "seg-nano", "seg-preview")
"""Patch sizes, encoders, levels and masks, each once; the scheduled lane has the others."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=[] if name in OF_EACH_KIND else pytest.mark.scheduled)
        for name in VARIANTS
    ],
)
def test_every_variant_is_one_program_for_any_number_of_images(variant: str) -> None:
    detector, side = network_of(variant)
    program = exported(detector, (side, side))
    kinds = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [kind for kind in kinds if "bicubic" in kind]
    network, run = Exportable(detector, (side, side)).eval(), program.module()
    for batch in (1, 3):
        images = torch.randn(batch, 3, side, side)
        for one, other in zip(run(images), network(images), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.scheduled
@pytest.mark.parametrize("face", [RFDETRNano, RFDETRSegNano])
def test_full_size_models_run_in_onnx_runtime(face: type[RFDETR], tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    model = face(pretrain_weights=None, num_classes=3)
    path = model.export(tmp_path)
    side = model.model_config.resolution
    images = torch.randn(1, 3, side, side)
    found = onnxruntime.InferenceSession(path).run(None, {"input": images.numpy()})
    network = Exportable(detector_in(model.model.model), (side, side)).eval()
    expected = [output.numpy() for output in network(images)]
    assert [x.shape for x in found] == [x.shape for x in expected]
    # Random weights make queries that are nearly equal: two may change places, each as a whole.
    close = (np.abs(found[0] - expected[0]) < 1e-3).all(-1).mean()
    assert close > 0.9


@pytest.mark.slow
def test_export_follows_training(
    tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = RFDETRMini(**TINY)
    model.train(dataset_dir=tiny_coco, epochs=1, batch_size=2, grad_accum_steps=1, num_workers=0)
    path = model.export()
    assert path == Path("output/inference_model.onnx")
    told = Metadata.from_json(Path("output/inference_model.rfdetr.json").read_bytes(), "")
    assert told.classes == dict(enumerate(model.class_names))
    assert Path("output/checkpoint_best_total.pth").exists()
    best = RFDETR.from_checkpoint("output/checkpoint_best_total.pth")
    assert metadata_of_model(best).weights_sha256 == told.weights_sha256
    assert data_of_run(Path("output/checkpoint_best_total.pth")) == {
        "dataset_dir": str(tiny_coco),
        "dataset_file": "roboflow",
        "class_names": None,
        "classes": None,
    }


def subject_of(model: RFDETR) -> Subject:
    return Subject(detector_in(model.model.model), model.model_config, model.model.labels)


def metadata_of_model(model: RFDETR) -> Metadata:
    side = model.model_config.resolution
    return metadata_of(subject_of(model), Input(dtype="float32", height=side, width=side))


def test_the_network_itself_stays_as_it_is() -> None:
    model = a_model(positional_encoding_size=3)
    before = {name: tensor.clone() for name, tensor in model.weights().items()}
    network = Exportable(model.model.model, (64, 96), "uint8")
    assert network(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))[0].shape == (1, 10, 4)
    assert model.model.model.training is False
    assert all(torch.equal(before[name], x) for name, x in model.weights().items())
    assert "positions" not in vars(model.model.model.encoder)


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("onxx", r"format is 'onxx'; did you mean 'onnx'\?: the formats are 'onnx', 'openvino'"),
        ("onnx,tensorrt", "format is 'tensorrt': the formats are"),
        ("", "format is ''"),
        ([], r"format is \[\]"),
        (None, "format is None"),
        (["onnx", 3], "the formats are"),
    ],
)
def test_an_unknown_format_is_refused_with_those_there_are(format: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        a_model().export(format=format)


def test_several_formats_are_a_list_or_a_text() -> None:
    assert formats_in("onnx, openvino,onnx") == formats_in(["onnx", "openvino"])
    assert formats_in("hf") == ["hf"]
    assert formats_in(",".join(FORMATS)) == list(FORMATS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"opset_version": 16}, "opset_version: .*found 16"),
        ({"opset_version": 24}, "opset_version: .*found 24"),
        ({"opset_versio": 20}, "no field 'opset_versio'; did you mean 'opset_version'"),
        ({"dtype": "float16"}, "dtype: .*'float32', 'bfloat16' or 'int8'"),
        ({"dtype": "bf16"}, 'dtype="bfloat16" is of OpenVINO.*give format="openvino"'),
        ({"quantization": "int8"}, 'dtype="int8" is of OpenVINO'),
        ({"quantization": "fp16"}, "quantization='fp16' of the published package"),
        ({"openvino_precision": "float16"}, "openvino_precision='float16' of the published"),
        ({"backbone_only": True}, "the whole network is written"),
        ({"quantization": "int8", "dtype": "float32"}, "quantization says dtype 'int8', but dtype"),
        ({"shape": (100, 64)}, "multiples of patch_size 16"),
        ({"shape": 64}, "shape: "),
        ({"patch_size": 14}, "this model's is 16"),
        ({"batch_size": 0}, "batch_size: .*found 0"),
        ({"notes": {1, 2}}, "notes: no JSON value"),
    ],
)
def test_what_cannot_be_is_told_before_work_begins(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        a_model().export(tmp_path, **settings)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quantization": "int8"}, {"dtype": "int8"}),
        ({"quantization": None, "openvino_precision": "float32"}, {"dtype": "float32"}),
        ({"dtype": torch.bfloat16}, {"dtype": "bfloat16"}),
        ({"dtype": "bf16", "input_dtype": torch.uint8}, {"dtype": "bfloat16"}),
        ({"verbose": True, "fp16": True, "soc": None, "simplify": True}, {}),
        ({"shape": [64, 96], "batch_size": 4}, {"shape": (64, 96), "batch_size": 4}),
    ],
)
def test_published_keywords_say_the_same(
    settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = ExportConfig(**settings)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("format", "missing", "extra"),
    [
        ("onnx", "onnxscript", "export"),
        ("onnx", "onnxruntime", "export"),
        ("openvino", "openvino", "export"),
        ("openvino", "onnxscript", "export"),
        ("openvino", "nncf", "int8"),
    ],
)
def test_a_missing_package_says_what_to_install(
    format: str, missing: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    how: dict[str, Any] = {}
    if extra == "int8":
        how = {"dtype": "int8", "calibration_data": np.zeros((1, 64, 64, 3), np.uint8)}
    with pytest.raises(MissingPackageError, match=rf"pip install 'rfdetr-finetune\[{extra}\]'"):
        a_model().export(tmp_path, format=format, **how)
    assert not [*tmp_path.iterdir()]


def test_what_has_no_effect_is_told() -> None:
    config = ExportConfig(opset_version=17, calibration_data="images", batch_size=3)
    told = r"opset_version=17 \(18 is the lowest.*calibration_data \(it is of"
    with pytest.warns(UserWarning, match=told):
        options = options_of(config, ["onnx"], subject_of(a_model()))
    assert (options.opset, options.calibration, options.batch) == (18, None, 3)
    with warnings.catch_warnings(action="error"):
        config = ExportConfig(dynamic_batch=True, batch_size=3, shape=(64, 96))
        options = options_of(config, ["onnx", "openvino"], subject_of(a_model()))
    assert (options.opset, options.size, options.batch) == (20, (64, 96), None)


def test_a_converted_network_is_refused(tmp_path: Path) -> None:
    model = a_model()
    model.inference(compile=False, dtype="bfloat16", inplace=True)
    with pytest.raises(RunError, match="load the model"):
        model.export(tmp_path)


def test_calibration_images_are_spread_over_what_is_given(tiny_coco: Path) -> None:
    of_folder = calibration_images(tiny_coco, (32, 64), 3)
    assert [(x.shape, x.dtype.name) for x in of_folder] == [((1, 3, 32, 64), "uint8")] * 3
    files = sorted((tiny_coco / "train").glob("*.[jp][pn]g"))
    assert len(calibration_images(files, (32, 32), 100)) == len(files) == 6
    assert len(calibration_images(tiny_coco / "valid", (32, 32), 100)) == 4
    grays = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    found = calibration_images(grays, (32, 32), 3)
    assert [int(x.max()) for x in found] == [0, 2, 4]
    with pytest.raises(InputError, match="no image could be read"):
        calibration_images(tiny_coco / "nowhere", (32, 32), 3)
    with pytest.raises(InputError, match="calibration_data: there are no images in it"):
        calibration_images([], (32, 32), 3)


def test_exports_in_threads_leave_the_output_to_the_program() -> None:
    before, entered, left = sys.stdout, threading.Event(), threading.Event()

    def first() -> None:
        with quiet():
            entered.set()
            left.wait(0.2)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with quiet():
        left.set()
        thread.join(1)
    assert sys.stdout is before


def test_a_folder_in_a_file_is_told_before_work_begins(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("mine")
    for folder in (tmp_path / "a.pth", tmp_path / "a.pth" / "new" / "er"):
        with pytest.raises(InputError, match=r"output_dir is .*a\.pth is no folder"):
            a_model().export(folder, verify=False)


def test_int8_needs_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"int8 needs calibration_data.*no run's config\.yaml"):
        a_model().export(tmp_path, format="openvino", dtype="int8")


def test_metadata_of_others_is_refused() -> None:
    own = metadata_of_model(a_model()).to_json()
    assert Metadata.from_json(own, "a.onnx").classes == {0: "cat", 1: "dog", 2: "owl"}
    for text, message in (
        ("{", "a.onnx: metadata: expected that of rfdetr, schema 1"),
        ("{}", "a.onnx: metadata"),
        (own.replace('"schema": 1', '"schema": 2'), "schema: .*found 2"),
        (own.replace('"program": "rfdetr"', '"program": "other"'), "program: .*'other'"),
        (own.replace('"0": "cat"', '"9": "cat"'), r"logits \[1, 2, 9\]: expected some of 0 to 3"),
        (own.replace('"detect"', '"segment"'), "a segmentation model has one"),
    ):
        with pytest.raises(InputError, match=message):
            Metadata.from_json(text, "a.onnx")


def test_the_background_is_what_has_no_name() -> None:
    assert metadata_of_model(a_model()).background == [3]
    coco = metadata_of_model(RFDETRSegMini(**TINY, num_classes=90))
    assert {0, 12, 83} <= set(coco.background)
    assert (coco.classes[1], coco.variant, coco.task) == ("person", "rfdetr-seg-mini", "segment")


def test_the_command_line_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, out = "rf-detr-mini.safetensors", str(tmp_path / "new")
    for options, message in (
        (["--format", "onxx"], "did you mean 'onnx'"),
        (["--dtype", "int8"], 'give format="openvino"'),
        (["--opset-version", "9"], "opset"),
    ):
        assert main(["export", name, "--out", out, *options]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert "Traceback" not in told
    assert not (tmp_path / "new").exists()


def test_what_another_export_has_written_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(work: Any, path: Path) -> Metadata:
        path.write_bytes(b"made")
        (tmp_path / "out" / "m.txt").write_text("theirs")
        return work.metadata

    monkeypatch.setitem(artifacts.ARTIFACTS, "text", artifacts.Format((".txt",), write, str))
    options = artifacts.Options((96, 96), name="m")
    work = artifacts.artifacts_of(a_model()._subject(), tmp_path / "out", ["text"], options)
    with pytest.raises(ValueError, match=r"m\.txt exists: give another output_dir"):
        work()
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["m.txt"]
    assert (tmp_path / "out" / "m.txt").read_text() == "theirs"


@pytest.mark.parametrize("name", ["../m", "a/b", ".hidden", "", "a\nb"])
def test_a_name_is_of_a_file_alone(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output_name.*without a folder"):
        a_model().export(tmp_path / "out", output_name=name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scale", [1, 16, 256])
def test_the_decoder_reads_deep_gray_as_we_do(scale: int) -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * scale
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.float32))):
        ours = upright_rgb(image)
        assert np.array_equal(np.asarray(rfdetr_decode.to_8_bits(image).convert("RGB")), ours)


def test_the_decoder_says_how_it_is_called() -> None:
    done = subprocess.run(
        [sys.executable, rfdetr_decode.__file__, "model.pt2"], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith("usage: python rfdetr_decode.py MODEL")
