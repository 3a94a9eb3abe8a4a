"""The folder of a run: its lock, and what is not written over."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rfdetr.training.run_folder import (
    OutputFolderError,
    RunFolder,
    default_folder,
)


def hold(folder: Path, ready: Any) -> None:
    RunFolder(folder).acquire()
    ready.send(os.getpid())
    ready.recv()  # until killed


def test_a_second_run_is_refused_by_name_and_a_dead_ones_lock_is_taken(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, theirs))
    process.start()
    pid = ours.recv()
    with pytest.raises(OutputFolderError, match=rf"process {pid} on .* since 20"):
        RunFolder(tmp_path).acquire()
    process.kill()
    process.join()
    (tmp_path / f".last.ckpt.{'0' * 32}.tmp").touch()
    lock = RunFolder(tmp_path)
    lock.acquire()
    # What the killed one was writing is gone.
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    with pytest.raises(OutputFolderError, match="this same process"):
        RunFolder(tmp_path).acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "state"), [("last.ckpt", "interrupted"), ("results.json", "finished")]
)
def test_a_run_is_not_written_over_but_resumed(tmp_path: Path, name: str, state: str) -> None:
    RunFolder(tmp_path).refuse_to_overwrite(None)
    (tmp_path / name).touch()
    with pytest.raises(OutputFolderError, match=rf"{state} run in .*overwrite=True"):
        RunFolder(tmp_path).refuse_to_overwrite(None)
    RunFolder(tmp_path).refuse_to_overwrite(tmp_path / "last.ckpt")


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "output").touch()
    with pytest.raises(OutputFolderError, match="cannot be written"):
        RunFolder(tmp_path / "output").acquire()


def test_overwriting_clears_the_old_run(make_run: Callable[..., Any]) -> None:
    output = make_run(epochs=1, run_test=False).fit().output
    with pytest.raises(OutputFolderError, match="overwrite=True"):
        RunFolder(output).refuse_to_overwrite(None)
    seen: list[bool] = []

    def look(trainer: Any, _: Any) -> None:
        seen.append((Path(trainer.default_root_dir) / "results.json").exists())

    run = make_run(
        epochs=1, overwrite=True, run_test=False, watch={"on_train_epoch_end": look}
    ).fit()
    assert seen == [False]
    assert (run.output / "results.json").exists()


def test_a_run_without_a_named_folder_takes_the_first_free_one(tmp_path: Path) -> None:
    base = tmp_path / "output"
    assert default_folder(base, None) == default_folder(base, "last") == base
    for number, name in enumerate(("output", "output-2", "output-4", "output-old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.ckpt").touch()
        os.utime(tmp_path / name / "last.ckpt", (number, number))
    os.utime(tmp_path / "output-2" / "last.ckpt", (9, 9))
    assert default_folder(base, None) == tmp_path / "output-3"
    assert default_folder(base, "last") == tmp_path / "output-2"
    assert default_folder(base, str(tmp_path / "output-4" / "last.ckpt")) == tmp_path / "output-4"
    assert default_folder(base, str(tmp_path / "output-old" / "last.ckpt")) == tmp_path / "output-3"


@pytest.mark.parametrize("name", ["config.yaml", "log.txt", "metrics.jsonl", "segm_pr_curve.png"])
def test_a_users_own_file_is_not_replaced(
    name: str, make_run: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "notes.md").write_text("no run replaces this")
    RunFolder(folder).refuse_to_overwrite(None)
    (folder / name).write_text("mine: 1\n")
    with pytest.raises(OutputFolderError, match=f"holds {name}, which no run has left"):
        make_run(epochs=1, run_test=False).fit()
    assert (folder / name).read_text() == "mine: 1\n"
    with pytest.raises(OutputFolderError, match="overwrite=True to lose it"):
        RunFolder(folder).refuse_to_overwrite(tmp_path / "elsewhere" / "last.ckpt")
    assert default_folder(folder, None) == tmp_path / "output-2"


def test_a_users_pictures_in_dataset_grids_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "dataset_grids").mkdir()
    with pytest.raises(OutputFolderError, match="holds dataset_grids"):
        RunFolder(tmp_path).refuse_to_overwrite(None)


def test_what_a_run_has_left_before_its_first_checkpoint_is_no_users(
    make_run: Callable[..., Any],
) -> None:
    def stop(*_: Any) -> None:
        raise RuntimeError("stopped")

    run = make_run(epochs=1, run_test=False, watch={"on_train_batch_end": stop})
    with pytest.raises(RuntimeError, match="stopped"):
        run.fit()
    folder = RunFolder(run.output)
    assert folder.config.exists() and folder.sign_of_run is None
    folder.refuse_to_overwrite(None)
    for path in (folder.config, folder.table):
        path.unlink(missing_ok=True)
    if folder.metrics.exists():
        folder.refuse_to_overwrite(None)
    make_run(epochs=1, run_test=False).fit()
    assert folder.sign_of_run == "results.json"


def test_a_folder_made_for_nothing_goes_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for place, left in (("there", True), ("new/run", False)):
        folder = RunFolder(tmp_path / place)
        folder.acquire()
        assert folder.path.is_dir()
        folder.release()
        assert folder.path.exists() == left
    assert not (tmp_path / "new").exists()
    folder = RunFolder(tmp_path / "new")
    folder.acquire()
    folder.log.touch()
    folder.release()
    assert folder.log.exists()


def test_a_folder_in_use_is_not_free(tmp_path: Path) -> None:
    base = tmp_path / "output"
    base.mkdir()
    lock = RunFolder(base)
    lock.acquire()
    assert default_folder(base, None) == tmp_path / "output-2"
    lock.release()
    assert default_folder(base, None) == base
    owner = {"pid": os.getppid(), "host": platform.node()}
    (base / ".run.lock").write_text(json.dumps(owner))
    assert default_folder(base, None) == tmp_path / "output-2"


def test_the_second_run_of_a_process_keeps_the_first_ones_files(
    make_run: Callable[..., Any],
) -> None:
    first = make_run(epochs=1, run_test=False).fit()
    (first.output / "checkpoint.pth").write_bytes(b"the user's own")
    files = {path.name: path.read_bytes() for path in first.output.iterdir()}
    del files["checkpoint.pth"]
    make_run(epochs=1, run_test=False, seed=8).fit()
    assert {path.name: path.read_bytes() for path in (first.output / "run-1").iterdir()} == files
    assert (first.output / "checkpoint.pth").exists()
    assert (first.output / "last.ckpt").read_bytes() != files["last.ckpt"]
