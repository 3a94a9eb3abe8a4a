"""Send a server what no client should: whatever comes, it answers with a documented status, stays
well, and opens no file.

python scripts/fuzz_serve.py [--requests 10000]; needs `pip install schemathesis`. Half of the
requests are schemathesis's, made of the server's own OpenAPI document, right and wrong ones in
turn, with its checks of status, type and schema. The other half are damaged: image files in the
three forms of a body, bodies, and the heads of requests, with bits, parts and lengths changed. The
server runs in a folder of its own, and reports what it opens, connects to or starts (by Python's
audit hooks).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import faulthandler
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CLIENTS = 8  # of each kind, all at once
WATCHED = ("open", "os.", "shutil.", "tempfile.", "subprocess.", "socket.connect", "import")
HARMLESS = ("os.putenv",)
ALLOWED = {"gone", 200, 400, 404, 405, 408, 413, 415, 422, 431, 503, 504}
OPTIONS = ("threshold", "thresholds", "masks", "treshold", "path", "url", "")
VALUES = (
    "0",
    "0.5",
    "1",
    "-1",
    "2",
    "nan",
    "1e999",
    "true",
    "{}",
    '{"disc": 0.1}',
    "[" * 500,
    "\0",
)


def child() -> None:
    """`rfdetr serve` that, from SIGUSR1 on, writes what it opens as lines to the error stream."""
    armed = False

    def arm(*_: object) -> None:
        nonlocal armed
        armed = True

    def told(name: str, arguments: tuple[Any, ...]) -> None:
        if armed and name.startswith(WATCHED) and name not in HARMLESS:
            os.write(2, f"OPENED {name} {str(arguments)[:200]}\n".encode())

    from rfdetr.cli import main

    faulthandler.register(signal.SIGUSR2)
    sys.addaudithook(told)
    signal.signal(signal.SIGUSR1, arm)
    sys.exit(main(["serve", *sys.argv[2:]]))


class Target:
    """The server, and what came of the requests."""

    def __init__(self, port: int, process: Any) -> None:
        self.port, self.process = port, process
        self.address = f"http://127.0.0.1:{port}"
        self.statuses: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.faults: list[str] = []

    def count(self, status: int | str, what: object) -> None:
        with self._lock:
            self.statuses[str(status)] += 1
        if status == 504:  # rightly? where its threads are is written to the error stream
            self.process.send_signal(signal.SIGUSR2)
        if status not in ALLOWED:
            self.faults.append(f"{status} for {what!r:.300}")

    def ask(self, data: bytes, patience: float = 60) -> int:
        """Sends bytes over a connection of their own; the status, 0 where none comes in time."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=patience) as connection:
            answer = b""
            with contextlib.suppress(OSError):  # it may be answered before all is sent
                connection.sendall(data)
                while b"\r\n" not in answer and (more := connection.recv(4096)):
                    answer += more
        found = re.match(rb"HTTP/1\.1 (\d+) ", answer)
        return int(found[1]) if found else 0


def request(body: bytes, kind: str, query: str = "") -> bytes:
    head = f"POST /predict{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}"
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def images() -> list[bytes]:
    """Small files of every format."""
    from PIL import Image

    rng, files = random.Random(0), []
    image = Image.frombytes("RGB", (40, 30), rng.randbytes(3600))
    for name in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"):
        for how in ({}, {"progressive": True} if name == "JPEG" else {"compression": "tiff_lzw"}):
            stream = io.BytesIO()
            with contextlib.suppress(KeyError, OSError):  # this Pillow may not write it
                image.save(stream, name, **how)
                files.append(stream.getvalue())
    return files


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some changed, cut out, doubled or cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at = rng.randrange(len(changed) + 1)
        at = rng.randrange(min(len(changed), 64) + 1) if rng.random() < 0.3 else at  # the head
        span = slice(at, at + rng.choice((1, 1, 2, 4, 50)))
        action = rng.randrange(5)
        if action == 0:
            changed[span] = rng.randbytes(len(changed[span]))
        elif action == 1:
            del changed[span]
        elif action == 2:
            changed[at:at] = changed[span]
        elif action == 3:
            changed[span] = rng.choice((b"\xff", b"\0", b"\r\n", b"--b", b"\xff\xff\xff\xff"))
        elif rng.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def forms(image: bytes, rng: random.Random) -> bytes:
    """A request with an image in one of the forms, and with options that may be nonsense."""
    options = {rng.choice(OPTIONS): rng.choice(VALUES) for _ in range(rng.randrange(3))}
    form = rng.randrange(3)
    if form == 0:
        parts = [*options.items(), ("file", image)]
        body = b"".join(
            f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
            + (value if isinstance(value, bytes) else value.encode())
            + b"\r\n"
            for name, value in parts
        )
        return request(body + b"--b--\r\n", "multipart/form-data; boundary=b")
    if form == 1:
        content = {"image": base64.b64encode(image).decode(), **options}
        return request(json.dumps(content).encode(), "application/json")
    query = "&".join(f"{name}={value!r}" for name, value in options.items())
    query = "?" + re.sub(r"[^\w.=&{}:-]", "", query) if query else ""
    return request(image, rng.choice(("image/jpeg", "application/octet-stream", "x/y")), query)


def by_bytes(target: Target, count: int, seed: int) -> None:
    """Damaged files in whole requests, whole files in damaged bodies, and damaged requests."""
    rng, files = random.Random(seed), images()
    for number in range(count):
        image = rng.choice(files)
        if number % 3 == 0:
            data = forms(damaged(image, rng), rng)
        else:
            data = forms(image, rng)
            head, _, body = data.partition(b"\r\n\r\n")
            if number % 3 == 1:
                body = damaged(body, rng)
                head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head)
            else:
                head = damaged(head, rng)
            data = head + b"\r\n\r\n" + body
        # A damaged head may promise what never comes: then the client goes away.
        status = target.ask(data, 0.3) if number % 3 == 2 else target.ask(data)
        target.count(status or ("gone" if number % 3 == 2 else 0), data)


def by_schema(target: Target, count: int, seed: int) -> None:
    """What schemathesis makes of the document, with its checks."""
    import hypothesis
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.core.failures import FailureGroup
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        *(not_a_server_error, status_code_conformance, content_type_conformance),
        *(response_schema_conformance, response_headers_conformance),
    ]
    schema = schemathesis.openapi.from_url(f"{target.address}/openapi.json")
    quiet = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
    predict = schema["/predict"]["POST"]
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

        @hypothesis.seed(seed)
        @settings(max_examples=count // 2, **quiet)
        @given(case=predict.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            answer = case.call(base_url=target.address)
            target.count(answer.status_code, case.body)
            if answer.status_code not in (400, 503, 504):  # of HTTP itself, or of the load
                case.validate_response(answer, checks=checks)

        try:
            send()
        except (Exception, FailureGroup) as error:  # noqa: BLE001 - told as one fault
            target.faults.append(f"schemathesis, {mode}: {error}"[:2000])


@contextlib.contextmanager
def server(arguments: list[str], folder: Path, lines: list[str]) -> Iterator[Any]:
    """The server's process, and its port; what it writes to the error stream goes to `lines`."""
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "HOME": str(folder / "home")}
    for name in ("tmp", "home", "work"):
        (folder / name).mkdir()
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *arguments, "--port=0"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder / "work", env=environment, **pipes) as process:
        reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
        reader.start()
        found = re.match(r"http://127\.0\.0\.1:(\d+) ", process.stdout.readline())
        try:
            if found is None:
                raise SystemExit("the server did not start: " + "".join(lines))
            yield process, int(found[1])
        finally:
            process.kill()
            reader.join(10)


def memory_mib(process: Any) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", default="rf-detr-seg-mini.safetensors")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        limits = ["--timeout=20", "--max-pixels=1000000", "--max-bytes=1000000"]
        with server([args.checkpoint, *limits], folder, lines) as (process, port):
            target = Target(port, process)
            sound = request(images()[0], "image/jpeg")
            before = target.ask(request(b"", "image/jpeg")), memory_mib(process)
            process.send_signal(signal.SIGUSR1)
            share = -(-args.requests // (2 * CLIENTS))
            with ThreadPoolExecutor(2 * CLIENTS) as pool:
                running = [
                    pool.submit(send, target, share, seed)
                    for seed in range(args.seed, args.seed + CLIENTS)
                    for send in (by_schema, by_bytes)
                ]
            for done in running:
                done.result()
            statuses = [target.ask(sound) for _ in range(20)]
            health = target.ask(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            after = memory_mib(process)
            opened = [line for line in lines if line.startswith("OPENED ")]
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        left = [str(path) for path in folder.rglob("*") if path.is_file()]
    others = [line.strip() for line in lines if not line.startswith("OPENED ")]
    print(f"{sum(target.statuses.values())} requests: {dict(target.statuses)}")
    print(f"after them: healthz {health}, sound requests {Counter(statuses)}, exit code {code}")
    print(f"memory {before[1]:.0f} MiB before, {after:.0f} MiB after")
    print(f"files opened, connections, processes: {len(opened)}; files left: {len(left)}")
    print(f"lines on the error stream: {len(others)}", *Counter(others).most_common(5), sep="\n  ")
    well = health == 200 and set(statuses) == {200} and code == 0
    print(*(target.faults + opened + left)[:20], sep="\n")
    return bool(target.faults or opened or left or not well)


if __name__ == "__main__":
    sys.exit(main())
