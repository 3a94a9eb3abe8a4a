"""What a server does not take: each is told in one line, with a status of its own."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.conftest import Gate, Live, live, picture, wait_until

from rfdetr import RFDETR
from rfdetr.serving.uploads import form_fields

JPEG = {"content-type": "image/jpeg"}
FORM = {"content-type": "multipart/form-data; boundary=b"}
JSON = {"content-type": "application/json"}


def png_header(width: int, height: int) -> bytes:
    """The first bytes of a PNG that claims a size; no pixel follows."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    size, check = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(chunk))
    data = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + size + chunk + check + data


def part(name: str, content: bytes, head: str = "") -> bytes:
    told = f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n{head}\r\n'
    return told.encode() + content + b"\r\n"


END = b"--b--\r\n"
WHOLE = picture()
REFUSED: dict[str, tuple[int, bytes, dict[str, str], str]] = {
    "bytes": (413, b"x" * (4 * 2**20 + 1), JPEG, "larger than 4,194,304 bytes"),
    "pixels": (413, png_header(5000, 5000), JPEG, "5000 x 5000 pixels: expected at most 10,000,"),
    "bomb": (413, png_header(10**6, 10**6), JPEG, "1000000000000 pixels"),
    "no image": (415, b"GIF89 but not really", JPEG, "no known image format"),
    "a program": (415, b"%!PS\n(x) show", JPEG, "no known image format"),
    "damaged": (422, WHOLE[:600], JPEG, "cannot be decoded"),
    "empty": (422, b"", JPEG, "the body is empty"),
    "kind": (415, WHOLE, {"content-type": "text/plain"}, "content-type is text/plain: expected"),
    "no kind": (415, WHOLE, {}, "content-type is none: expected"),
    "packed": (415, WHOLE, {**JPEG, "content-encoding": "gzip"}, "send the body as it is"),
    "no JSON": (422, b"{", JSON, "Invalid JSON"),
    "deep JSON": (422, b"[" * 10**5, JSON, "Invalid JSON"),
    "other JSON": (422, b"[1]", JSON, "should be an object"),
    "no image in JSON": (422, b'{"threshold": 1}', JSON, "image: Field required"),
    "no base64": (422, b'{"image": "@@@"}', JSON, "image: no base64"),
    "file name in JSON": (422, b'{"image": "/etc/passwd"}', JSON, "image: no base64"),
    "address in JSON": (422, b'{"image": "file:///etc/passwd"}', JSON, "image: no base64"),
    "text for a number": (422, b'{"image": "x", "threshold": "1"}', JSON, "threshold: Input"),
    "no boundary": (422, END, {"content-type": "multipart/form-data"}, "names no boundary"),
    "no end": (422, part("file", WHOLE), FORM, "the form is broken"),
    "no head": (422, b"--b\r\nx\r\n" + END, FORM, "has no name"),
    "many parts": (422, part("x", b"1") * 50 + END, FORM, "at most 16 fields"),
    "long head": (422, part("file", WHOLE, "X: " + "x" * 9000) + END, FORM, "the form is broken"),
    "no name": (422, b"--b\r\nX: 1\r\n\r\n1\r\n" + END, FORM, "has no name"),
    "no file": (422, part("threshold", b"1") + END, FORM, "no file in the form"),
    "twice": (422, part("file", b"1") * 2 + END, FORM, "'file' is given twice"),
    "unknown": (422, part("file", WHOLE) + part("treshold", b"1") + END, FORM, "treshold: Extra"),
    "threshold": (422, part("file", WHOLE) + part("threshold", b"2") + END, FORM, "less than or"),
    "NaN": (422, part("file", WHOLE) + part("threshold", b"nan") + END, FORM, "threshold: Input"),
    "class": (422, part("file", WHOLE) + part("thresholds", b'{"dog": 1}') + END, FORM, "'dog'"),
    "no object": (422, part("file", WHOLE) + part("thresholds", b"0.5") + END, FORM, "dictionary"),
    "share": (422, part("file", WHOLE) + part("thresholds", b'{"red": 7}') + END, FORM, "than or"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _still_well(server: Live) -> Iterator[None]:
    yield
    assert server.client.get("/healthz").json() == {"status": "ready", "in_hand": 0}
    assert server.client.post("/predict", content=WHOLE, headers=JPEG).status_code == 200


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_told(server: Live, name: str) -> None:
    status, content, headers, told = REFUSED[name]
    answer = server.client.post("/predict", content=content, headers=headers)
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    assert told in answer.json()["detail"] and "\n" not in answer.json()["detail"]


def test_an_option_in_the_address_and_in_the_body_is_told(server: Live) -> None:
    form = {"files": {"file": WHOLE}, "data": {"threshold": "0.5"}}
    answer = server.client.post("/predict?threshold=0.4", **form)  # type: ignore[arg-type]
    assert answer.status_code == 422 and "'threshold' is given twice" in answer.text
    answer = server.client.post("/predict?path=/etc/passwd", content=WHOLE, headers=JPEG)
    assert answer.status_code == 422 and "path: Extra inputs" in answer.text


def test_a_body_without_a_length_is_bounded_too(server: Live) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 2**26:
            sent += 2**16
            yield b"x" * 2**16

    answer = server.client.post("/predict", content=endless(), headers=JPEG)
    assert answer.status_code == 413


def test_other_addresses_and_methods_are_told(server: Live) -> None:
    assert server.client.get("/docs").json() == {"detail": "Not Found"}
    assert server.client.get("/predict").json() == {"detail": "Method Not Allowed"}


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.text("abc", min_size=1), st.binary()), max_size=5),
    st.sampled_from(["b", "----WebKitFormBoundary7", "x" * 70]),
)
def test_a_form_is_read_as_it_was_written(fields: list[tuple[str, bytes]], boundary: str) -> None:
    line = b"\r\n--" + boundary.encode()
    fields = [(name, content) for name, content in fields if line not in b"\r\n" + content]
    body = b"".join(part(name, content).replace(b"--b", line[2:], 1) for name, content in fields)
    assert form_fields(body + line[2:] + b"--", boundary) == fields


def test_a_slow_body_and_a_slow_answer_end_in_time(gated: tuple[RFDETR, Gate]) -> None:
    detector, gate = gated
    with live(detector, timeout=0.3) as server:
        with socket.create_connection((server.client.base_url.host, _port(server))) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nslow")
            assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
        gate.opened.clear()
        answer = server.client.post("/predict", content=WHOLE, headers=JPEG)
        assert answer.status_code == 504 and "no answer within 0.3 seconds" in answer.text
        gate.opened.set()
        wait_until(lambda: server.client.post("/predict", content=WHOLE, headers=JPEG).is_success)


def _port(server: Live) -> int:
    return server.client.base_url.port or 0


def test_a_full_queue_is_told_before_the_body_is_read(gated: tuple[RFDETR, Gate]) -> None:
    detector, gate = gated
    with live(detector, queue=2) as server, ThreadPoolExecutor(2) as pool:
        gate.opened.clear()
        waiting = [
            pool.submit(server.client.post, "/predict", content=WHOLE, headers=JPEG)
            for _ in range(2)
        ]
        server.wait_for(2)
        health = server.client.get("/healthz")
        assert health.status_code == 503 and health.json()["status"] == "overloaded"
        with socket.create_connection((server.client.base_url.host, _port(server))) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n")
            head = client.recv(4096)
            assert head.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 1\r\n" in head
        gate.opened.set()
        assert [answer.result().status_code for answer in waiting] == [200, 200]
        assert server.client.get("/healthz").json() == {"status": "ready", "in_hand": 0}


def test_a_client_that_goes_away_leaves_nothing(gated: tuple[RFDETR, Gate]) -> None:
    """Neither in the middle of its body, nor while it waits: then its image is never looked at."""
    detector, gate = gated
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    head += f"Content-Length: {len(WHOLE)}\r\n\r\n"
    with live(detector) as server, ThreadPoolExecutor(1) as pool:
        gate.calls.clear()
        gate.opened.clear()
        first = pool.submit(server.client.post, "/predict", content=WHOLE, headers=JPEG)
        wait_until(lambda: gate.calls == [1])
        for content in (WHOLE[:100], WHOLE):
            with socket.create_connection((server.client.base_url.host, _port(server))) as client:
                client.sendall(head.encode() + content)
                server.wait_for(2)
                time.sleep(0.1)  # so that a whole one waits for the network
            server.wait_for(1)
        gate.opened.set()
        assert first.result().status_code == 200
        assert server.client.post("/predict", content=WHOLE, headers=JPEG).status_code == 200
        assert gate.calls == [1, 1]


def test_what_is_in_hand_at_the_end_is_answered(gated: tuple[RFDETR, Gate]) -> None:
    """Wholly, where the time that a stop has is enough; else with 503."""
    detector, gate = gated
    for stop_timeout, status in ((20.0, 200), (0.2, 503)):
        gate.opened.set()
        with live(detector, stop_timeout=stop_timeout) as server, ThreadPoolExecutor(1) as pool:
            gate.opened.clear()
            answer = pool.submit(server.client.post, "/predict", content=WHOLE, headers=JPEG)
            server.wait_for(1)
            server.server.handle_exit(15, None)
            assert server.service.health.status == "stopping"
            threading.Timer(0.5, gate.opened.set).start()
            assert answer.result().status_code == status
            detail = json.loads(answer.result().content).get("detail")
            assert detail == (None if status == 200 else "the server is stopping")


def test_errors_of_the_network_are_not_hidden(
    gated: tuple[RFDETR, Gate], caplog: pytest.LogCaptureFixture
) -> None:
    detector, gate = gated
    with live(detector) as server:

        def fail(_: Any) -> Any:
            raise RuntimeError("lost")

        gate.engine = fail
        assert server.client.post("/predict", content=WHOLE, headers=JPEG).status_code == 500
    assert "lost" in caplog.text
