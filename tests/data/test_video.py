"""Films: every frame with its time, a variable rate, and films that are damaged or none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rfdetr.cli import main
from rfdetr.data.video import FilmWriter, is_video, read_frames
from rfdetr.errors import InputError

pytest.importorskip("av")
TIMES = [0.0, 0.04, 0.08, 0.5, 0.54, 2.0]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    writer = FilmWriter(path)
    for number, seconds in enumerate(TIMES):
        writer.write(np.full((49, 64, 3), 40 * number, np.uint8), seconds)
    writer.close()
    return path


def test_frames_have_their_own_times(film: Path) -> None:
    frames = list(read_frames(film))
    assert [frame.number for frame in frames] == list(range(6))
    assert [frame.seconds for frame in frames] == pytest.approx(TIMES, abs=0.001)
    for frame in frames:
        assert frame.image.shape == (48, 64, 3)
        assert abs(float(frame.image.mean()) - 40 * frame.number) < 6
    assert [frame.number for frame in read_frames(film, every=4)] == [0, 4]


def test_what_is_no_film_is_one_error(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "half.mp4").write_bytes(film.read_bytes()[:200])
    for name, told in (
        ("text.mp4", "cannot be read as a film"),
        ("half.mp4", "cannot be read as a film"),
        ("none.mp4", "no such film"),
    ):
        with pytest.raises(InputError, match=f"{name}: {told}"):
            list(read_frames(tmp_path / name))
    assert is_video("0") and is_video("rtsp://camera/1") and is_video("a.MOV")
    assert not is_video("a.jpg") and not is_video("http://host/a.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0").mkdir()
    assert not is_video("0")


@pytest.mark.slow
def test_the_command_writes_a_film_and_a_line_for_each_frame(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["predict", "rf-detr-mini.safetensors", str(film), "--out", str(out), "--every", "2"]
    assert main(command) == 0
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 2, 4]
    assert [frame.seconds for frame in read_frames(out / "film.mp4")] == pytest.approx(
        [TIMES[0], TIMES[2], TIMES[4]], abs=0.002
    )
    before = (out / "predictions.jsonl").read_bytes()
    assert main(command) == 2 and (out / "predictions.jsonl").read_bytes() == before
