"""Decoding every kind of file to upright RGB, the one resize, the one normalisation."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from rfdetr.data.images import (
    ImageError,
    _warn_once,
    decode_image,
    lacks_end_marker,
    normalize,
    read_header,
    resize,
    upright_rgb,
)

RNG = np.random.default_rng(0)
COARSE = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8))
SMOOTH = np.asarray(COARSE.resize((64, 48), Image.Resampling.BICUBIC))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
def test_jpeg_modes_decode_as_pillow_does(mode: str) -> None:
    data = encode(Image.fromarray(SMOOTH).convert(mode), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(decode_image(data).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_modes_keep_their_colours_and_drop_alpha(mode: str) -> None:
    image = Image.fromarray(SMOOTH).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(7)
    np.testing.assert_array_equal(
        decode_image(encode(image, "PNG")), np.asarray(image.convert("RGB"))
    )


def test_a_palette_with_transparency_keeps_its_colours(recwarn: pytest.WarningsRecorder) -> None:
    image = Image.fromarray(SMOOTH).quantize(8)
    data = encode(image, "PNG", transparency=bytes([0, 128, 255, 255, 255, 255, 255, 255]))
    np.testing.assert_array_equal(decode_image(data), np.asarray(image.convert("RGB")))
    assert not recwarn.list


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (RAMP.astype(np.uint16), "PNG"),  # 8 bits in a file of 16
        (RAMP.astype(np.uint16) * 16 + 15, "PNG"),  # of a 12-bit camera
        (RAMP.astype(np.uint16) * 257, "PNG"),
        (RAMP.astype(np.uint16) * 257, "TIFF"),
        (RAMP.astype(np.int32) << 22, "TIFF"),
        (RAMP.astype(np.int32) - 1000, "TIFF"),
        (RAMP.astype(np.float32) / 256, "TIFF"),  # floats from 0 to 1
        (RAMP.astype(np.float32), "TIFF"),
    ],
)
def test_deep_gray_comes_out_as_its_8_bit_picture(
    tmp_path: Path, values: np.ndarray, kind: str
) -> None:
    path = tmp_path / "deep"
    path.write_bytes(encode(Image.fromarray(values), kind))
    decoded = decode_image(path)
    assert read_header(path).deep and (decoded[..., 0] == decoded[..., 2]).all()
    np.testing.assert_array_equal(decoded[..., 0], RAMP)


def test_deep_gray_without_a_number_or_a_value_is_black() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    assert decode_image(encode(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 0, 0, 255]
    assert not decode_image(encode(Image.fromarray(np.zeros((2, 2), np.uint16)), "PNG")).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_in_which_zero_is_white_is_not_a_negative(dtype: type) -> None:
    black_is_zero = Image.fromarray(RAMP.astype(dtype) * (257 if dtype is np.uint16 else 1))
    white_is_zero = (
        Image.fromarray(~np.asarray(black_is_zero)) if dtype is np.uint16 else black_is_zero
    )
    # Pillow inverts 8 bits itself when it writes.
    data = encode(white_is_zero, "TIFF", tiffinfo={0x0106: 0})
    np.testing.assert_array_equal(decode_image(data)[..., 0], RAMP)


def test_scaling_of_deep_gray_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    _warn_once.cache_clear()
    for _ in range(3):
        decode_image(encode(Image.fromarray(RAMP.astype(np.uint16)), "PNG"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "16 or 32 bits" in caplog.text


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{kind}"
    path.write_bytes(encode(Image.fromarray(SMOOTH), kind, exif=exif))
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    decoded = decode_image(path)
    assert decoded.shape == expected.shape == (*read_header(path).upright_size, 3)
    assert read_header(path.read_bytes()) == read_header(path)
    assert np.abs(decoded.astype(int) - expected).max() <= 1
    with Image.open(path) as stored:
        np.testing.assert_array_equal(upright_rgb(stored), decoded)


def test_a_damaged_exif_block_leaves_the_image_as_stored() -> None:
    data = encode(Image.fromarray(SMOOTH), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_image(data).shape == (48, 64, 3)


def test_an_exif_block_that_promises_entries_it_lacks_is_read_to_its_end_alone() -> None:
    block = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(12)
    blocks = (b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block) * 30
    data = b"\xff\xd8" + blocks + encode(Image.fromarray(SMOOTH), "JPEG")[2:]
    lines = 0

    def count(_frame: Any, event: str, _argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        pixels = decode_image(data)
    finally:
        sys.settrace(before)
    assert pixels.shape == (48, 64, 3)
    assert lines < 0xFFFF  # entries that a single block promises


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["AVIF", "JPEG", "PNG", "TIFF"])
def test_damage_inside_any_format_is_an_error_that_names_it(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    data = encode(Image.fromarray(SMOOTH), kind)
    faults = []
    for at in range(4, min(len(data), 300), 7):  # some of them only change a picture
        try:
            pixels = decode_image(data[:at] + b"\xff\0" + data[at + 2 :], name=kind)
            assert pixels.ndim == 3 and pixels.shape[2] == 3
        except ImageError as error:
            faults.append(str(error))
    assert len(faults) > 5
    for fault in faults:
        assert fault.startswith(f"{kind}: cannot be decoded as an image: ")
        assert fault.endswith("; replace or remove the file")


def test_sizes_nobody_can_decode_are_refused_by_the_header(tmp_path: Path) -> None:
    header = b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03"
    (tmp_path / "huge.jpg").write_bytes(header + bytes(30))
    message = r"huge\.jpg: .*65535 x 65535: expected 1 to 178,956,970 pixels"
    for read in (decode_image, read_header):
        with pytest.raises(ImageError, match=message):
            read(tmp_path / "huge.jpg")


def test_postscript_is_no_picture(tmp_path: Path) -> None:
    """Pillow would hand it to an interpreter."""
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "a.jpg").write_text(text)
    for read in (decode_image, read_header):
        with pytest.raises(ImageError, match="no known image format"):
            read(tmp_path / "a.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_picture_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"a\.jpg: not a file"):
        read_header(tmp_path / "a.jpg")


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    data = encode(Image.fromarray(SMOOTH), "JPEG")
    np.testing.assert_array_equal(decode_image(data + b"\0\0trailing"), decode_image(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_cut_off_file_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"cut.{kind}"
    data = encode(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), kind)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=f"cut.{kind}"):
        decode_image(path)


def test_what_is_no_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("no image")
    for read in (decode_image, read_header):
        with pytest.raises(ImageError, match=r"notes.jpg"):
            read(path)
    with pytest.raises(FileNotFoundError, match=r"absent.jpg"):
        decode_image(tmp_path / "absent.jpg")


def test_resize_is_pillows_antialiased_bilinear_within_a_gray_level() -> None:
    image = RNG.integers(0, 256, (90, 130, 3), np.uint8)
    smaller = Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(smaller).transpose(2, 0, 1)
    resized = resize(image, (32, 32))
    assert resized.dtype == torch.uint8 and resized.shape == (3, 32, 32)
    assert np.abs(resized.numpy().astype(int) - expected).max() <= 1


def test_normalize_is_imagenets_and_leaves_floats_alone() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(normalize(images), expected)
    assert not normalize(images).is_inference()
    assert normalize(expected) is expected


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_marker_is_whole(mode: str, missing: int) -> None:
    data = encode(Image.fromarray(SMOOTH).convert(mode), "JPEG", quality=95)
    assert lacks_end_marker(data[:-missing]) and not lacks_end_marker(data + b"\0\0")
    assert np.abs(decode_image(data[:-missing]).astype(int) - decode_image(data)).max() <= 1


def test_a_progressive_jpeg_cut_between_two_scans_is_not_whole() -> None:
    data = encode(Image.fromarray(SMOOTH), "JPEG", quality=95, progressive=True)
    assert np.abs(decode_image(data[:-2]).astype(int) - decode_image(data)).max() <= 1
    scans = data.split(b"\xff\xda")
    for kept in (2, 3, len(scans) - 1):
        with pytest.raises(ImageError, match="truncated"):
            decode_image(b"\xff\xda".join(scans[:kept]))


@pytest.mark.parametrize("missing", [3, 10, 100])
def test_a_jpeg_cut_inside_its_picture_is_an_error(missing: int) -> None:
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), "JPEG", quality=95)
    with pytest.raises(ImageError, match="truncated"):
        decode_image(data[:-missing])
