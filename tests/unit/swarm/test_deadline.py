"""A deadline that loses neither results nor cancellations."""

from __future__ import annotations

import asyncio

import pytest

from distqat.swarm.deadline import within


async def test_results_and_errors_pass_through() -> None:
    async def fails() -> None:
        raise KeyError("x")

    assert await within(asyncio.sleep(0, "done"), 5) == "done"
    with pytest.raises(KeyError):
        await within(fails(), 5)


async def test_what_takes_too_long_is_cancelled() -> None:
    work = asyncio.get_running_loop().create_future()
    with pytest.raises(asyncio.TimeoutError):
        await within(work, 0.01)
    assert work.cancelled()


async def test_a_cancellation_that_meets_the_result_wins() -> None:
    work: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    waiter = asyncio.ensure_future(within(work, 5))
    await asyncio.sleep(0)
    work.set_result("done")
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
