"""metrics.csv in the output directory itself, going on where a resumed run left off."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

from rfdetr.weights.writing import atomic_write

METRICS_FILE = "metrics.csv"


class RunCSVLogger(CSVLogger):
    """Lightning's CSV logger, writing `output_dir`/metrics.csv and keeping the rows that are there."""

    def __init__(self, output_dir: str | Path) -> None:
        super().__init__(output_dir, name="", version="")

    @property
    def experiment(self) -> Any:
        if self._experiment is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._experiment = _AppendingWriter(self.log_dir)
        return super().experiment


class _AppendingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:  # in place of a warning and the removal of the file
        path = Path(self.metrics_file_path)
        if path.exists():
            with open(path, newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        _write_csv(path, fieldnames, rows)


def drop_rows_from_step(path: Path, step: int) -> None:
    """Removes from a metrics.csv what a resumed run is about to log again; all of it for step 0."""
    if not path.exists():
        return
    if step == 0:
        path.unlink()
        return
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if int(row["step"]) < step]
        _write_csv(path, list(reader.fieldnames or []), rows)


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


def _write_csv(path: Path, fieldnames: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=fieldnames)
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, lambda stream: stream.write(text.getvalue().encode()))
