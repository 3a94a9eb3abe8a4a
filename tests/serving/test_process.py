"""`rfdetr serve` as a process: its line, its end by a signal, and what it cannot do."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from tests.inference.test_engines import CLASSES, METADATA, write_onnx
from tests.serving.conftest import NAMES, make_detector, wait_until

from rfdetr import RFDETRSegMini
from rfdetr.cli import main
from rfdetr.inference.records import objects_of
from rfdetr.serving.sockets import address_of, is_open_to_others, open_socket
from rfdetr.synthetic.generate import generate
from rfdetr.weights.writing import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, detector = tmp_path_factory.mktemp("serve") / "tiny.pth", make_detector()
    save_checkpoint(path, detector.weights(), detector.model_config, NAMES)
    return path


@contextmanager
def process(*arguments: object) -> Iterator[tuple[Any, str]]:
    """`rfdetr serve` with the arguments, and its first line."""
    command = [sys.executable, "-m", "rfdetr", "serve", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout
            yield running, running.stdout.readline()
        finally:
            running.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.scheduled)]
)
def test_a_signal_ends_it_after_what_is_in_hand(checkpoint: Path, number: int) -> None:
    """Images that take some tenths of a second to decode, so that the signal comes before."""
    stream = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(stream, "PNG", compress_level=1)
    content = stream.getvalue()
    with process(checkpoint, "--port=0", "--dtype=bfloat16") as (running, line):
        told = r"(http://127.0.0.1:\d+) serves .*tiny\.pth \(seg-mini, 3 classes\) by torch bfl"
        found = re.match(told, line)
        assert found, line
        with (
            httpx.Client(base_url=found[1], trust_env=False, timeout=60) as client,
            ThreadPoolExecutor(2) as pool,
        ):
            asked = [
                pool.submit(client.post, "/predict", files={"file": content}) for _ in range(2)
            ]
            wait_until(lambda: client.get("/healthz").json()["in_hand"] == 2)
            running.send_signal(number)
            assert [answer.result().status_code for answer in asked] == [200] * 2
            assert running.wait(20) == 0
            with pytest.raises(httpx.ConnectError):
                client.get("/healthz")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "engine"),
    [("xml", "openvino"), pytest.param("onnx", "onnx", marks=pytest.mark.scheduled)],
)
def test_an_artifact_is_served_and_finds_what_the_network_finds(
    seg_mini_exports: Path, tmp_path: Path, ending: str, engine: str
) -> None:
    image, *_ = sorted(generate(tmp_path / "data", 6, CLASSES).glob("train/*.jpg"))
    with process(seg_mini_exports / f"inference_model.{ending}", "--port=0") as (running, line):
        found = re.match(rf"(http://\S+) serves .*model\.{ending} .* by {engine}", line)
        assert found, line
        answer = httpx.post(
            f"{found[1]}/predict", content=image.read_bytes(), trust_env=False, timeout=60,
            params={"threshold": 0.3, "masks": True}, headers={"content-type": "image/jpeg"},
        ).json()  # fmt: skip
        running.terminate()
        assert running.wait(20) == 0
    model = RFDETRSegMini(device="cpu")
    want = objects_of(model.predict(image, threshold=0.3), (answer["height"], answer["width"]))
    assert len(want) > 0
    for one, other in zip(answer["detections"], want, strict=True):
        assert one["class_name"] == other["class_name"] and "counts" in one["mask_rle"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-3)
        assert one["box_xyxy"] == pytest.approx(other["box_xyxy"], abs=0.1)


def test_what_cannot_be_is_one_line_and_code_2(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = write_onnx(tmp_path / "m.onnx", METADATA.to_json())
    with open_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = f"--port={taken.getsockname()[1]}"
        for arguments, told in (
            ([tmp_path / "absent.pth", port], "Address already in use; choose another"),
            ([tmp_path / "absent.pth", "--port=0"], "absent.pth"),
            ([checkpoint, "--port=0", "--host=no.such.host.invalid"], "cannot be listened on"),
            ([checkpoint, "--port=99999"], "expected 0 to 65535"),
            ([checkpoint, "--port=0", "--queue=0"], "queue: Input should be greater"),
            ([checkpoint, "--port=0", "--backend=onnx", "--dtype=bfloat16"], "is float32"),
            ([checkpoint, "--port=0", "--dtype=int8"], "int8"),
            ([onnx, "--port=0", "--dtype=bfloat16"], "served as it is"),
            ([onnx, "--port=0", "--device=cuda"], "runs on the CPU"),
        ):
            assert main(["serve", *map(str, arguments)]) == 2, arguments
            err = capsys.readouterr().err.replace("seg-mini: ", "")
            lines = [line for line in err.splitlines() if line.startswith("rfdetr: ")]
            assert len(lines) == 1 and told in lines[0], err


def test_a_missing_extra_is_told_before_the_model_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "rfdetr.serving.server", raising=False)
    assert main(["serve", "absent.pth", "--port=0"]) == 2
    assert "pip install 'rfdetr-finetune[serve]'" in capsys.readouterr().err


def test_who_can_reach_it_is_known() -> None:
    for host, address, others in (
        ("127.0.0.1", "http://127.0.0.1:", False),
        ("localhost", "http://", False),
        ("0.0.0.0", "http://0.0.0.0:", True),
    ):
        with open_socket(host, 0) as bound:
            assert address_of(bound).startswith(address)
            assert is_open_to_others(bound) is others
