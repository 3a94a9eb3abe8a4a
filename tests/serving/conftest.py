"""A tiny model behind a real server in a thread, and an engine that waits until it is let go."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import TINY

from rfdetr import RFDETR, RFDETRSegMini
from rfdetr.config import ServeConfig
from rfdetr.inference.engines import Outputs
from rfdetr.serving.server import Server
from rfdetr.serving.service import Service
from rfdetr.serving.sockets import address_of, open_socket

NAMES = ["blue", "green", "red"]


class Gate:
    """An engine that counts its calls, and waits in each until `opened` is set."""

    name = "gate"

    def __init__(self, engine: Any) -> None:
        self.engine, self.calls, self.opened = engine, list[int](), threading.Event()
        self.device, self.patch_size = engine.device, engine.patch_size

    def __call__(self, pixels: torch.Tensor) -> Outputs:
        self.calls.append(len(pixels))
        assert self.opened.wait(60)
        return self.engine(pixels)


class Live(NamedTuple):
    """A server that runs, and a client of it."""

    client: httpx.Client
    service: Service
    server: Server

    def wait_for(self, in_hand: int) -> None:
        wait_until(lambda: self.service.health.in_hand == in_hand)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def live(detector: Any, **limits: Any) -> Iterator[Live]:
    service = Service(detector, ServeConfig(**limits))
    service.warm_up()
    with open_socket("127.0.0.1", 0) as bound:
        bound.listen()
        server = Server(service)
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        with httpx.Client(base_url=address_of(bound), trust_env=False, timeout=60) as client:
            yield Live(client, service, server)
        server.should_exit = True
        thread.join()
    service.close()


def make_detector() -> RFDETR:
    torch.manual_seed(0)
    return RFDETRSegMini(**TINY, num_classes=3, class_names=NAMES, device="cpu")


def picture(seed: int = 0, size: tuple[int, int] = (60, 80), **how: Any) -> bytes:
    """The file of a noisy picture of (height, width); `how` goes to Pillow."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, **{"format": "PNG", **how})
    return stream.getvalue()


@pytest.fixture(scope="module")
def detector() -> RFDETR:
    return make_detector()


@pytest.fixture(scope="module")
def server(detector: RFDETR) -> Iterator[Live]:
    """For the tests that leave it as it is."""
    with live(detector, max_bytes=4 * 2**20, max_pixels=10**7) as running:
        yield running


@pytest.fixture
def gated() -> Iterator[tuple[RFDETR, Gate]]:
    """A detector whose network waits; open before and after."""
    detector = make_detector()
    gate = Gate(detector.model.engine())
    gate.opened.set()
    detector.model.use(gate)  # type: ignore[arg-type]
    yield detector, gate
    gate.opened.set()


_OPENED: list[str] = []
_WATCHED = ("open", "os.mkdir", "os.listdir", "os.scandir", "tempfile.mkstemp")


@pytest.fixture(scope="session")
def _hook() -> None:
    sys.addaudithook(lambda name, args: _OPENED.append(str(args)) if name in _WATCHED else None)


@pytest.fixture
def opened_files(_hook: None) -> list[str]:
    """What this process opens from now on, of files and folders."""
    _OPENED.clear()
    return _OPENED
