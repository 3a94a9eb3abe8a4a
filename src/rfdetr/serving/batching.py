"""One thread runs the network; what has come while it was busy goes through together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ran(NamedTuple):
    """What became of an item: its result, how many went together, seconds waited and worked."""

    result: Any
    batch: int
    waited: float
    took: float


class _Job(NamedTuple):
    item: Any
    future: Future[Ran]
    since: float


class Batcher(Generic[Item, Result]):
    """Gives items, at most `most` at a time, to `run`, which gives a result for each.

    Nothing waits for company: a batch is what is there when the thread comes back.
    """

    def __init__(self, run: Callable[[list[Item]], Sequence[Result]], most: int) -> None:
        self._run, self._most = run, most
        self._waiting: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> Future[Ran]:
        """The `Ran` of an item, later. One that is cancelled before its turn is never run."""
        job = _Job(item, Future(), time.perf_counter())
        self._waiting.put(job)
        return job.future

    def close(self, seconds: float) -> None:
        """Ends the thread after what was submitted; waits for it no longer than `seconds`."""
        self._waiting.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            jobs: list[_Job] = []
            try:
                while job is not None:
                    if job.future.set_running_or_notify_cancel():
                        jobs.append(job)
                    if len(jobs) == self._most:
                        break
                    job = self._waiting.get_nowait()
            except Empty:
                pass
            if jobs:
                self._answer(jobs)
            if job is None:
                return

    def _answer(self, jobs: list[_Job]) -> None:
        begun = time.perf_counter()
        try:
            results = self._run([job.item for job in jobs])
        except Exception as error:  # noqa: BLE001 - told to whoever waits for it
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:  # one that fails does not fail its neighbours
                self._answer([job])
            return
        took = time.perf_counter() - begun
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(Ran(result, len(jobs), begun - job.since, took))
