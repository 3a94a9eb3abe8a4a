from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rfdetr.proof.measuring import Latency, Loading, file_size, latencies, peak_memory
from rfdetr.weights.load import resolve_weights


def test_models_take_turns_in_both_orders_and_each_turn_is_warmed_up() -> None:
    seen: list[tuple[str, int]] = []
    calls = {
        name: lambda number, name=name: seen.append((name, number)) for name in ("one", "other")
    }
    times = latencies(calls, range(2))
    turn = [0, 0, 1, 2, 3], [4, 4, 5, 6, 7]
    assert seen == [
        *(("one", number) for number in turn[0]),
        *(("other", number) for number in turn[0]),
        *(("other", number) for number in turn[1]),
        *(("one", number) for number in turn[1]),
    ]
    assert all(0 <= one.median <= one.p95 for one in times.values())


def test_a_latency_is_the_middle_and_the_slow_end() -> None:
    assert Latency.of(list(np.arange(101.0))) == (50, 95)


@pytest.mark.slow
def test_memory_is_that_of_another_process(drawn: Path) -> None:
    image = next((drawn / "valid").glob("*.jpg"))
    held = np.ones(700 * 2**20, np.uint8)  # of this one, 700 MiB
    peak = peak_memory(Loading(resolve_weights("rf-detr-mini.safetensors"), False), [image])
    assert isinstance(peak, float) and 100 < peak < 700
    assert held.nbytes
    assert peak_memory(None, [image]) == "not measured: the model is in no file"


@pytest.mark.slow
def test_memory_that_cannot_be_measured_says_why(drawn: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no checkpoint")
    text = peak_memory(Loading(broken, False), [*drawn.glob("valid/*.jpg")][:1])
    assert isinstance(text, str) and text.startswith("not measured: ") and "broken.pth" in text


@pytest.mark.parametrize(("name", "size"), [("a.onnx", 3), ("b.xml", 12)])
def test_the_size_of_a_model_is_that_of_all_its_files(name: str, size: int, tmp_path: Path) -> None:
    for file, length in (("a.onnx", 3), ("b.xml", 5), ("b.bin", 7)):
        (tmp_path / file).write_bytes(b"x" * length)
    assert file_size(tmp_path / name) == size
