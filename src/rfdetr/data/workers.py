"""How the processes that load images are started, so that scripts, notebooks and threads need no special form."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from typing import Any


def worker_context() -> BaseContext:
    """Forked processes on Linux, which start at once; elsewhere, or where the program chose so, spawned ones."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    method = chosen or ("fork" if sys.platform == "linux" else "spawn")  # not the system's: Linux has left fork
    return multiprocessing.get_context("fork") if method == "fork" else _SpawnWithoutMain()


def outlive_signals(_worker: int = 0) -> None:
    """What ends a run reaches its whole process group: workers go on until the run has left its step, 30 s at most."""
    if sys.platform != "win32":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))  # whose own signal ends the process


class _SpawnWithoutMain(SpawnContext):
    """Spawns processes that do not run the user's script again.

    Others import the main module first, and a script that trains without `if __name__ == "__main__":` would start to
    train in every worker. Ours need nothing of it: what they unpickle is defined in this package.
    """

    class Process(SpawnProcess):
        @staticmethod
        def _Popen(process_obj: Any) -> Any:
            with _hidden_main():
                return SpawnProcess._Popen(process_obj)


@contextmanager
def _hidden_main() -> Iterator[None]:
    names = vars(sys.modules["__main__"])
    known = [name for name in ("__file__", "__spec__") if name in names]  # a notebook has no file
    before: dict[str, Any] = {name: names[name] for name in known}
    names.update(dict.fromkeys(before))
    try:
        yield
    finally:
        names.update(before)
