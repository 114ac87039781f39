"""Deaths in a batch of two phases: the undone one is run again or lost, neither is ever applied twice."""

from __future__ import annotations

import asyncio

import pytest
import torch
from tests.failover.memory_scene import TRAINER, Driver, Fault, arm, batches, equal, mlp, state
from tests.failover.test_steps import BACK, FRONT, next_trainer, routes
from tests.swarm_scene import MemorySwarm

from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.tensor_frame import Message

pytestmark = [pytest.mark.timeout(30), pytest.mark.usefixtures("one_thread")]
PHASES = (frozenset({0}), frozenset({1}))  # the back is trained, then the front
BATCHES, HIT = 3, 4  # steps are counted from 1: the second phase of the second batch is disturbed
States = dict[str, dict[str, torch.Tensor]]


async def undisturbed(dead: str, *, first_step: int) -> States:
    """States after the same phases, those from `first_step` on over the route around the dead replica."""
    config = mlp()
    async with MemorySwarm(config, replicas=2) as swarm:
        around = swarm.route(*routes(dead)[0])
        for batch in batches(config, BATCHES):
            for frozen in PHASES:
                hops = around if swarm.step_number + 1 >= first_step else swarm.hops
                await swarm.step(batch, hops=hops, frozen=frozen)
        return {server.uid: state(swarm, server.uid) for server in swarm.stages}


@pytest.mark.parametrize("at", [FRONT, BACK])
@pytest.mark.parametrize(
    ("point", "lost"),
    [("call.open", False), ("stage.prepare", False), ("stage.commit.before_apply", True)],
)
async def test_a_death_in_the_second_phase_leaves_the_first_alone(
    monkeypatch: pytest.MonkeyPatch, point: str, lost: bool, at: str
) -> None:
    config = mlp()
    fault = Fault(point, at, hit=HIT)
    async with MemorySwarm(config, replicas=2) as swarm:
        driver = Driver(swarm)
        passage = arm(monkeypatch, driver.kill, fault)
        for server in swarm.stages:
            server.passage = passage
        for batch in batches(config, BATCHES):
            for frozen in PHASES:
                await asyncio.wait_for(driver.train(batch, frozen), 10)
        assert fault.fired
        driver.check()
        assert len(driver.attempts) == (not lost)
        assert driver.ledger.lost == ({at.partition(".")[0]: 1} if lost else {})
        expected = await undisturbed(at, first_step=HIT + lost)
        for uid in routes(at)[1]:
            assert equal(state(swarm, uid), expected[uid]), uid


async def test_a_trainer_that_dies_between_two_phases_loses_the_second_only() -> None:
    config = mlp()
    first, second = batches(config, 2)
    async with MemorySwarm(config) as swarm:
        driver = Driver(swarm)
        await driver.train(first, PHASES[0])
        before = {server.uid: state(swarm, server.uid) for server in swarm.stages}
        driver.kill(TRAINER)
        assert all(equal(before[server.uid], state(swarm, server.uid)) for server in swarm.stages)
        assert [server.steps.tally.counts["applied"] for server in swarm.stages] == [0, 1]
        await next_trainer(swarm, second)
        assert [server.steps.tally.counts["applied"] for server in swarm.stages] == [1, 2]


async def test_who_hears_of_a_commit_from_another_stage_knows_itself_what_it_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The trainer dies when the frozen first stage has decided; the last asks it, and steps its optimizer."""
    config = mlp()
    first, second, third = batches(config, 3)
    async with MemorySwarm(config) as expected, MemorySwarm(config) as swarm:
        for batch, frozen in ((first, ()), (second, PHASES[0])):
            await expected.step(batch, frozen=frozen)
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
        await asyncio.wait_for(swarm.step(second, frozen=PHASES[0]), 10)
        assert fault.fired
        front, back = (swarm.stage(uid).steps.tally for uid in (FRONT, BACK))
        while back.counts["applied"] < 2 or front.counts["frozen"] < 1:  # noqa: ASYNC110  ended by the deadline
            await asyncio.sleep(0.001)
        assert (front.counts["applied"], back.counts["frozen"]) == (1, 0)
        for server in swarm.stages:
            assert equal(state(swarm, server.uid), state(expected, server.uid)), server.uid
        await deaf.transport.serve(deaf.answer, deaf.steps.attempts.gone)
        await next_trainer(swarm, third)
