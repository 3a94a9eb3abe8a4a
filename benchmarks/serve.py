"""A server under load: clients that each ask again as soon as they are answered, beside the bare
network.

    python benchmarks/serve.py
    python benchmarks/serve.py output/checkpoint_best_total.pth --seconds 60 --backend openvino

Everything runs on one machine: what the clients take is missing to the server. The bare network
runs before, alone, on full batches: `network` is it and nothing else, `predict` decodes too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import _common

HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
SERVED = "backend", "dtype", "batch_size"
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Asked(NamedTuple):
    """An answer: status, seconds, images in its batch (0: none)."""

    status: int
    seconds: float
    batch: int


async def client(port: int, bodies: list[bytes], until: float, log: list[Asked]) -> None:
    """Asks over one connection until the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = len(log)
    while (begun := time.perf_counter()) < until:
        body = bodies[number % len(bodies)]
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        told = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(told)
        content = json.loads(await reader.readexactly(int(length[1]) if length else 0))
        status = int(told.split(b" ", 2)[1])
        log.append(Asked(status, time.perf_counter() - begun, content.get("batch", 0)))
        number += 1
    writer.close()


async def load(port: int, bodies: list[bytes], seconds: float, clients: int) -> list[Asked]:
    log: list[Asked] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, bodies, until, log) for _ in range(clients)))
    return log


def bare(args: argparse.Namespace, paths: list[Path]) -> dict[str, float]:
    """Images a second of the network alone, and of `predict` from the same files."""
    import torch

    from rfdetr.cli.options import open_model
    from rfdetr.data.images import decode_image

    detector = open_model(args.checkpoint, None)
    if (args.backend, args.dtype) != ("torch", "float32"):
        how = {"backend": args.backend, "dtype": args.dtype}
        detector.optimize_for_inference(compile=False, **how)
    paths = (paths * args.batch_size)[: args.batch_size]
    images = [decode_image(path) for path in paths]
    pixels = detector.model.preprocess(images)
    sizes = torch.tensor([image.shape[:2] for image in images])
    network = _common.median_seconds(lambda: detector.model.detect(pixels, sizes), 15, 3)
    predict = _common.median_seconds(
        lambda: detector.predict(paths, batch_size=args.batch_size), 15, 3
    )
    count = args.batch_size
    return {"network_per_s": count / network, "predict_per_s": count / predict}


@contextlib.contextmanager
def server(checkpoint: str, arguments: list[str]) -> Any:
    """The port of `rfdetr serve`; at the end SIGTERM, which must end it with 0."""
    command = [sys.executable, "-m", "rfdetr", "serve", checkpoint, "--port=0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+) ", line)
        if found is None:
            raise SystemExit(f"the server did not start: {line}")
        try:
            yield int(found[1]), process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    if code:
        raise SystemExit(f"the server ended with {code}")


def memory_mib(pid: int) -> float:
    """Largest resident memory of a process so far (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def add_arguments(parser: Any) -> None:
    parser.add_argument("checkpoint", nargs="?", default="rf-detr-mini.safetensors")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=8)


def work(args: argparse.Namespace) -> dict[str, float]:
    """Answers a second, milliseconds of an answer, and the shares of what the bare network gives;
    `refused` are answers that are no 200.
    """
    served = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in SERVED]
    with tempfile.TemporaryDirectory() as folder:
        _common.write_dataset(Path(folder), images=16, size=(640, 480))
        paths = sorted(Path(folder, "train").glob("*.jpg"))
        alone = bare(args, paths)
        bodies = [path.read_bytes() for path in paths]
        with server(args.checkpoint, served) as (port, pid):
            asyncio.run(load(port, bodies, 2, args.clients))  # warm
            begun = time.perf_counter()
            log = asyncio.run(load(port, bodies, args.seconds, args.clients))
            took = time.perf_counter() - begun
            memory = memory_mib(pid)
    cuts = statistics.quantiles([one.seconds for one in log], n=100)
    rate = len(log) / took
    return {
        **alone,
        "per_s": rate,
        **{f"p{at}_ms": 1000 * cuts[at - 1] for at in (50, 95, 99)},
        "batch": statistics.mean(one.batch for one in log),
        "of_network": rate / alone["network_per_s"],
        "of_predict": rate / alone["predict_per_s"],
        "memory_mib": memory,
        "refused": float(sum(one.status != 200 for one in log)),
    }


if __name__ == "__main__":
    _common.main(work, add_arguments)
