"""Image sources: every accepted form gives the same upright RGB array, everything else one clear
error.
"""

from __future__ import annotations

import functools
import http.server
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rfdetr.data import sources as sources_module
from rfdetr.data.sources import (
    expand,
    is_single,
    list_files,
    load_image,
    load_images,
    look_up,
)

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
TURNED_RIGHT = 6  # EXIF: stored lying on its left side


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.png", "c.PNG"):
        Image.fromarray(RGB).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "deeper").mkdir()
    Image.fromarray(RGB).save(tmp_path / "deeper" / "d.png")
    return tmp_path


@pytest.fixture
def address(folder: Path, serve: Callable[..., Any]) -> Iterator[str]:
    with serve(functools.partial(QuietHandler, directory=str(folder))) as address:
        yield address


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def every_form(folder: Path) -> dict[str, object]:
    chw = torch.from_numpy(RGB).permute(2, 0, 1)
    return {
        "path": folder / "a.png",
        "text": str(folder / "a.png"),
        "pil": Image.fromarray(RGB),
        "pil palette": Image.open(folder / "a.png"),
        "numpy": RGB,
        "numpy float": RGB.astype(np.float32) / 255,
        "numpy alpha": np.dstack([RGB, RGB[..., 0]]),
        "numpy strided": RGB[::-1][::-1],
        "torch uint8": chw,
        "torch float": chw.float() / 255,
        "torch bfloat16 of exact values": (chw > 127).to(torch.bfloat16),
    }


def test_folders_and_patterns_with_brackets(tmp_path: Path) -> None:
    place = tmp_path / "[set 1]"
    place.mkdir()
    for name in ("a.png", "b.png", "._a.png"):
        Image.fromarray(RGB).save(place / name)
    expected = [place / "a.png", place / "b.png"]
    assert (
        list_files(place)
        == list_files(place / "*.png")
        == list_files(tmp_path / "**" / "*.png")
        == expected
    )
    assert list_files(place / "[a].png") == expected[:1]


def test_every_form_of_an_image_is_the_same_array(folder: Path) -> None:
    for name, source in every_form(folder).items():
        loaded = load_image(source)  # type: ignore[arg-type]
        expected = np.where(RGB > 127, 255, 0) if "bfloat16" in name else RGB
        assert loaded.dtype == np.uint8 and loaded.flags.c_contiguous, name
        np.testing.assert_array_equal(loaded, expected, err_msg=name)


GRAY = torch.from_numpy(RGB[..., 0])


@pytest.mark.parametrize("gray", [RGB[..., 0], RGB[..., :1], GRAY, GRAY[None]])
def test_gray_is_repeated(gray: np.ndarray | torch.Tensor) -> None:
    np.testing.assert_array_equal(load_image(gray), np.repeat(RGB[..., :1], 3, axis=2))


def test_a_pil_image_is_turned_upright_like_its_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = TURNED_RIGHT
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    from_file = load_image(tmp_path / "turned.png")
    np.testing.assert_array_equal(from_file, np.rot90(RGB, -1))
    with Image.open(tmp_path / "turned.png") as image:
        np.testing.assert_array_equal(load_image(image), from_file)


def test_addresses(address: str) -> None:
    np.testing.assert_array_equal(load_image(f"{address}/a.png"), RGB)
    with pytest.raises(ValueError, match=r"missing\.png.*404"):
        load_image(f"{address}/missing.png")
    with pytest.raises(ValueError, match=r"notes\.txt.*decode"):
        load_image(f"{address}/notes.txt")


def test_folders_and_patterns_are_their_images_in_order(folder: Path) -> None:
    assert [path.name for path in list_files(folder)] == ["a.png", "b.png", "c.PNG"]
    assert [path.name for path in list_files(f"{folder}/[ab].*")] == ["a.png", "b.png"]
    assert [path.name for path in list_files(f"{folder}/**/d.png")] == ["d.png"]
    assert [Path(str(path)).name for path in expand([folder / "deeper", folder / "a.png"])] == [
        "d.png",
        "a.png",
    ]


@pytest.mark.parametrize(("name", "single", "count"), [("a.png", True, 1), ("", False, 3)])
def test_a_request_is_looked_up_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, single: bool, count: int
) -> None:
    asked: list[object] = []

    def ask(images: object) -> bool:
        asked.append(images)
        return is_single(images)  # type: ignore[arg-type]

    monkeypatch.setattr(sources_module, "is_single", ask)
    request = look_up(folder / name)
    assert request.single is single and look_up(request) is request
    assert len(list(load_images(request, skip=False))) == count
    assert asked == [folder / name]


def test_a_file_with_a_pattern_like_name_is_a_file(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "shot[1].png")
    assert is_single(tmp_path / "shot[1].png")
    np.testing.assert_array_equal(load_image(tmp_path / "shot[1].png"), RGB)


@pytest.mark.parametrize(
    ("pattern", "match"), [("", "no image files"), ("/*.bmp", r"\*\.bmp.*no image files")]
)
def test_nothing_found_is_an_error(tmp_path: Path, pattern: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        list(expand(f"{tmp_path}{pattern}"))


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((3, 6, 8), np.uint8), r"shape \(3, 6, 8\): expected \(height, width"),
        (np.zeros((2, 6, 8, 3), np.uint8), r"shape \(2, 6, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
        (np.zeros((6, 8, 3), np.int64), "type int64: expected uint8"),
        (np.full((6, 8, 3), np.nan), "NaN"),
        (np.full((6, 8, 3), 255.0), r"from 255 to 255: expected floats in \[0, 1\]"),
        (torch.zeros(6, 8, 3), r"torch image of shape \(6, 8, 3\): expected \(1, 3 or 4"),
        (torch.zeros(2, 3, 6, 8), r"list\(batch\)"),
        (torch.full((3, 6, 8), -1.0), "from -1 to -1"),
    ],
)
def test_wrong_arrays_are_refused(array: np.ndarray | torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_image(array)


@pytest.mark.parametrize("thing", [None, 3, b"bytes", {1.5: 2}, [None], [[RGB]]])
def test_what_is_no_image_is_a_type_error(thing: object) -> None:
    with pytest.raises(TypeError, match="no image"):
        list(expand(thing))  # type: ignore[arg-type]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        load_image(tmp_path / "broken.jpg")
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg"):
        load_image(tmp_path / "absent.jpg")
