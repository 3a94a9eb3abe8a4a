"""What a server answers is what `predict` finds in the same file, whatever form it comes in."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.inference.test_engines import METADATA, write_onnx
from tests.serving.conftest import Live, live, picture

from rfdetr import RFDETR
from rfdetr.inference.records import objects_of
from rfdetr.serving.wire import Answer

DOCS = Path(__file__).parents[2] / "docs" / "serve.md"
RNG = np.random.default_rng(5)


def saved(image: Image.Image, **how: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **how)
    return stream.getvalue()


def turned_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(1, format="JPEG", exif=exif)


FILES = {
    "turned JPEG": turned_jpeg,
    "alpha": lambda: saved(
        Image.fromarray(RNG.integers(0, 256, (40, 50, 4), np.uint8)), format="PNG"
    ),
    "16 bit": lambda: saved(
        Image.fromarray(RNG.integers(0, 2**16, (40, 50), np.uint16)), format="PNG"
    ),
    "gray": lambda: saved(Image.fromarray(RNG.integers(0, 256, (40, 50), np.uint8)), format="JPEG"),
}


def found_by_predict(detector: Any, content: bytes, tmp_path: Path, **how: Any) -> Any:
    (tmp_path / "image").write_bytes(content)
    found = detector.predict(tmp_path / "image", **{"threshold": 0.0, **how})
    return objects_of(found, found.metadata["source_image"].shape[:2])


def as_form(server: Live, content: bytes, **options: Any) -> Any:
    return server.client.post("/predict", files={"file": ("a b.x", content)}, data=options)


def as_it_is(server: Live, content: bytes, **options: Any) -> Any:
    kind = {"content-type": "image/x-anything"}
    return server.client.post("/predict", content=content, headers=kind, params=options)


def as_json(server: Live, content: bytes, **options: Any) -> Any:
    options = {name: json.loads(value) for name, value in options.items()}
    text = base64.encodebytes(content).decode()  # with line ends
    return server.client.post("/predict", json={"image": text, **options})


FORMS = [as_form, as_it_is, as_json]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", FILES)
def test_the_answer_is_that_of_predict(
    server: Live, detector: RFDETR, tmp_path: Path, form: Any, kind: str
) -> None:
    content = FILES[kind]()
    answer = form(server, content, threshold="0", masks="true").json()
    assert answer["detections"] == found_by_predict(detector, content, tmp_path)
    assert len(answer["detections"]) >= 5 and answer["batch"] == 1
    if kind == "turned JPEG":
        assert (answer["width"], answer["height"]) == (60, 80)
    Answer.model_validate(answer)


@pytest.mark.parametrize("form", FORMS)
def test_thresholds_are_those_of_predict(
    server: Live, detector: RFDETR, tmp_path: Path, form: Any
) -> None:
    content = picture(2)
    every = found_by_predict(detector, content, tmp_path)
    own = sorted(found["confidence"] for found in every if found["class_name"] == "red")
    by_class = {"red": own[0] - 1e-4, "blue": 1.0}
    least = np.median([found["confidence"] for found in every])
    answer = form(server, content, threshold=f"{least}", thresholds=json.dumps(by_class))
    expected = found_by_predict(detector, content, tmp_path, threshold=least, thresholds=by_class)
    for found in expected:
        del found["mask_rle"]  # not asked for
    assert answer.json()["detections"] == expected
    assert 0 < len(expected) < len(every)


def test_an_exported_model_is_served_as_it_is(tmp_path: Path) -> None:
    one = METADATA.model_copy(update={"input": METADATA.input.model_copy(update={"batch": 1})})
    detector = RFDETR.from_export(write_onnx(tmp_path / "m.onnx", one.to_json()))
    with live(detector) as server:
        info = server.client.get("/info").json()
        assert info["engine"] == "onnx" and info["classes"] == {"0": "cat", "1": "dog"}
        assert info["weights_sha256"] == "0" and info["resolution"] == [32, 32]
        content = picture()
        found = as_it_is(server, content, threshold="0.5").json()["detections"]
        assert found == found_by_predict(detector, content, tmp_path, threshold=0.5)
        assert {one["class_name"] for one in found} == {"cat", "dog"}
        assert "finds boxes alone" in as_form(server, content, masks="true").json()["detail"]


def test_openapi_holds(server: Live) -> None:
    document = server.client.get("/openapi.json").json()
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert named == set(document["components"]["schemas"])
    predict = document["paths"]["/predict"]["post"]
    assert {"200", "408", "413", "415", "422", "503", "504"} == set(predict["responses"])
    example = predict["requestBody"]["content"]["application/json"]["example"]
    Answer.model_validate(server.client.post("/predict", json=example).json())
    Answer.model_validate(predict["responses"]["200"]["content"]["application/json"]["example"])
    assert set(document["paths"]) == {"/predict", "/info", "/healthz"}


def test_what_is_served_is_told(server: Live, detector: RFDETR) -> None:
    info = server.client.get("/info").json()
    digest = info.pop("weights_sha256")
    limits = info.pop("limits")
    assert info == {
        "version": info["version"], "variant": "seg-mini", "task": "segment",
        "classes": {"0": "blue", "1": "green", "2": "red"}, "resolution": [64, 64],
        "engine": "torch", "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    assert len(digest) == 64 and limits["max_pixels"] == 10**7
    health = server.client.get("/healthz")
    assert health.json() == {"status": "ready", "in_hand": 0} and health.status_code == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_of_the_guide_run(server: Live, tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(curl.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "photo.jpg").write_bytes(picture(format="JPEG"))
    text = "".join(blocks).replace("http://127.0.0.1:8000", str(server.client.base_url).rstrip("/"))
    text = text.replace("curl ", "curl --fail --silent --noproxy '*' -w '\\n' ")
    done = subprocess.run(
        ["bash", "-ec", text], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    *answers, info, health, document = map(json.loads, done.stdout.splitlines())
    assert [answer["threshold"] for answer in answers] == [0.4] * 3
    assert info["task"] == "segment" and health["status"] == "ready" and document["openapi"]


def test_a_request_opens_no_file(server: Live, opened_files: list[str]) -> None:
    """Of more than the megabyte from which forms are kept on the disk elsewhere, too."""
    content = picture(size=(900, 1000))
    assert len(content) > 2**21
    opened_files.clear()
    for form in FORMS:
        assert form(server, content, threshold="0").status_code == 200
    assert as_form(server, b"no image").status_code == 415
    assert as_form(server, content[:600]).status_code == 422
    for path in ("/", "/page.js", "/info"):
        assert server.client.get(path).status_code == 200
    assert opened_files == []
