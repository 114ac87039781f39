"""One compute thread per device: jobs in order of priority, time accounted by kind."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Priority(IntEnum):
    """Commits end a step, backward work frees memory, forward work comes last (1F1B)."""

    CONTROL = 0
    BACKWARD = 1
    FORWARD = 2


@dataclass
class TimeSpent:
    """Seconds of one kind of work: wall clock, and CPU of the compute thread."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    jobs: int = 0


@dataclass(order=True)
class _Job:
    priority: int
    number: int
    run: Callable[[], Any] = field(compare=False)
    kind: str = field(compare=False)
    answer: asyncio.Future[Any] = field(compare=False)
    loop: asyncio.AbstractEventLoop = field(compare=False)


class ComputeThread:
    """Runs jobs one at a time off the event loop. `submit` may be called from the loop only."""

    def __init__(self, threads: int) -> None:
        self.spent: dict[str, TimeSpent] = {}
        self.started = time.monotonic()
        self._threads = threads
        self._jobs: list[_Job] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    def set_threads(self, threads: int) -> None:
        """Compute with so many threads, from the next job on."""
        self._threads = threads

    def submit(self, priority: Priority, kind: str, run: Callable[[], T]) -> asyncio.Future[T]:
        """Queue a job; the future gets its result or its exception."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        with self._changed:
            heapq.heappush(self._jobs, _Job(priority, next(self._numbers), run, kind, answer, loop))
            self._changed.notify()
        return answer

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._jobs)

    def idle_s(self) -> float:
        """Seconds since the start in which there was nothing to compute."""
        return time.monotonic() - self.started - sum(spent.wall_s for spent in self.spent.values())

    def stop(self) -> None:
        """End after the job that runs; queued jobs are cancelled."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        threads = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._stopping)
                if self._stopping:
                    return
                job = heapq.heappop(self._jobs)
            if job.answer.cancelled():
                continue
            if threads != self._threads:
                threads = self._threads
                torch.set_num_threads(threads)  # per thread: OpenMP's setting belongs to the caller
            self._run(job)

    def _run(self, job: _Job) -> None:
        wall, cpu = time.monotonic(), time.thread_time()
        result: Any = None
        error: BaseException | None = None
        try:
            result = job.run()
        except Exception as raised:  # noqa: BLE001 - handed to whoever waits for the job
            error = raised
        spent = self.spent.setdefault(job.kind, TimeSpent())
        spent.wall_s += time.monotonic() - wall
        spent.cpu_s += time.thread_time() - cpu
        spent.jobs += 1
        if not job.loop.is_closed():
            job.loop.call_soon_threadsafe(_answer, job.answer, result, error)


def _answer(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.cancelled():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
