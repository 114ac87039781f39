"""A deadline on a wait. `asyncio.wait_for` before Python 3.12 loses a cancellation that meets the result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def within(work: Awaitable[T], seconds: float) -> T:
    """The result of `work`; asyncio.TimeoutError, and `work` cancelled, when it takes longer.

    Cancelling the caller always cancels it, also when the result is there already.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        _let_go(task)
        raise
    if not done:
        _let_go(task)
        raise asyncio.TimeoutError
    return task.result()


def _let_go(task: asyncio.Future[Any]) -> None:
    task.cancel()
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else will look
