"""What the step lock decides is carried out at once, by events and at its deadline."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.fakes.direct_calls import hop_of

from distqat.distributed.serving.attempt_queue import AttemptQueue
from distqat.distributed.serving.attempt_state import OpenAttempt
from distqat.errors import StaleAttempt
from distqat.protocol.calls.step_calls import OpenStep
from distqat.protocol.step_attempts import StepId
from distqat.protocol.step_lock import StepLock

UID = "front.0.0.0"


def attempt(trainer: str, step: int = 1) -> OpenAttempt:
    return OpenAttempt.of(OpenStep(StepId(trainer, 1, step, 0), (hop_of(UID),), 1, True), UID)


class Replica:
    """A queue with the work that it had undone, and the attempts whose route was to be asked."""

    def __init__(self, lease_s: float) -> None:
        self.lock, self.undone, self.asked = StepLock(lease_s=lease_s), 0, list[OpenAttempt]()
        self.queue = AttemptQueue(self.lock, UID, self.undo, self.asked.append)

    def undo(self) -> asyncio.Future[None]:
        self.undone += 1
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


async def test_who_is_silent_for_the_lease_loses_the_lock_to_the_next() -> None:
    replica, silent, following = Replica(0.1), attempt("a"), attempt("b")
    began = time.monotonic()
    await replica.queue.enter(silent)
    await replica.queue.enter(following)
    assert 0.1 <= time.monotonic() - began < 0.9  # at the deadline; it was looked at every second once
    assert (replica.queue.current, replica.undone) == (following, 1)
    with pytest.raises(StaleAttempt):
        replica.queue.work_of(silent.id)
    replica.queue.close()


async def test_work_moves_the_deadline() -> None:
    replica, only = Replica(0.05), attempt("a")
    await replica.queue.enter(only)
    replica.lock.touch(only.id, time.monotonic() + 30.0)
    await asyncio.sleep(0.2)  # past the deadline that the timer was set for
    assert replica.queue.work_of(only.id) is only
    replica.queue.close()


async def test_the_route_of_a_silent_attempt_that_is_prepared_is_asked_again_and_again() -> None:
    replica, only = Replica(0.05), attempt("a")
    await replica.queue.enter(only)
    replica.lock.prepare(only.id, time.monotonic())
    while len(replica.asked) < 2:  # noqa: ASYNC110  ended by the timeout of the test
        await asyncio.sleep(0.01)
    assert (replica.asked[0], replica.undone, replica.queue.current) == (only, 0, only)
    replica.queue.close()


async def test_idle_returns_when_the_attempt_is_over() -> None:
    replica, only = Replica(30.0), attempt("a")
    await replica.queue.idle()
    await replica.queue.enter(only)
    leaving = asyncio.ensure_future(replica.queue.idle())
    await asyncio.sleep(0)
    assert not leaving.done()
    await replica.queue.drop(only.id)
    await asyncio.wait_for(leaving, 1)
    assert replica.undone == 1
    await replica.queue.drop(only.id)  # may be repeated
    assert replica.undone == 1
    replica.queue.close()


async def test_steps_are_paused_within_a_block_and_go_on_after_it() -> None:
    replica = Replica(30.0)
    async with replica.queue.paused():
        entering = asyncio.ensure_future(replica.queue.enter(attempt("a")))
        await asyncio.sleep(0)
        assert replica.lock.paused
        replica.queue.resume()
        replica.queue.resume()
        await asyncio.wait_for(entering, 1)  # let go within the block
        pausing = asyncio.ensure_future(replica.queue.pause())
        await asyncio.sleep(0)
        assert not pausing.done()  # a step is at work
        await replica.queue.drop(attempt("a").id)
        await asyncio.wait_for(pausing, 1)
        await replica.queue.pause()
        assert replica.lock.paused
    assert not replica.lock.paused
    replica.queue.close()


@pytest.mark.parametrize("let_go", [False, True])
async def test_an_error_leaves_steps_going(let_go: bool) -> None:
    replica = Replica(30.0)

    async def block() -> None:
        async with replica.queue.paused():
            if let_go:
                replica.queue.resume()
            raise ValueError("as the test wants")

    with pytest.raises(ValueError, match="as the test wants"):  # and no other error in its place
        await block()
    assert not replica.lock.paused


async def test_who_is_cancelled_before_steps_stand_still_leaves_them_going() -> None:
    replica = Replica(30.0)
    await replica.queue.enter(attempt("a"))

    async def block() -> None:
        async with replica.queue.paused():
            raise AssertionError("they never stand still")

    task = asyncio.ensure_future(block())
    await asyncio.sleep(0)
    assert replica.lock.paused
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not replica.lock.paused
    replica.queue.close()
