"""Deaths in the middle of an inner step, over the in-memory transport; the ledger balances after each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.failover.memory_scene import TRAINER, Driver, Fault, arm, batches, equal, mlp, state
from tests.fakes.memory_transport import MemoryLink, MemoryNetwork, MemoryTransport
from tests.swarm_scene import MemorySwarm

from distqat.errors import PeerGone, StaleAttempt, SwarmError
from distqat.protocol.calls.step_calls import AbortStep, PrepareStep
from distqat.protocol.hop import PeerAddress
from distqat.protocol.step_attempts import StepId
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.call_messages import ask
from distqat.swarm.tensor_frame import Message
from distqat.tasks.base import Batch

pytestmark = [pytest.mark.timeout(30), pytest.mark.usefixtures("one_thread")]
FRONT, BACK, SPARE = "front.0.0.0", "back.0.0.0", 1
STEPS, HIT = 5, 3  # the third step is disturbed
MICROBATCHES = 3
IN_THE_COMMIT = ("call.commit", "stage.commit.before_apply", "stage.commit.after_apply")


async def undisturbed(route_after: tuple[int, int], *, repeated: bool) -> dict[str, dict[str, torch.Tensor]]:
    """States after the same steps, the later ones over another route, without any death.

    `repeated`: the disturbed step was run again, so it is the first over the other route.
    """
    config = mlp()
    changes_after = HIT - 1 if repeated else HIT
    async with MemorySwarm(config, replicas=2) as swarm:
        for number, batch in enumerate(batches(config, STEPS)):
            await swarm.step(batch, hops=swarm.route(*(route_after if number >= changes_after else (0, 0))))
        return {server.uid: state(swarm, server.uid) for server in swarm.stages}


async def killed(
    patch: pytest.MonkeyPatch, point: str, at: str, per_step: int
) -> tuple[Driver, dict[str, dict[str, torch.Tensor]]]:
    """Five steps, in the third of which `at` dies at `point`; the states of the replicas at the end."""
    config = mlp()
    fault = Fault(point, at, hit=(HIT - 1) * per_step + min(per_step, 2))
    async with MemorySwarm(config, replicas=2) as swarm:
        driver = Driver(swarm)
        passage = arm(patch, driver.kill, fault)
        for server in swarm.stages:
            server.passage = passage
        for batch in batches(config, STEPS):
            await asyncio.wait_for(driver.train(batch), 10)
        assert fault.fired, fault
        assert driver.dead == {at}
        driver.check()
        return driver, {server.uid: state(swarm, server.uid) for server in swarm.stages}


def routes(dead: str) -> tuple[tuple[int, int], list[str]]:
    """The route around the dead replica, and the replicas that live."""
    after = (SPARE, 0) if dead == FRONT else (0, SPARE)
    return after, [f"front.0.{after[0]}.0", f"back.0.{after[1]}.0"]


@pytest.mark.parametrize("at", [FRONT, BACK])
@pytest.mark.parametrize(
    ("point", "per_step"),
    [
        ("call.open", 1),
        ("stage.forward", MICROBATCHES),
        ("stage.backward.before_apply", MICROBATCHES),
        ("stage.backward.before_answer", MICROBATCHES),
        ("stage.prepare", 1),
    ],
)
async def test_a_death_before_the_commit_is_one_aborted_attempt(
    monkeypatch: pytest.MonkeyPatch, point: str, per_step: int, at: str
) -> None:
    if at == BACK and point in ("stage.forward", "stage.backward.before_apply"):
        point = "call.train"  # the last stage has its whole work in one call
    driver, states = await killed(monkeypatch, point, at, per_step)
    assert len(driver.attempts) == 1
    assert driver.attempts[0].at == at  # also when the other stage or the trainer told of it
    assert driver.ledger.aborted == {"front": 1, "back": 1}
    assert not driver.ledger.lost
    after, living = routes(at)
    expected = await undisturbed(after, repeated=True)
    assert all(equal(states[uid], expected[uid]) for uid in living)


@pytest.mark.parametrize(
    ("point", "at"),
    [
        ("call.decide", FRONT),  # where a step is decided, as long as the first stage lives
        *((point, at) for point in IN_THE_COMMIT for at in (FRONT, BACK)),
    ],
)
async def test_a_death_in_the_commit_is_lost_there_and_never_repeated(
    monkeypatch: pytest.MonkeyPatch, point: str, at: str
) -> None:
    driver, states = await killed(monkeypatch, point, at, per_step=1)
    assert driver.attempts == []
    assert driver.ledger.lost == {at.partition(".")[0]: 1}
    after, living = routes(at)
    expected = await undisturbed(after, repeated=False)
    assert all(equal(states[uid], expected[uid]) for uid in living)


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop and the compute threads go on until it holds; the test's deadline ends it."""
    while not condition():  # noqa: ASYNC110  counters have no event; each turn lets a thread finish
        await asyncio.sleep(0.001)


async def ended(swarm: MemorySwarm, attempts: int) -> None:
    """Every stage has applied or aborted so many attempts."""
    counts = [server.steps.tally.counts for server in swarm.stages]
    await until(lambda: all(each["applied"] + each["aborted"] == attempts for each in counts))


async def next_trainer(swarm: MemorySwarm, batch: list[Batch]) -> None:
    """Another trainer gets the windows at once."""
    swarm.stepper.transport, swarm.stepper.trainer = MemoryTransport(swarm.network, "another"), "another"
    result = await asyncio.wait_for(swarm.step(batch), 5)
    assert result.lost == ()


@pytest.mark.parametrize(
    "faults",
    [
        [],  # all are prepared, no commit was sent
        [Fault("call.prepare", BACK, hit=3, victim=TRAINER)],  # one is prepared, or about to be
        [Fault("call.train", BACK, hit=8, victim=TRAINER)],  # none is
    ],
    ids=["prepared", "half prepared", "training"],
)
async def test_a_trainer_that_dies_before_its_commits_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch, faults: list[Fault]
) -> None:
    config = mlp()
    first, second, third, fourth = batches(config, 4)
    async with MemorySwarm(config) as swarm:
        driver = Driver(swarm)
        passage = arm(monkeypatch, driver.kill, *faults)
        for server in swarm.stages:
            server.passage = passage
        for batch in (first, second):
            await driver.train(batch)
        before = {server.uid: state(swarm, server.uid) for server in swarm.stages}

        async def dies() -> None:
            driver.kill(TRAINER)
            raise asyncio.CancelledError

        with pytest.raises((SwarmError, asyncio.CancelledError)):
            await asyncio.wait_for(swarm.step(third, consumed=dies), 10)
        assert driver.dead == {TRAINER}
        assert all(fault.fired for fault in faults)
        await ended(swarm, 3)
        assert {server.uid: server.steps.tally.counts["applied"] for server in swarm.stages} == {
            FRONT: 2,
            BACK: 2,
        }
        assert all(equal(before[server.uid], state(swarm, server.uid)) for server in swarm.stages)
        await next_trainer(swarm, fourth)


async def test_a_decided_step_reaches_a_stage_that_hears_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer dies when the first stage has decided: the other asks and follows."""
    config = mlp()
    first, second, third = batches(config, 3)
    async with MemorySwarm(config) as undisturbed_swarm, MemorySwarm(config) as swarm:
        for batch in (first, second):
            await undisturbed_swarm.step(batch)
        driver = Driver(swarm)
        fault = Fault("stage.commit.before_apply", FRONT, hit=2, victim=TRAINER, goes_on=True)
        arm(monkeypatch, driver.kill, fault)
        await driver.train(first)
        deaf = swarm.stage(BACK)

        async def hears_no_commit(call: IncomingCall) -> Message:
            if call.method in ("decide", "commit"):
                await asyncio.Event().wait()
            return await deaf.answer(call)

        await deaf.transport.serve(hears_no_commit, deaf.steps.attempts.gone)
        result = await asyncio.wait_for(swarm.step(second), 10)
        assert fault.fired
        assert set(result.lost) == {FRONT, BACK}  # as far as the dead could tell
        await ended(swarm, 2)
        for server in swarm.stages:
            assert server.steps.tally.counts["applied"] == sum(server.applied.values()) == 2, server.uid
            assert equal(state(swarm, server.uid), state(undisturbed_swarm, server.uid)), server.uid
        await deaf.transport.serve(deaf.answer, deaf.steps.attempts.gone)
        await next_trainer(swarm, third)


def hang_up(swarm: MemorySwarm, uid: str) -> None:
    """The trainer's link to a replica breaks; both live on."""
    swarm.trainer._links[uid].end("it broke")


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("reachable", [True, False])
async def test_a_trainer_that_is_cut_off_in_its_commit_splits_nothing(
    monkeypatch: pytest.MonkeyPatch, recorded: bool, reachable: bool
) -> None:
    """Its link to the first stage breaks in the commit, and it gets a new one or none; both live on.

    Without one the last stage, which still reaches the first, asks there before it takes the trainer's word.
    """
    config = mlp()
    first, second, third = batches(config, 3)
    async with MemorySwarm(config) as expected, MemorySwarm(config) as swarm:
        for batch in (first, second):
            await expected.step(batch)
        await swarm.step(first)
        front, broken = swarm.stage(FRONT), asyncio.Event()
        link = swarm.trainer.link

        async def no_link(to: PeerAddress) -> MemoryLink:
            if not reachable and broken.is_set() and to.peer == FRONT:
                raise PeerGone(f"{FRONT} is gone: no connection")
            return await link(to)

        async def breaks(call: IncomingCall) -> Message:
            if call.method != "decide" or broken.is_set():
                return await front.answer(call)
            if recorded:
                await front.answer(call)
            broken.set()
            asyncio.get_running_loop().call_soon(hang_up, swarm, FRONT)
            return await asyncio.Event().wait()  # type: ignore[return-value]

        monkeypatch.setattr(swarm.trainer, "link", no_link)
        await front.transport.serve(breaks, front.steps.attempts.gone)
        step = asyncio.wait_for(swarm.step(second), 10)
        if recorded:
            assert (await step).lost == (() if reachable else (FRONT,))
        else:
            with pytest.raises(StaleAttempt):
                await step
        assert broken.is_set()
        await ended(swarm, 2)
        assert [server.steps.tally.counts["applied"] for server in swarm.stages] == [1 + recorded] * 2
        monkeypatch.setattr(swarm.trainer, "link", link)
        if not recorded:
            swarm.step_number -= 1
            assert (await asyncio.wait_for(swarm.step(second, attempt=2), 10)).lost == ()
        for server in swarm.stages:
            assert sum(server.applied.values()) == 2
            assert equal(state(swarm, server.uid), state(expected, server.uid)), server.uid
        await next_trainer(swarm, third)


class Echo(MemoryTransport):
    """A trainer all of whose calls of one method arrive twice."""

    def __init__(self, network: MemoryNetwork, peer: str, method: str, *, at_once: bool) -> None:
        super().__init__(network, peer)
        self.repeated = 0
        self._method, self._at_once = method, at_once

    async def link(self, to: PeerAddress) -> MemoryLink:
        link, call = await super().link(to), MemoryLink.call

        async def twice(
            method: str, message: Message | None = None, *, timeout: float, **how: Any
        ) -> Message:
            if method != self._method:
                return await call(link, method, message, timeout=timeout, **how)
            again = [call(link, method, message, timeout=timeout) for _ in range(2)]
            replies = await asyncio.gather(*again) if self._at_once else [await each for each in again]
            self.repeated += 1
            assert replies[0].fields == replies[1].fields
            assert equal(dict(replies[0].tensors), dict(replies[1].tensors))
            return replies[1]

        link.call = twice  # type: ignore[method-assign]
        return link


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("method", ["open", "train", "labels", "prepare", "decide", "commit", "abort"])
async def test_what_arrives_twice_counts_once(method: str, at_once: bool) -> None:
    config = mlp()
    async with MemorySwarm(config) as plain, MemorySwarm(config) as doubled:
        echo = Echo(doubled.network, "echo", method, at_once=at_once)
        doubled.stepper.transport = echo
        for number, batch in enumerate(batches(config, 3)):
            if method == "abort" and number == 1:
                await asyncio.wait_for(doubled.abort_a_step(batch), 10)
            once = await plain.step(batch)
            assert (await asyncio.wait_for(doubled.step(batch), 10)).loss == once.loss
        assert echo.repeated >= 2
        for server in doubled.stages:
            assert server.steps.tally.counts["applied"] == sum(server.applied.values()) == 3
            assert server.steps.tally.counts["aborted"] == (method == "abort")
            assert equal(state(doubled, server.uid), state(plain, server.uid))


async def test_an_older_attempt_and_an_abort_after_the_commit_are_refused() -> None:
    config = mlp()
    (batch,) = batches(config, 1)
    async with MemorySwarm(config) as swarm:
        await swarm.step(batch, attempt=4)
        before = {server.uid: state(swarm, server.uid) for server in swarm.stages}
        swarm.step_number -= 1
        with pytest.raises(StaleAttempt):
            await swarm.step(batch, attempt=3)
        link = await swarm.trainer.link(PeerAddress(BACK))
        id = StepId(TRAINER, 1, 1, 4)
        for request in (AbortStep(id), PrepareStep(id, MICROBATCHES)):
            with pytest.raises(StaleAttempt):
                await ask(link, request, timeout=5)
        assert all(equal(before[server.uid], state(swarm, server.uid)) for server in swarm.stages)
