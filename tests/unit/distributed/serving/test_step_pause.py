"""However a block ends, steps that it has paused go on, once."""

from __future__ import annotations

import asyncio

import pytest

from distqat.distributed.serving.step_pause import StepPause


class Steps:
    """Counts as StepLock does: a second pause, or resume, in a row is an error."""

    def __init__(self, quiet: bool = True) -> None:
        self.paused, self.calls = False, 0
        self.quiet = asyncio.Event()
        if quiet:
            self.quiet.set()

    async def pause(self) -> None:
        assert not self.paused
        self.paused, self.calls = True, self.calls + 1
        await self.quiet.wait()

    def resume(self) -> None:
        assert self.paused
        self.paused = False


async def test_paused_within_and_going_afterwards() -> None:
    steps = Steps()
    async with StepPause(steps) as pause:
        assert steps.paused
        pause.let_go()
        pause.let_go()
        assert not steps.paused
        await pause.take()
        await pause.take()
        assert steps.paused
    assert not steps.paused
    assert steps.calls == 2


@pytest.mark.parametrize("let_go", [False, True])
async def test_an_error_leaves_them_going(let_go: bool) -> None:
    steps = Steps()

    async def block() -> None:
        async with StepPause(steps) as pause:
            if let_go:
                pause.let_go()
            raise ValueError("as the test wants")

    with pytest.raises(ValueError, match="as the test wants"):  # and no other error in its place
        await block()
    assert not steps.paused


async def test_who_is_cancelled_before_they_stand_still_leaves_them_going() -> None:
    steps = Steps(quiet=False)

    async def block() -> None:
        async with StepPause(steps):
            raise AssertionError("they never stand still")

    task = asyncio.ensure_future(block())
    await asyncio.sleep(0)
    assert steps.paused
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not steps.paused
