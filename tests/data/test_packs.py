"""Packed datasets: the same as their folder, wherever they lie, and damage that is told."""

from __future__ import annotations

import functools
import json
import os
import tarfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from rfdetr.cli import main
from rfdetr.data import packs
from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.findings import DatasetError
from rfdetr.data.images import decode_image
from rfdetr.data.layout import find_splits, load_index
from rfdetr.data.loaders import EpochSampler, build_loader
from rfdetr.data.packing import pack
from rfdetr.data.transforms import EvalTransform, TrainTransform
from rfdetr.doctor.check import check
from rfdetr.doctor.fix import fix
from rfdetr.errors import InputError, MissingPackageError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFDETR_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packs, "_WAITS", (0.0,))


@pytest.fixture
def packed(tiny_coco: Path, tmp_path: Path) -> Path:
    """The tiny dataset in shards of one image or two."""
    images = [path.stat().st_size for path in tiny_coco.rglob("*.*g")]
    return small_pack(tiny_coco, tmp_path / "packed", max(images))


def small_pack(folder: Path, out: Path, most: int) -> Path:
    """`pack` counts megabytes, of which the tiny pictures do not fill one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rfdetr.data.packing.check_count", lambda *_: 2 * most / 10**6)
        return pack(folder, out)


def assert_same(folder: Path, other: Any) -> None:
    for split in ("train", "valid", "test"):
        one, two = (load_index(find_splits(place), split) for place in (folder, other))
        assert one.fingerprint() == two.fingerprint()
        for image in range(len(one)):
            left, right = decode_image(one.file(image)), decode_image(two.file(image))
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("layout", ["tiny_coco", "tiny_yolo"])
def test_a_pack_is_its_folder(
    layout: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder: Path = request.getfixturevalue(layout)
    assert main(["pack", str(folder), "--out", str(tmp_path / "one")]) == 0
    assert "1 files of images" in capsys.readouterr().out
    assert_same(folder, tmp_path / "one")
    report, other = check(folder, processes=1), check(tmp_path / "one", processes=1)
    assert report.findings.counts == other.findings.counts
    with pytest.raises(InputError, match="is packed: correct its folder"):
        fix(other, tmp_path / "copy")


def test_shards_are_bounded_and_are_plain_tars(packed: Path, tiny_coco: Path) -> None:
    shards = sorted(packed.glob("images-*.tar"))
    assert len(shards) > 5
    names = []
    for shard in shards:
        with tarfile.open(shard) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content and content.read() == (tiny_coco / member.name).read_bytes()
                names.append(member.name)
    assert sorted(names) == sorted(
        path.relative_to(tiny_coco).as_posix() for path in tiny_coco.rglob("*.*g")
    )
    with tarfile.open(packed / packs.LABELS) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content and content.read() == (tiny_coco / member.name).read_bytes()


def test_an_interrupted_pack_goes_on_and_nothing_is_overwritten(
    packed: Path, tiny_coco: Path, tmp_path: Path
) -> None:
    contents = {path.name: path.read_bytes() for path in packed.iterdir()}
    with pytest.raises(InputError, match=r"holds .*, and nothing is overwritten"):
        pack(tiny_coco, packed)
    (packed / packs.MANIFEST).unlink()
    (packed / "images-00002.tar").unlink()
    kept = (packed / "images-00000.tar").stat().st_mtime_ns
    again = functools.partial(small_pack, tiny_coco, packed)
    most = max(path.stat().st_size for path in tiny_coco.rglob("*.*g"))
    again(most)
    assert (packed / "images-00000.tar").stat().st_mtime_ns == kept
    del contents[packs.LABELS], contents[packs.MANIFEST]  # gzip notes the time
    assert contents.items() <= {path.name: path.read_bytes() for path in packed.iterdir()}.items()
    (packed / packs.MANIFEST).unlink()
    os.utime(tiny_coco / "train" / "0.jpg", (0, 0))
    with pytest.raises(InputError, match=r"images-00000\.tar is of .* images that have changed"):
        again(most)
    with pytest.raises(InputError, match="is inside the data set"):
        pack(tiny_coco, tiny_coco / "packed")


def test_damage_is_told_before_the_first_step_or_when_it_is_read(packed: Path) -> None:
    shard = packed / "images-00001.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        first = archive.getmembers()[0]
    shard.write_bytes(whole[:-512])
    found = rf"images-00001\.tar, which holds {first.name} and \d other images, is [\d,]+ bytes"
    with pytest.raises(DatasetError, match=found):
        find_splits(packed)
    shard.unlink()
    with pytest.raises(DatasetError, match=rf"holds {first.name} .*: there is no such file"):
        find_splits(packed)
    changed = bytearray(whole)
    changed[first.offset_data + first.size // 2] ^= 1
    shard.write_bytes(changed)
    index = load_index(find_splits(packed), "train")
    at = next(i for i in range(len(index)) if index.name(i) == Path(first.name).name)
    forgiving = DetectionDataset(index, TrainTransform((64, 64)), forgiving=True)
    with pytest.raises(DatasetError, match=rf"images-00001\.tar: {first.name}: its SHA-256 is not"):
        forgiving[at]  # no other image stands in
    (finding,) = check(packed, processes=1).of("image-truncated")
    assert "SHA-256" in finding.found
    table = packed / packs.TABLE
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"images\.npz: not what rfdetr-pack\.json says"):
        find_splits(packed)


def test_packs_are_read_from_memory(packed: Path, tiny_coco: Path) -> None:
    system = fsspec.filesystem("memory")
    system.put(str(packed), "/set", recursive=True)
    try:
        assert_same(tiny_coco, "memory://set")
        assert_same(tiny_coco, Path("memory://set"))  # as the command line has it
        system.rm("/set/images-00003.tar")
        with pytest.raises(DatasetError, match=r"memory://set/images-00003\.tar, which holds"):
            find_splits("memory://set")
    finally:
        system.rm("/set", recursive=True)
    with pytest.raises(DatasetError, match=r"memory://none/rfdetr-pack\.json: there is no such"):
        find_splits("memory://none")
    with pytest.raises(DatasetError, match=r"Protocol not known: nowhere"):
        find_splits("nowhere://set")


class WithRanges(BaseHTTPRequestHandler):
    """Answers for files in a folder, whole or a range of each."""

    folder: Path
    failing = 0  # so many answers from now on

    def do_HEAD(self) -> None:
        self.answer(send=False)

    def do_GET(self) -> None:
        self.answer(send=True)

    def answer(self, send: bool) -> None:
        path = self.folder / self.path.lstrip("/")
        if type(self).failing and send:
            type(self).failing -= 1
            self.send_error(503)
            return
        if not path.is_file():
            self.send_error(404)
            return
        data, span = path.read_bytes(), self.headers.get("Range")
        self.send_response(206 if span else 200)
        if span:
            start, end = (int(text) for text in span.removeprefix("bytes=").split("-"))
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            data = data[start : end + 1]
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if send:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class WithoutRanges(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_packs_are_read_over_http(packed: Path, tiny_coco: Path, serve: Callable[..., Any]) -> None:
    pytest.importorskip("aiohttp")
    handler = type("Handler", (WithRanges,), {"folder": packed})
    with serve(handler) as address:
        assert_same(tiny_coco, address)
        handler.failing = 1  # a hiccup of the network ends no run, and loses no image
        index = load_index(find_splits(address), "train")
        dataset = DetectionDataset(index, EvalTransform((64, 64)))
        local = DetectionDataset(load_index(find_splits(packed), "train"), EvalTransform((64, 64)))
        sampler = EpochSampler(len(index), shuffle=False)
        loader = build_loader(dataset, sampler, num_workers=1, batch_size=1)
        for image, (pixels, _) in enumerate(loader):  # a process of its own has its own connections
            assert torch.equal(pixels.tensors[0], local[image][0])
        handler.failing = 2
        with pytest.raises(DatasetError, match=r"images-00000\.tar: train/0\.jpg .* 503"):
            dataset[0]
    plain = functools.partial(WithoutRanges, directory=str(packed))
    with serve(plain) as address, pytest.raises(DatasetError, match="does not honour ranges"):
        find_splits(address)


def test_a_missing_client_says_what_to_install() -> None:
    fsspec.register_implementation("far", "no_such_client.System", True, "Install far-client")
    with pytest.raises(
        MissingPackageError, match=r"far://set.* needs a client: Install far-client"
    ):
        find_splits("far://set")


def test_a_manifest_of_another_version_is_refused(packed: Path) -> None:
    path = packed / packs.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": "rfdetr-pack-9"}))
    with pytest.raises(DatasetError, match=r"no packed data set that this version reads .*pack-9"):
        find_splits(packed)
