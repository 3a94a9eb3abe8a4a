"""metrics.jsonl, metrics.csv and log.txt over interruptions."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from rfdetr.training.loggers import RunLogger
from rfdetr.training.records import RunRecord


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def log(folder: Path, *rows: tuple[dict[str, float], int]) -> RunRecord:
    logger = RunLogger(folder)
    for figures, step in rows:
        logger.log_metrics(figures, step)
    logger.finalize("success")
    return logger.record


def test_a_second_logger_goes_on_in_the_file_and_adds_columns(tmp_path: Path) -> None:
    log(tmp_path, ({"a": 1.0}, 0))
    record = log(tmp_path, ({"a": 2.0}, 1), ({"b": 3.0}, 2))
    assert (tmp_path / "metrics.csv").read_bytes() == (
        b"a,step,b\r\n1.0,0,\r\n2.0,1,\r\n,2,3.0\r\n"
    )
    assert record.read() == (
        [{"a": 1.0, "step": 0}, {"a": 2.0, "step": 1}, {"b": 3.0, "step": 2}],
        [],
    )
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.csv", "metrics.jsonl"}


def test_a_row_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.log_metrics({"a": torch.tensor(0.5), "epoch": 0}, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"a": 0.5, "epoch": 0, "step": 3}\n'


@pytest.mark.parametrize("earlier", [False, True])
def test_rows_that_will_be_logged_again_are_dropped(tmp_path: Path, earlier: bool) -> None:
    rows = [({"a": float(step), "epoch": step // 2}, step) for step in range(4)]
    record = log(tmp_path, *rows, ({"test/a": 1.0}, 4))
    for epoch in (0, 1):
        record.append({"epoch": epoch, "seconds": 0.25}, ends_epoch=True)
    record.render()
    if earlier:  # a run of a version that wrote no metrics.jsonl
        record.path.unlink()
    record.drop_from(1)
    kept = rows_of(tmp_path / "metrics.csv")
    assert [row["step"] for row in kept] == ["0", "1", "4"]  # the last says no epoch
    assert (tmp_path / "log.txt").read_text() == '{"epoch": 0, "seconds": 0.25}\n'
    RunRecord(tmp_path / "none").drop_from(1)  # nothing to drop is no error


def test_what_was_logged_after_a_checkpoint_is_cut_off(tmp_path: Path) -> None:
    record = log(tmp_path, ({"a": 1.0}, 0))
    size, table = record.size, (tmp_path / "metrics.csv").read_bytes()
    record.append({"epoch": 0}, ends_epoch=True)
    log(tmp_path, ({"b": 2.0}, 1))
    with open(record.path, "a") as file:
        file.write('{"a": 3.0, "st')  # a killed run's last line
    record.cut(size, 0)
    assert (tmp_path / "metrics.csv").read_bytes() == table
    assert record.size == size
    record.cut(10**6, 0)  # of another folder's file
    assert record.size == size


def test_a_run_of_an_earlier_version_keeps_its_rows(tmp_path: Path) -> None:
    table = b"a,epoch,step\r\n0.1,0,0\r\nnan,0,1\r\n"
    (tmp_path / "metrics.csv").write_bytes(table)
    (tmp_path / "log.txt").write_text('{"epoch": 0}\n{"epoch": 1, "tra')
    record = log(tmp_path, ({"a": 2.0, "epoch": 1}, 2))
    assert (tmp_path / "metrics.csv").read_bytes() == table + b"2.0,1,2\r\n"
    assert (tmp_path / "log.txt").read_text() == '{"epoch": 0}\n'
    record.drop_from(0, rows=1)  # a checkpoint of that version counts rows
    assert (tmp_path / "metrics.csv").read_bytes() == b"a,epoch,step\r\n0.1,0,0\r\n"


def test_rows_wait_for_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = RunRecord(tmp_path / "folder")
    (tmp_path / "folder").touch()  # nothing can be written there
    record.append({"a": 1.0})
    assert "1 rows wait for the next try" in caplog.text
    (tmp_path / "folder").unlink()
    record.append({"a": 2.0})
    assert record.read()[0] == [{"a": 1.0}, {"a": 2.0}]
