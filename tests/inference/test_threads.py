"""Prediction from several threads at once: the same figures as one after the other."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from rfdetr import RFDETR, RFDETRMini

THREADS = 6
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (40 + 3 * i, 70 - i, 3), dtype=np.uint8) for i in range(12)]


@pytest.fixture(scope="module")
def detector() -> RFDETR:
    torch.manual_seed(0)
    return RFDETRMini(
        pretrain_weights=None, resolution=64, num_classes=3, num_select=20, device="cpu"
    )


def at_once(call: Callable[[int], Any], count: int) -> list[Any]:
    """Results of call(0), call(1), ... from threads that start together."""
    start = threading.Barrier(THREADS)

    def run(first: int) -> list[Any]:
        start.wait()
        return [call(i) for i in range(first, count, THREADS)]

    with ThreadPoolExecutor(THREADS) as pool:
        shares = list(pool.map(run, range(THREADS)))
    return [shares[i % THREADS][i // THREADS] for i in range(count)]


def figures(found: Any) -> tuple[list[Any], ...]:
    return found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist()


def test_threads_find_what_one_after_the_other_finds(detector: RFDETR) -> None:
    alone = [figures(detector.predict(image, threshold=0.0)) for image in IMAGES]
    together = at_once(
        lambda i: figures(detector.predict(IMAGES[i % len(IMAGES)], threshold=0.0)), 4 * len(IMAGES)
    )
    assert together == 4 * alone


def test_streams_side_by_side_keep_their_order(detector: RFDETR) -> None:
    alone = [figures(found) for found in detector.predict(IMAGES, threshold=0.0, batch_size=5)]

    def stream(_: object) -> list[object]:
        found = detector.predict_stream(IMAGES, 0.0, batch_size=5)
        return [figures(one.detections) for one in found]

    assert at_once(stream, THREADS) == [alone] * THREADS


def test_optimising_meanwhile_gives_each_batch_one_network_or_the_other(detector: RFDETR) -> None:
    image = IMAGES[0]
    exact = figures(detector.predict(image, threshold=0.0))
    detector.optimize_for_inference(dtype="bfloat16")
    rounded = figures(detector.predict(image, threshold=0.0))
    assert exact != rounded

    def call(i: int) -> Any:
        if i % THREADS == 0:
            detector.optimize_for_inference(dtype="float32" if i % (2 * THREADS) else "bfloat16")
            return exact
        return figures(detector.predict(image, threshold=0.0))

    found = at_once(call, 20 * THREADS)
    detector.optimize_for_inference(dtype="float32")
    assert all(one in (exact, rounded) for one in found)


def test_the_first_use_may_be_in_several_threads() -> None:
    program = """
import threading, warnings, numpy, torch
from rfdetr import RFDETRMini
settings = {"resolution": 64, "num_classes": 3, "num_select": 20, "device": "cpu"}
detector = RFDETRMini(pretrain_weights=None, **settings)
black = numpy.zeros((50, 60, 3), numpy.uint8)
before, found, start = list(warnings.filters), [], threading.Barrier(6)
def run():
    start.wait()
    found.append(detector.predict(black, threshold=0.0).confidence.tolist())
threads = [threading.Thread(target=run) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(found) == 6 and all(one == found[0] for one in found), found
added = [entry for entry in warnings.filters if entry not in before]
assert not [entry for entry in added if "OpenCV" in str(entry[1])]
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr


def test_predicting_leaves_warnings_and_threads_as_they_were(detector: RFDETR) -> None:
    before = (list(warnings.filters), torch.get_num_threads(), torch.is_grad_enabled())
    at_once(lambda i: detector.predict(IMAGES[i]), THREADS)
    assert (list(warnings.filters), torch.get_num_threads(), torch.is_grad_enabled()) == before
