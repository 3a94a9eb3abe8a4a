"""metrics.csv and log.txt: each row is in the file as soon as it is logged, and a resumed run takes
back its own.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

from rfdetr.files import atomic_write

METRICS_FILE = "metrics.csv"

logger = logging.getLogger(__name__)


class RunCSVLogger(CSVLogger):
    """Lightning's CSV logger, writing `output_dir`/metrics.csv row by row and keeping the rows that
    are there.
    """

    def __init__(self, output_dir: str | Path) -> None:
        super().__init__(output_dir, name="", version="")

    @property
    def experiment(self) -> Any:
        if self._experiment is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._experiment = _RowWriter(self.log_dir)
        return super().experiment


class _RowWriter(ExperimentWriter):
    """Appends rows with one write each; rows that find no room wait for the next."""

    def _check_log_dir_exists(self) -> None:  # in place of a warning and the removal of the file
        pass

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, step)
        self.save()

    def save(self) -> None:
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        try:
            columns = _columns(path)
            if new := sorted(set().union(*self.metrics) - set(columns)):
                _write_csv(path, [*columns, *new], [*read_rows(path), *self.metrics])
            else:
                _append(path, _csv_text(columns, self.metrics).encode())
        except OSError as error:
            logger.error("%s: %d rows wait for the next try: %s", path, len(self.metrics), error)
            return
        self.metrics = []


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.csv, as text; a last line that a killed run left unfinished is not one."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))


def count_rows(path: Path) -> int:
    """How many whole rows a metrics.csv has."""
    return max(path.read_bytes().count(b"\n") - 1, 0) if path.exists() else 0


def keep_rows(path: Path, count: int) -> None:
    """Cuts a metrics.csv to its first rows: those that were there when the checkpoint to go on from
    was written.
    """
    if count == 0:
        path.unlink(missing_ok=True)
    elif path.exists():
        _write_csv(path, _columns(path), read_rows(path)[:count])


def drop_rows_from_epoch(path: Path, epoch: int) -> None:
    """Removes from a metrics.csv the rows that a run will log again which begins with an epoch,
    counted from 0.
    """
    rows = read_rows(path)
    kept = [row for row in rows if not row.get("epoch") or int(row["epoch"]) < epoch]
    if len(kept) < len(rows):
        _write_csv(path, _columns(path), kept)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The epochs of a log.txt; a line that a killed run left unfinished is not one."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a log.txt: one JSON object an epoch."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    atomic_write(path, lambda stream: stream.write(text.encode()))


def _columns(path: Path) -> list[str]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def _append(path: Path, content: bytes) -> None:
    size = path.stat().st_size
    with open(path, "ab", buffering=0) as file:
        try:
            if file.write(content) != len(content):
                raise OSError("the disk is full")
        except OSError:
            os.truncate(path, size)
            raise


def _csv_text(
    fieldnames: list[str], rows: Iterable[Mapping[str, Any]], header: bool = False
) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=fieldnames)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_csv(path: Path, fieldnames: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
    text = _csv_text(fieldnames, rows, header=True)
    atomic_write(path, lambda stream: stream.write(text.encode()))
