"""Where a run stands, read from its folder: state, figures, curves. Light: without PyTorch."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from rfdetr.console import duration
from rfdetr.errors import InputError
from rfdetr.files import is_locked, lock_owner
from rfdetr.training.records import EPOCH, FORECAST, Row, parsed
from rfdetr.training.run_folder import RunFolder

_SILENT = 600.0  # seconds without a line, after which a run elsewhere may have died
_HEIGHT = 6  # rows of a curve
_BLOCKS = " ▁▂▃▄▅▆▇█"
_FIGURES = {  # by name; the better of averaged and live weights counts
    "mask mAP": ("val/ema_segm_mAP_50_95", "val/segm_mAP_50_95"),
    "mAP": ("val/ema_mAP_50_95", "val/mAP_50_95"),
}


class RunProgress:
    """What the files of a run tell; `update` reads what was added since.

    Raises `InputError` for a folder without a run.
    """

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        self._offset = 0
        self._forget()
        if not (self.folder.config.is_file() or self.folder.lock.path.exists()):
            told = "expected the output_dir of one, with its config.yaml and metrics.jsonl"
            raise InputError(f"there is no run in {path}: {told}")

    def _forget(self) -> None:
        self._offset = 0
        self.losses: list[float] = []  # of each update
        self.epochs: list[Row] = []
        self.forecast: Row = {}
        self.step = 0

    def update(self) -> None:
        """Reads the lines that were added; all of them where a resumed run has cut the file."""
        path = self.folder.metrics
        size = path.stat().st_size if path.exists() else 0
        if size < self._offset:
            self._forget()
        if size == self._offset:
            return
        with open(path, "rb") as stream:
            stream.seek(self._offset)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]  # a line may be half written
        self._offset += len(whole)
        for row in parsed(whole.decode()):
            if EPOCH in row:
                self.epochs.append(row[EPOCH])
            elif FORECAST in row:
                self.forecast = row[FORECAST]
            elif "train/loss_step" in row:
                self.losses.append(float(row["train/loss_step"]))
                self.step = int(row["step"]) + 1

    @property
    def settings(self) -> dict[str, Any]:
        """The training settings of the run's config.yaml; empty before there is one."""
        with suppress(OSError, ValueError, AttributeError, yaml.YAMLError):
            text = self.folder.config.read_text(encoding="utf-8")
            return dict(yaml.safe_load(text)["train"])
        return {}

    @property
    def state(self) -> str:
        """ "running", "finished" or "stopped"; of a run elsewhere that is silent, for how long."""
        lock = self.folder.lock.path
        if is_locked(lock):
            return "running"
        if lock.exists() and lock_owner(lock)["host"] not in ("?", platform.node()):
            with suppress(OSError):
                silent = time.time() - self.folder.metrics.stat().st_mtime
                if silent > _SILENT:
                    return f"running elsewhere, silent for {duration(silent)}"
            return "running"
        return "finished" if self.folder.results.exists() else "stopped"

    @property
    def goes_on(self) -> bool:
        return self.state.startswith("running")

    def seconds_left(self) -> float | None:
        """Until the end of the last epoch, or of the time that the run has; None: not known."""
        settings = self.settings
        updates = self.forecast.get("updates")
        seconds = float(sum(self.forecast.get("seconds", [0])))
        if self.epochs:
            recent = [float(row["seconds"]) for row in self.epochs[-3:]]
            seconds = sum(recent) / len(recent)
            steps = [0, *(int(row["step"]) for row in self.epochs)]
            updates = updates or steps[-1] - steps[-2]
        if not seconds or not updates or "epochs" not in settings:
            return None
        before = int(self.epochs[-1]["step"]) if self.epochs else 0
        into = min(max(self.step - before, 0) / updates, 1.0)  # of the epoch that is going on
        left: float = (int(settings["epochs"]) - len(self.epochs) - into) * seconds
        if minutes := settings.get("minutes"):
            spent = sum(float(row["seconds"]) for row in self.epochs) + into * seconds
            left = min(left, 60 * float(minutes) - spent)
        return max(left, 0.0)

    def shown(self, width: int = 80) -> Panel:
        """All of it as one panel of so many columns."""
        state, most = self.state, self.settings.get("epochs")
        number = len(self.epochs) + self.goes_on
        number = number if most is None else min(number, int(most))
        of = "" if most is None else f" of {most}"
        facts = [state, f"epoch {number}{of}, update {self.step:,}"]
        if self.losses:
            facts.append(f"loss {_mean(self.losses[-20:]):.3f}")
        known: dict[str, list[float]] = {name: [] for name in _FIGURES}
        for row, (name, keys) in itertools.product(self.epochs, _FIGURES.items()):
            if found := [float(row[key]) for key in keys if row.get(key) is not None]:
                known[name].append(max(found))
        facts += [f"{name} {values[-1]:.3f}" for name, values in known.items() if values]
        if self.goes_on and (left := self.seconds_left()) is not None:
            facts.append(f"about {duration(left)} left")
        lines: list[Text] = [Text(", ".join(facts), style="bold")]
        inside = min(max(width - 16, 20), 100)
        lines += curve("loss", self.losses, inside, "yellow")
        for name, values in known.items():
            lines += curve(name, values, inside, "green")
        title = f"{self.folder.path}"
        return Panel(Group(*lines), title=title, title_align="left", width=min(width, 120))


def curve(title: str, values: Sequence[float], width: int, colour: str) -> list[Text]:
    """A curve in `_HEIGHT` lines of blocks, with its highest and its lowest value at the left; more
    values than columns are averaged. Nothing for fewer than two values.
    """
    finite = [value for value in values if value - value == 0]
    if len(finite) < 2:
        return []
    columns = min(width, len(finite))
    bounds = [round(i * len(finite) / columns) for i in range(columns + 1)]
    means = [_mean(finite[a:b]) for a, b in itertools.pairwise(bounds)]
    low, high = min(means), max(means)
    span = high - low or 1.0
    eighths = [round((mean - low) / span * (8 * _HEIGHT - 1)) + 1 for mean in means]
    repeats = max(1, width // columns) if columns < width else 1
    lines = [Text(f"\n{title}, {finite[0]:.3f} to {finite[-1]:.3f}", style=colour)]
    for row in reversed(range(_HEIGHT)):
        edge = {_HEIGHT - 1: f"{high:.3f}", 0: f"{low:.3f}"}.get(row, "")
        bars = "".join(_BLOCKS[min(max(n - 8 * row, 0), 8)] * repeats for n in eighths)
        lines.append(Text(f"{edge:>9} ") + Text(bars, style=colour))
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
