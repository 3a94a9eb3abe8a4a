"""How the processes that load images are started, so that scripts, notebooks and threads need no
special form.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from typing import Any


def worker_context() -> BaseContext:
    """Forked processes on Linux, which start at once; elsewhere, or where the program chose so,
    spawned ones.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    method = chosen or (
        "fork" if sys.platform == "linux" else "spawn"
    )  # not the system's: Linux has left fork
    return _SpawnWithoutMain() if method != "fork" or sys.platform == "win32" else _Fork()


def outlive_signals(_worker: int = 0) -> None:
    """Lets a worker ignore what ends a run, which reaches its whole process group: the run ends its
    workers itself.
    """
    for name in {"SIGINT", "SIGTERM", "SIGUSR1"} & signal.Signals.__members__.keys():
        signal.signal(signal.Signals[name], signal.SIG_IGN)


def _killable(process: Any) -> Any:
    """The process, which `terminate` kills: Python terminates workers when it exits, and then waits
    for them.
    """
    process.terminate = process.kill
    return process


class _SpawnWithoutMain(SpawnContext):
    """Spawns processes that do not run the user's script again.

    Others import the main module first, and a script that trains without `if __name__ ==
    "__main__":` would start to train in every worker. Ours need nothing of it: what they unpickle
    is defined in this package.
    """

    class Process(SpawnProcess):
        @staticmethod
        def _Popen(process_obj: Any) -> Any:
            with _hidden_main():
                return _killable(SpawnProcess._Popen(process_obj))


if sys.platform != "win32":
    from multiprocessing.context import ForkContext, ForkProcess

    class _Fork(ForkContext):
        class Process(ForkProcess):
            @staticmethod
            def _Popen(process_obj: Any) -> Any:
                return _killable(ForkProcess._Popen(process_obj))


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
