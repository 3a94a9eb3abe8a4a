"""The little that the library itself says on the console: rows of (name, value), progress where
somebody watches.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def show_rows(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Prints the title and the rows with their values aligned; a long value is one line, so that it
    can be copied.
    """
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
    """The same items, with a bar and the time left on a terminal's error stream."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return (
        track(items, title, total, console=console, transient=True)
        if console.is_terminal
        else items
    )


class LineHandler(logging.StreamHandler[Any]):
    """Writes log records above a progress bar of tqdm's, if one is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm: Any = sys.modules.get("tqdm")  # without it there is no bar
        with tqdm.tqdm.external_write_mode(self.stream) if tqdm else contextlib.nullcontext():
            super().emit(record)


@contextlib.contextmanager
def lines_shown() -> Iterator[None]:
    """Prints what the package logs while the block runs, warnings too, unless the program has set
    up `logging` itself.

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
