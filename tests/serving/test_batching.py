"""What has waited for the network goes through it together, and each gets its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image
from tests.serving.conftest import Gate, live, picture, wait_until

from rfdetr import RFDETR
from rfdetr.serving.batching import Batcher


def test_waiting_requests_share_a_call_and_have_their_own_results(
    gated: tuple[RFDETR, Gate], tmp_path: Any
) -> None:
    detector, gate = gated
    contents = [picture(seed, size=(40 + seed, 50)) for seed in range(6)]
    alone = []
    for content in contents:
        (tmp_path / "image.png").write_bytes(content)
        alone.append(detector.predict(tmp_path / "image.png", threshold=0.0))
    with live(detector, batch_size=4) as server, ThreadPoolExecutor(6) as pool:
        gate.calls.clear()
        gate.opened.clear()

        def ask(content: bytes) -> Any:
            headers = {"content-type": "image/png"}
            return server.client.post("/predict?threshold=0", content=content, headers=headers)

        answers = [pool.submit(ask, contents[0])]
        wait_until(lambda: gate.calls == [1])
        answers += [pool.submit(ask, content) for content in contents[1:]]
        server.wait_for(6)
        wait_until(lambda: server.service._batcher._waiting.qsize() == 5)
        gate.opened.set()
        found = [answer.result().json() for answer in answers]
    assert gate.calls == [1, 4, 1] and sorted(one["batch"] for one in found) == [1, 1, 4, 4, 4, 4]
    for seed, (one, expected) in enumerate(zip(found, alone, strict=True)):
        assert one["height"] == 40 + seed
        assert [x["class_id"] for x in one["detections"]] == expected.class_id.tolist()
        boxes = [x["box_xyxy"] for x in one["detections"]]
        assert boxes == [pytest.approx(box, abs=0.02) for box in expected.xyxy.tolist()]
        scores = [x["confidence"] for x in one["detections"]]
        assert scores == pytest.approx(expected.confidence.tolist(), abs=1e-4)


def test_one_that_fails_does_not_fail_its_neighbours() -> None:
    calls = []

    def halve(numbers: list[int]) -> list[float]:
        calls.append(numbers)
        return [100 / number for number in numbers]

    batcher: Batcher[int, float] = Batcher(halve, 8)
    futures = [batcher.submit(number) for number in (5, 0, 4, 2)]
    results = [future.exception() or future.result().result for future in futures]
    assert results[0::2] == [20, 25] and results[3] == 50
    assert isinstance(results[1], ZeroDivisionError)
    cancelled = batcher.submit(1)
    if cancelled.cancel():
        assert [1] not in calls
    last = batcher.submit(10)
    batcher.close(5)
    assert last.result(0).result == 10  # what was submitted before the end is done


def test_a_damaged_file_among_good_ones(gated: tuple[RFDETR, Gate]) -> None:
    detector, _ = gated
    contents = [picture(seed) for seed in range(6)]
    contents[2] = contents[2][:500]
    with live(detector) as server, ThreadPoolExecutor(6) as pool:
        asked = [
            pool.submit(server.client.post, "/predict", files={"file": content})
            for content in contents
        ]
        assert [one.result().status_code for one in asked] == [200, 200, 422, 200, 200, 200]
    assert Image.MAX_IMAGE_PIXELS is not None  # a server changes nothing of the process
