"""metrics.csv and log.txt over interruptions."""

from __future__ import annotations

import csv
from pathlib import Path

from rfdetr.training.records import RunCSVLogger, drop_rows_from_epoch, read_records, write_records


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def log(folder: Path, *rows: tuple[dict[str, float], int]) -> Path:
    logger = RunCSVLogger(folder)
    for figures, step in rows:
        logger.log_metrics(figures, step)
        logger.save()
    return folder / "metrics.csv"


def test_a_second_logger_goes_on_in_the_file_and_adds_columns(tmp_path: Path) -> None:
    log(tmp_path, ({"a": 1.0}, 0))
    path = log(tmp_path, ({"a": 2.0}, 1), ({"b": 3.0}, 2))
    assert rows_of(path) == [
        {"a": "1.0", "b": "", "step": "0"},
        {"a": "2.0", "b": "", "step": "1"},
        {"a": "", "b": "3.0", "step": "2"},
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_rows_that_will_be_logged_again_are_dropped(tmp_path: Path) -> None:
    rows = [({"a": float(step), "epoch": step // 2}, step) for step in range(4)]
    path = log(tmp_path, *rows, ({"test/a": 1.0}, 4))
    drop_rows_from_epoch(path, 1)
    assert [row["step"] for row in rows_of(path)] == ["0", "1", "4"]  # the last says no epoch
    drop_rows_from_epoch(tmp_path / "none.csv", 1)  # nothing to drop is no error


def test_an_unfinished_line_of_log_txt_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    assert read_records(path) == []
    write_records(path, [{"epoch": 0}, {"epoch": 1}])
    path.write_text(path.read_text() + '{"epoch": 2, "tra')
    assert read_records(path) == [{"epoch": 0}, {"epoch": 1}]
