"""The little that the library itself says on the console: rows of (name, value), progress where somebody watches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def show_rows(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Prints the title and the rows with their values aligned; a long value is one line, so that it can be copied."""
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
    return track(items, title, total, console=console, transient=True) if console.is_terminal else items
