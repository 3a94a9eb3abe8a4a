"""Films: every frame with its time, a variable rate, films that are turned, damaged or none, and
addresses.
"""

from __future__ import annotations

import functools
import json
import logging
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rfdetr.cli import main
from rfdetr.data import video
from rfdetr.data.images import ImageError
from rfdetr.data.video import FilmWriter, is_video, read_frames
from rfdetr.errors import InputError
from rfdetr.variants import RFDETRMini

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


@pytest.mark.parametrize(
    ("matrix", "corner"),  # of the film's header: a b c d; where the upper left corner then is
    [
        ((0, 1, -1, 0), "upper right"),
        ((-1, 0, 0, -1), "lower right"),
        ((0, -1, 1, 0), "lower left"),
    ],
)
def test_a_film_is_turned_as_it_asks_for(tmp_path: Path, matrix: Any, corner: str) -> None:
    path, one = tmp_path / "film.mp4", 1 << 16
    writer = FilmWriter(path)
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:16, :16] = 255
    writer.write(picture, 0.0)
    writer.close()
    content = path.read_bytes()
    upright = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    place = content.index(upright, content.index(b"tkhd"))
    a, b, c, d = (value * one for value in matrix)
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:place] + turned + content[place + len(turned) :])
    image = next(read_frames(path)).image
    assert image.shape == ((48, 64, 3) if corner == "lower right" else (64, 48, 3))
    rows, columns = np.nonzero(image[..., 0] > 128)
    down, right = rows.mean() > image.shape[0] / 2, columns.mean() > image.shape[1] / 2
    assert corner == f"{'lower' if down else 'upper'} {'right' if right else 'left'}"


def write_noise(path: Path, count: int, size: tuple[int, int] = (64, 96)) -> Path:
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 12
        for number in range(count):
            picture = np.random.default_rng(number).integers(0, 60, (*size, 3), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def test_a_damaged_middle_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_noise(tmp_path / "film.mp4", 60)
    content = bytearray(path.read_bytes())
    first, last = len(content) * 4 // 10, len(content) // 2
    content[first:last] = np.random.default_rng(0).bytes(last - first)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        numbers = [frame.number for frame in read_frames(path)]
    assert 40 < len(numbers) < 60 and numbers[-1] == 59
    assert (
        f"{60 - len(numbers)} damaged frames are left out, {len(numbers)} are read" in caplog.text
    )


def test_a_film_that_ends_before_its_header_says_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_noise(tmp_path / "film.mkv", 100)
    with caplog.at_level(logging.WARNING):
        assert len(list(read_frames(path))) == 100
    assert not caplog.messages
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with caplog.at_level(logging.WARNING):
        count = len(list(read_frames(path)))
    assert 30 < count < 90
    assert f"ends after {count} frames: its header says that it goes on to 4.0 s" in caplog.text


def test_names_with_a_colon_are_files(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(film.parent)
    film.rename("10:20:30.mp4")
    assert len(list(read_frames("10:20:30.mp4"))) == len(TIMES)
    writer = FilmWriter(Path("cam:1.mp4"))
    writer.write(np.zeros((48, 64, 3), np.uint8), 0.0)
    writer.close()
    assert len(list(read_frames("cam:1.mp4"))) == 1


def test_times_that_go_back_and_other_sizes_go_on(tmp_path: Path) -> None:
    writer = FilmWriter(tmp_path / "film.mp4")
    for seconds in (0.2, 0.3, 0.4, 0.2, 0.3):
        writer.write(np.zeros((48, 64, 3), np.uint8), seconds)
    wide = np.zeros((96, 128, 3), np.uint8)
    wide[:, 64:] = 255  # its right half
    writer.write(wide, 0.4)
    writer.close()
    frames = list(read_frames(tmp_path / "film.mp4"))
    assert np.diff([frame.seconds for frame in frames]) == pytest.approx([0.1] * 5, abs=0.001)
    last = frames[-1].image
    assert last.shape == (48, 64, 3) and last[:, :28].mean() < 20 and last[:, 36:].mean() > 235


@pytest.mark.scheduled
def test_a_long_film_needs_the_memory_of_a_frame(tmp_path: Path) -> None:
    path = write_noise(tmp_path / "film.mp4", 5000, (32, 32))
    tracemalloc.start()
    count, early = 0, 0
    for count, _ in enumerate(read_frames(path), 1):
        if count == 100:
            early = tracemalloc.get_traced_memory()[1]
    assert count == 5000
    assert tracemalloc.get_traced_memory()[1] < early + 100_000
    tracemalloc.stop()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_film_comes_from_an_address(film: Path, served: str) -> None:
    address = f"{served}/{film.name}"
    assert is_video(address)
    assert [frame.number for frame in read_frames(address)] == list(range(6))
    with pytest.raises(InputError, match=r"none\.mp4: cannot be read as a film"):
        list(read_frames(f"{served}/none.mp4"))


def test_what_does_not_answer_is_one_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "STREAM_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        port = silent.getsockname()[1]
        for address in (f"rtsp://127.0.0.1:{port}/x", f"http://127.0.0.1:{port}/x.mp4"):
            start = time.monotonic()
            with pytest.raises(InputError, match="cannot be read as a film"):
                list(read_frames(address))
            assert time.monotonic() - start < 5
    with pytest.raises(InputError, match="refused"):
        list(read_frames(f"rtsp://127.0.0.1:{port}/x"))
    with pytest.raises(InputError, match="camera 97: there is no /dev/video97"):
        list(read_frames("97"))


def test_thresholds_by_class_start_tracks(tmp_path: Path) -> None:
    model, picture = RFDETRMini(), Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(picture).ellipse((60, 60, 190, 190), fill="navy")
    found: Any = model.predict(picture, 0.2)
    name, score = str(found.data["class_name"][0]), float(found.confidence[0])
    writer = FilmWriter(tmp_path / "film.mp4")
    for number in range(3):
        writer.write(np.asarray(picture), number / 25)
    writer.close()
    counts = [
        [len(seen) for _, seen in model.predict_film(tmp_path / "film.mp4", 0.999, thresholds=how)]
        for how in (None, {name: score / 2})
    ]
    assert counts[0] == [0, 0, 0] and min(counts[1]) > 0
    with pytest.raises(InputError, match="thresholds: no class 'cat'"):
        next(model.predict_film(tmp_path / "film.mp4", thresholds={"cat": 0.5}))
    with pytest.raises(ImageError, match=r"film\.mp4: a film, which predict_film reads"):
        model.predict(tmp_path / "film.mp4")


def test_a_window_is_for_films_where_there_is_a_display(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    command = ["predict", "rf-detr-mini.safetensors", "--show", "--out", str(tmp_path / "out")]
    assert main([*command, str(film)]) == 2
    assert "--show: " in capsys.readouterr().err
    assert main([*command, str(tmp_path / "a.jpg")]) == 2
    assert "--show is for films" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_writes_a_film_and_a_line_for_each_frame(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["predict", "rf-detr-mini.safetensors", str(film), "--out", str(out), "--every", "2"]
    command += ["--batch-size", "2", "--shape", "128,192"]
    assert main(command) == 0
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 2, 4]
    assert [frame.seconds for frame in read_frames(out / "film.mp4")] == pytest.approx(
        [TIMES[0], TIMES[2], TIMES[4]], abs=0.002
    )
    before = (out / "predictions.jsonl").read_bytes()
    assert main(command) == 2 and (out / "predictions.jsonl").read_bytes() == before
