"""The one place that prints outside `cli/`: rows of (name, value), progress bars, log lines."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: "0:01:05"."""
    return str(timedelta(seconds=round(seconds)))


def show_rows(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Prints the title and the rows, values aligned; each is one line, so that it can be copied."""
    from rich.console import Console
    from rich.text import Text

    lines = list(rows)
    width = max((len(name) for name, _ in lines), default=0)
    console = Console(soft_wrap=True)
    console.print(Text(title, style="bold"))
    for name, value in lines:
        shown = value.encode(errors="backslashreplace").decode()  # names of files need not be UTF-8
        console.print(Text.assemble((f"  {name:<{width}}  ", "cyan"), shown))


def with_progress(items: Iterable[T], title: str, total: int) -> Iterable[T]:
    """The same items, with a bar and the time left on the error stream if it is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    watched = console.is_terminal
    return track(items, title, total, console=console, transient=True) if watched else items


def download_bar() -> Progress:
    """A bar with size, speed and time left on the error stream; nothing if it is no terminal."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    parts = (
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    columns = progress.TextColumn("{task.description}"), progress.BarColumn(), *parts
    return progress.Progress(*columns, console=console, disable=not console.is_terminal)


class LineHandler(logging.StreamHandler[Any]):
    """Writes log records above a progress bar of tqdm's or rich's, if one is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm: Any = sys.modules.get("tqdm")  # without it there is no bar of its own
        proxy: Any = sys.modules.get("rich.file_proxy")
        own = self.stream
        if proxy and isinstance(sys.stdout, proxy.FileProxy):  # rich's bar takes lines through it
            self.stream = sys.stdout
        with tqdm.tqdm.external_write_mode(own) if tqdm else contextlib.nullcontext():
            super().emit(record)
        self.stream = own


@contextlib.contextmanager
def lines_shown() -> Iterator[None]:
    """Prints what the package logs while the block runs, unless the program has set up `logging`.

    A program that never heard of `logging` so sees each epoch; one that did sees each line once,
    where it wants it.
    """
    package = logging.getLogger("rfdetr")
    if package.hasHandlers():
        yield
        return
    handler, level = LineHandler(sys.stdout), package.level
    package.addHandler(handler)
    package.setLevel(level or logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
