"""Damaged checkpoints are named, and a good one beside them is offered."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from rfdetr.weights.checksums import digest_of, is_damaged, newest_good, sidecar
from rfdetr.weights.reading import CheckpointError, read_checkpoint
from rfdetr.weights.writing import DiskFullError, atomic_write


def write(path: Path, content: bytes = b"content") -> Path:
    atomic_write(path, lambda stream: stream.write(content), checksum=True)
    return path


def test_a_file_that_changed_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth")
    assert not is_damaged(path)
    path.write_bytes(b"c0ntent")
    assert is_damaged(path)
    sidecar(path).unlink()
    assert not is_damaged(path)


def test_the_sidecar_is_what_sha256sum_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth")
    subprocess.run(["sha256sum", "-c", sidecar(path).name], cwd=tmp_path, check=True, capture_output=True)


def test_a_write_killed_before_the_rename_damages_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.pth")
    rename = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target) == path:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(path, b"new content")
    assert path.read_bytes() == b"content"
    assert not is_damaged(path)


def test_the_newest_good_file_is_offered(tmp_path: Path) -> None:
    for time, name in enumerate(("old.pth", "good.pth", "bad.pth")):
        torch.save({"model": {}}, tmp_path / name)
        write(tmp_path / name, (tmp_path / name).read_bytes())
        os.utime(tmp_path / name, (time, time))
    (tmp_path / "bad.pth").write_bytes(b"bad")
    last = write(tmp_path / "last.pth")
    last.write_bytes(b"damaged")
    assert newest_good(last) == tmp_path / "good.pth"
    with pytest.raises(CheckpointError, match=r"last\.pth is damaged.*good\.pth"):
        read_checkpoint(last)


def test_torch_save_writes_the_digest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    atomic_write(path, lambda stream: torch.save({"a": torch.arange(100_000)}, stream), checksum=True)
    assert digest_of(path) in sidecar(path).read_text()
    assert torch.equal(torch.load(path)["a"], torch.arange(100_000))


def test_a_full_disk_is_told_with_the_room_it_takes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    tensor = torch.zeros(1_000_000)

    def on_full_disk(stream: object) -> None:
        torch.save(tensor, stream)  # type: ignore[arg-type]
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with pytest.raises(OSError, match="No space"):
        atomic_write(tmp_path / "b", on_full_disk)  # measuring fails as well
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=r"a\.ckpt could not be written: it needs 4\.0 MB"):
            atomic_write(path, lambda stream: torch.save(tensor, stream), checksum=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"content"
    assert not is_damaged(path)
