"""Daemon threads: results, errors and cancellation as of any executor."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest

from distqat.data.serving.daemon_threads import DaemonThreads


def test_results_errors_and_end() -> None:
    threads = DaemonThreads(2, name="test")
    assert sorted(f.result(5) for f in [threads.submit(pow, 2, n) for n in range(5)]) == [1, 2, 4, 8, 16]
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 1, 0).result(5)
    threads.shutdown(wait=True)
    with pytest.raises(RuntimeError, match="shut down"):
        threads.submit(int)


def test_waiting_jobs_are_cancelled_and_running_ones_do_not_hold_us() -> None:
    threads, go, started = DaemonThreads(1, name="test"), threading.Event(), threading.Event()

    def stall() -> bool:
        started.set()
        return go.wait(10)

    running = threads.submit(stall)
    waiting = threads.submit(int)
    assert started.wait(5)
    threads.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    assert not running.done()
    go.set()
    wait([running], 5)
    assert running.result() is True
