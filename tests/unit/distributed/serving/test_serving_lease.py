"""A server's leave to serve: renewed by answers, over with silence, begun again when nothing is missing."""

from __future__ import annotations

import asyncio

from distqat.distributed.serving.serving_lease import FRESH_S, HEARTBEAT, LEASE_S, ServingLease


class Clock:
    """Time as the test wants it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_is_over_before_the_client_frees_the_slot() -> None:
    assert 2 * HEARTBEAT.interval_s < LEASE_S < HEARTBEAT.silence_s


async def test_answers_renew_it_from_the_moment_of_asking() -> None:
    clock = Clock()
    lease = ServingLease(5.0, clock)
    for _ in range(20):
        asked, clock.now = clock.now, clock.now + 2.0
        assert not lease.over
        lease.renew(asked)
        assert lease.silent_s == 2.0
    clock.now += 3.1
    assert lease.over


async def test_once_over_it_stays_so_until_it_is_confirmed() -> None:
    clock = Clock()
    lease = ServingLease(5.0, clock)
    clock.now += 5.1
    assert lease.over
    lease.renew(clock.now)
    assert lease.over
    for age in (6.0, LEASE_S - 0.1, FRESH_S + 0.1):  # the client did not know then what was missed since
        lease.confirm(clock.now - age)
        assert lease.over
    lease.confirm(clock.now - FRESH_S)
    assert not lease.over


async def test_a_stop_of_the_whole_process_ends_it_before_anything_else_runs() -> None:
    clock = Clock()
    lease = ServingLease(5.0, clock)
    clock.now += 30.0
    assert lease.over  # no timer had to fire


async def test_each_end_is_told_once() -> None:
    lease = ServingLease(0.02)
    told: asyncio.Queue[float] = asyncio.Queue()
    watching = asyncio.ensure_future(lease.watch(told.put_nowait))
    assert await asyncio.wait_for(told.get(), 5) >= 0.02
    lease.confirm(lease.now())
    assert await asyncio.wait_for(told.get(), 5) >= 0.02
    assert told.empty()
    watching.cancel()
