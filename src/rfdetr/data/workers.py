"""How processes that load images are started: scripts, notebooks and threads need no special form.

This rests on `_Popen`, a private method of Python's process classes that starts the process. A
Python that no longer calls it would start plain processes: spawned ones import the script, which
needs a main guard then, and forked ones may keep a program that wants to exit waiting.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
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
            names = vars(sys.modules["__main__"])
            hidden = {name: names[name] for name in names if name in ("__file__", "__spec__")}
            names.update(dict.fromkeys(hidden))  # None: then there is nothing to import
            try:
                return _killable(SpawnProcess._Popen(process_obj))
            finally:
                names.update(hidden)


if sys.platform != "win32":
    from multiprocessing.context import ForkContext, ForkProcess

    class _Fork(ForkContext):
        class Process(ForkProcess):
            @staticmethod
            def _Popen(process_obj: Any) -> Any:
                return _killable(ForkProcess._Popen(process_obj))
