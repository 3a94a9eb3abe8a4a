"""`rfdetr watch`: how a run goes, in the terminal, from the files in its folder alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def watch(
    run: Path,
    /,
    *,
    once: Annotated[bool, Parameter(negative="")] = False,
    every: float = 2.0,
) -> None:
    """Show how a run goes: its curves so far, epoch, loss, mAP and the time left.

    Reads the files in the run's folder and nothing else, so a folder of another machine will do.
    Ends when the run ends.

    Args:
        run: Folder of the run, its output_dir.
        once: Show the present state, and end.
        every: Seconds from one look to the next.
    """
    from rich.console import Console
    from rich.live import Live

    from rfdetr.training.progress import RunProgress

    console, progress = Console(highlight=False), RunProgress(run)
    progress.update()
    if once:
        console.print(progress.shown(console.width))
        return
    with Live(progress.shown(console.width), console=console, auto_refresh=False) as live:
        while progress.goes_on:
            time.sleep(every)
            progress.update()
            live.update(progress.shown(console.width), refresh=True)
