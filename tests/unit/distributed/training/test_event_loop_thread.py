"""The event loop beside a training loop: what still runs on it is ended before it is."""

from __future__ import annotations

import asyncio
import threading

import pytest

from distqat.distributed.training.event_loop_thread import EventLoopThread


async def _start(began: threading.Event, ended: threading.Event) -> asyncio.Task[None]:
    async def run() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    return asyncio.ensure_future(run())


def test_close_cancels_what_still_runs() -> None:
    began, ended, loop = threading.Event(), threading.Event(), EventLoopThread()
    task = loop.run(_start(began, ended), 5)
    assert began.wait(5)
    loop.close()
    assert ended.is_set()
    assert task.cancelled()


def test_a_wait_that_takes_too_long_is_cancelled() -> None:
    ended, loop = threading.Event(), EventLoopThread()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(TimeoutError, match=r"did not answer within 0\.1 s"):
        loop.run(wait(), 0.1)
    assert ended.wait(5)
    loop.close()
