"""The folder of a run: its lock, and what is not written over."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rfdetr.training.folder import FolderLock, OutputFolderError, refuse_to_overwrite


def hold(folder: Path, ready: Any) -> None:
    FolderLock(folder).acquire()
    ready.send(os.getpid())
    ready.recv()  # until killed


def test_a_second_run_is_refused_by_name_and_a_dead_ones_lock_is_taken(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, theirs))
    process.start()
    pid = ours.recv()
    with pytest.raises(OutputFolderError, match=rf"process {pid} on .* since 20"):
        FolderLock(tmp_path).acquire()
    process.kill()
    process.join()
    (tmp_path / f".last.ckpt.{'0' * 32}.tmp").touch()
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]  # what the killed one was writing is gone
    with pytest.raises(OutputFolderError, match="this same process"):
        FolderLock(tmp_path).acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "state"), [("last.ckpt", "interrupted"), ("results.json", "finished")])
def test_a_run_is_not_written_over_but_resumed(tmp_path: Path, name: str, state: str) -> None:
    refuse_to_overwrite(tmp_path, None)
    (tmp_path / name).touch()
    with pytest.raises(OutputFolderError, match=rf"{state} run in .*overwrite=True"):
        refuse_to_overwrite(tmp_path, None)
    refuse_to_overwrite(tmp_path, tmp_path / "last.ckpt")


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "output").touch()
    with pytest.raises(OutputFolderError, match="cannot be written"):
        FolderLock(tmp_path / "output").acquire()


def test_overwriting_clears_the_old_run(make_run: Callable[..., Any]) -> None:
    make_run(epochs=1, run_test=False).fit()
    with pytest.raises(OutputFolderError, match="overwrite=True"):
        make_run(epochs=1).fit()
    seen: list[bool] = []

    def look(trainer: Any, _: Any) -> None:
        seen.append((Path(trainer.default_root_dir) / "results.json").exists())

    run = make_run(epochs=1, overwrite=True, run_test=False, watch={"on_train_epoch_end": look}).fit()
    assert seen == [False]
    assert (run.output / "results.json").exists()
