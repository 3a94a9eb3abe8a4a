"""How processes that load images are started: scripts, notebooks and threads need no special form.

This rests on a private method of Python's, `_Popen` of a process class, that starts the process. A
Python without it would start plain processes: spawned ones run a script that has no main guard
again, which fails, and forked ones can keep a program that wants to exit waiting.
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
    """Forked processes on Linux, which start at once; elsewhere, or if so chosen, spawned ones."""
    # `multiprocessing`'s own default would not do: from Python 3.14 on it no longer forks on Linux.
    default = "fork" if sys.platform == "linux" else "spawn"
    method = multiprocessing.get_start_method(allow_none=True) or default
    return _SpawnWithoutMain() if method != "fork" or sys.platform == "win32" else _Fork()


def outlive_signals(_worker: int = 0) -> None:
    """Let a worker ignore the signals that end a run: they reach it too, but the run ends it."""
    for name in {"SIGINT", "SIGTERM", "SIGUSR1"} & signal.Signals.__members__.keys():
        signal.signal(signal.Signals[name], signal.SIG_IGN)


def _killable(process: Any) -> Any:
    """The same process, killed by `terminate`: Python does that at exit, and waits for the end."""
    process.terminate = process.kill
    return process


class _SpawnWithoutMain(SpawnContext):
    """Spawns processes that do not import the main module, which would run the user's script again.

    A script without `if __name__ == "__main__":` would start to train in every worker. Workers need
    nothing of it: what they unpickle is defined in this package.
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
    """Inside, the main module has neither file nor spec, by which a new process would find it."""
    names = vars(sys.modules["__main__"])
    known = [name for name in ("__file__", "__spec__") if name in names]  # a notebook has no file
    before: dict[str, Any] = {name: names[name] for name in known}
    names.update(dict.fromkeys(before))
    try:
        yield
    finally:
        names.update(before)
