"""Files are written whole or not at all, damaged checkpoints are named, one process alone locks."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from rfdetr.files import (
    CHECKSUMS_FILE,
    DiskFullError,
    LockHeldError,
    RecordLock,
    atomic_write,
    digest_of,
    is_damaged,
    is_locked,
    link_checkpoint,
    newest_good,
    record_digests,
    recorded_digests,
    sidecar,
)
from rfdetr.weights.reading import CheckpointError, read_checkpoint


def write(path: Path, content: bytes = b"content") -> Path:
    atomic_write(path, lambda stream: stream.write(content), checksum=True)
    return path


def _fail_half_way(stream: BinaryIO) -> None:
    stream.write(b"half")
    raise KeyboardInterrupt


def test_atomic_write_replaces_content_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    atomic_write(path, lambda stream: stream.write(b"one"))
    atomic_write(path, lambda stream: stream.write(b"two"))
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]


def test_interrupted_write_leaves_the_last_good_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"good")
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, _fail_half_way)
    assert path.read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_a_link_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    target, link = tmp_path / "theirs", tmp_path / "ours"
    target.write_bytes(b"theirs")
    link.symlink_to(target)
    atomic_write(link, lambda stream: stream.write(b"ours"))
    assert target.read_bytes() == b"theirs"
    assert link.read_bytes() == b"ours"
    assert not link.is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_written_files_have_the_users_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    atomic_write(tmp_path / "atomic", lambda stream: stream.write(b""))
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_in_the_way_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        atomic_write(tmp_path / "taken", lambda stream: stream.write(b""))
    assert os.listdir(tmp_path) == ["taken"]


def test_a_file_that_changed_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth")
    assert not is_damaged(path)
    path.write_bytes(b"c0ntent")
    assert is_damaged(path)
    record_digests(path, [])
    assert not is_damaged(path)
    assert list(tmp_path.iterdir()) == [path]  # nothing left to say, no file


def test_the_checksum_of_an_earlier_version_holds_until_the_file_is_written_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"content")
    sidecar(path).write_text(f"{digest_of(path)}  a.pth\n")
    assert not is_damaged(path)
    path.write_bytes(b"c0ntent")
    assert is_damaged(path)
    assert not is_damaged(write(path))
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / CHECKSUMS_FILE]


@pytest.mark.parametrize("kill_at", range(3))
@pytest.mark.parametrize("linked", [False, True])
def test_a_write_killed_between_its_renames_damages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int, linked: bool
) -> None:
    path, new = write(tmp_path / "a.pth"), write(tmp_path / "new.pth", b"new content")
    rename, renamed = os.replace, []

    def killed(source: Path, target: Path) -> None:
        if len(renamed) == kill_at:
            raise KeyboardInterrupt
        renamed.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        link_checkpoint(new, path) if linked else write(path, b"new content")
    assert path.read_bytes() == (b"content" if kill_at < 2 else b"new content")
    assert not is_damaged(path) and not is_damaged(new)


def test_a_linked_checkpoint_is_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, total = write(tmp_path / "best.pth"), tmp_path / "total.pth"
    for _ in range(2):
        link_checkpoint(best, total)
    assert total.samefile(best)
    write(best, b"better")
    assert (total.read_bytes(), is_damaged(total)) == (b"content", False)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    link_checkpoint(best, total)
    assert (total.read_bytes(), total.samefile(best), is_damaged(total)) == (
        b"better",
        False,
        False,
    )
    assert {path.name for path in tmp_path.iterdir()} == {"best.pth", "total.pth", CHECKSUMS_FILE}


def write_some(folder: Path, name: str) -> None:
    for number in range(20):
        write(folder / f"{name}{number}.pth")


def test_writers_at_the_same_time_lose_no_checksum(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=write_some, args=(tmp_path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    names = {f"{name}{number}.pth" for name in "abc" for number in range(20)}
    assert json.loads((tmp_path / CHECKSUMS_FILE).read_text()).keys() == names


@pytest.mark.parametrize("content", ['["mine"]', "{", '{"a.pth": 1, "b": [2]}'])
def test_a_checksums_file_of_another_program_loses_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / CHECKSUMS_FILE).write_text(content)
    path = write(tmp_path / "c.pth")
    assert not is_damaged(path) and not is_damaged(tmp_path / "a.pth")
    found = (tmp_path / CHECKSUMS_FILE).read_text()
    assert found == content or json.loads(found) == {
        **json.loads(content),
        "c.pth": digest_of(path),
    }


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
    atomic_write(
        path, lambda stream: torch.save({"a": torch.arange(100_000)}, stream), checksum=True
    )
    assert recorded_digests(path) == [digest_of(path)]
    assert torch.equal(torch.load(path)["a"], torch.arange(100_000))


def test_a_full_disk_is_told_with_the_room_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    tensor = torch.zeros(1_000_000)

    def on_full_disk(stream: object) -> None:
        torch.save(tensor, stream)  # type: ignore[arg-type]
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with pytest.raises(OSError, match="No space"):
        atomic_write(tmp_path / "b", on_full_disk)
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            DiskFullError, match=r"a\.ckpt could not be written: File too large; .* MB are free"
        ):
            atomic_write(path, lambda stream: torch.save(tensor, stream), checksum=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"content"
    assert not is_damaged(path)


def hold(path: Path, ready: Any) -> None:
    RecordLock(path).acquire()
    ready.send(os.getpid())
    ready.recv()  # until killed


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(path, theirs))
    process.start()
    pid = ours.recv()
    assert is_locked(path)
    with pytest.raises(LockHeldError, match=rf"^process {pid} on .* since 20.*: "):
        RecordLock(path).acquire()
    process.kill()
    process.join()
    assert not is_locked(path)
    lock = RecordLock(path)
    lock.acquire()
    lock.acquire()  # held already
    assert is_locked(path)
    with pytest.raises(LockHeldError, match="this same process"):
        RecordLock(path).acquire()
    lock.release()
    lock.release()
    assert not is_locked(path) and not path.exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": "1"}', '{"pid": 4194305}'])
def test_a_lock_file_that_tells_nothing_is_taken(tmp_path: Path, content: str) -> None:
    path = tmp_path / ".lock"
    path.write_text(content)
    assert not is_locked(path)
    RecordLock(path).acquire()
    assert is_locked(path)


def test_a_lock_that_cannot_be_made_is_the_systems_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        RecordLock(tmp_path / "file" / ".lock").acquire()
    assert not isinstance(caught.value, LockHeldError)
