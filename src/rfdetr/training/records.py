"""The figures of a run: metrics.jsonl, line by line as they are logged; metrics.csv and log.txt,
rendered from it at the end of each epoch.

A line of metrics.jsonl has what was logged at one step, or under "end_of_epoch" an epoch's record:

    {"train/loss_step": 7.25, "epoch": 0, "step": 3}
    {"end_of_epoch": {"epoch": 0, "step": 4, "seconds": 1.5, "train/loss": 7.31}}

One line is the forecast: an epoch's updates, its seconds of training and of validation, and the
bytes of memory at most; at the end it is there once more, with the bytes taken.

As lines are only added, a checkpoint notes the file's length: a run that goes on from there cuts
what came after.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rfdetr.files import atomic_write
from rfdetr.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

Row = dict[str, Any]
EPOCH, FORECAST = "end_of_epoch", "forecast"
"""Keys of the lines that are no logged rows."""


class RunRecord:
    """metrics.jsonl of a run's folder, and the two files that are rendered from it."""

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.folder = RunFolder(output_dir)
        self.path = self.folder.metrics
        self._waiting: list[Row] = []  # lines that have found no room
        self._changed = False  # since metrics.csv and log.txt were rendered

    @property
    def size(self) -> int:
        """Bytes of metrics.jsonl."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, row: Row, *, ends_epoch: bool = False) -> None:
        """Adds a line, in one write. On a full disk it waits for the next one; that is logged."""
        self._waiting.append({EPOCH: row} if ends_epoch else row)
        content = _as_lines(self._waiting)
        try:
            if not self.path.exists():
                self._rewrite(*self.read())
            size = self.size
            with open(self.path, "ab", buffering=0) as file:
                if file.write(content) != len(content):
                    os.truncate(self.path, size)
                    raise OSError("the disk is full")
        except OSError as error:
            count = len(self._waiting)
            logger.error("%s: %d rows wait for the next try: %s", self.path, count, error)
        else:
            self._waiting, self._changed = [], True

    def cut(self, size: int, epoch: int) -> None:
        """Takes back what was logged past `size` bytes; where there is no file, from `epoch` on."""
        if not self.path.exists():
            return self.drop_from(epoch)
        os.truncate(self.path, self.path.read_bytes().rfind(b"\n", 0, size) + 1)
        self._changed = True
        self.render()

    def drop_from(self, epoch: int, rows: int | None = None) -> None:
        """Removes what a run logs again that begins with `epoch`, counted from 0.

        Rows that tell no epoch stay. `rows` says instead how many of metrics.csv stay.
        """
        logged, epochs = self.read()
        if rows is None:
            logged = [row for row in logged if int(row.get("epoch", -1)) < epoch]
        self._rewrite(logged[:rows], [row for row in epochs if row.get("epoch", -1) < epoch])
        self.render()

    def render(self) -> None:
        """Writes metrics.csv and log.txt where there is more to show; a failure is logged."""
        if not self._changed:
            return
        rows, epochs = self.read()
        columns: dict[str, None] = {}  # in the order in which they came up
        for row in rows:
            columns |= dict.fromkeys(sorted(row.keys() - columns.keys()))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, list(columns))
        writer.writeheader()
        writer.writerows(rows)
        try:
            if rows:
                _write(self.folder.table, table.getvalue().encode())
            if epochs:
                _write(self.folder.log, _as_lines(epochs))
            self._changed = False
        except OSError as error:
            logger.error("%s; the end of the next epoch tries again", error)

    def read(self) -> tuple[list[Row], list[Row]]:
        """The logged rows, and the record of each epoch.

        Earlier versions wrote metrics.csv and log.txt alone: without a metrics.jsonl these are read
        (cells as text).
        """
        if not self.path.exists():
            rows = read_rows(self.folder.table)
            filled = [{name: cell for name, cell in row.items() if cell} for row in rows]
            log = self.folder.log
            return filled, parsed(log.read_text(encoding="utf-8") if log.exists() else "")
        lines = parsed(self.path.read_text(encoding="utf-8"))
        epochs = [line[EPOCH] for line in lines if EPOCH in line]
        return [line for line in lines if not {EPOCH, FORECAST} & line.keys()], epochs

    def _rewrite(self, rows: list[Row], epochs: list[Row]) -> None:
        _write(self.path, _as_lines([*rows, *({EPOCH: epoch} for epoch in epochs)]))
        self._changed = True


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv, as text, without one that a killed run left unfinished."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))


def parsed(text: str) -> list[Row]:
    """The objects of JSON lines, without one that a killed run left unfinished."""
    rows: list[Row] = []
    for line in text.splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _as_lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row, default=str) + "\n" for row in rows).encode()


def _write(path: Path, content: bytes) -> None:
    atomic_write(path, lambda stream: stream.write(content))
