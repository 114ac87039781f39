"""Partitions: at most one side commits, the other pauses, and who returns is stale until it has re-synced."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.failover.memory_scene import mlp
from tests.failover.network_scene import NetworkSwarm, quiet_titles, until

from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.serving.round_exchange import PublishedContribution

pytestmark = [pytest.mark.timeout(90), pytest.mark.enable_socket, pytest.mark.faults]
VICTIM = "front.0.0.0"
REROUTED_S, RETURNED_S = 3.0, 10.0  # goals of the fault table; asserted is the double, for a busy machine


@pytest.fixture(autouse=True)
def titles(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_titles(monkeypatch)


def swarm(folder: Path) -> NetworkSwarm:
    return NetworkSwarm(mlp(inner_steps=10, outer_steps=100000, averaging_timeout=5.0), folder)


@pytest.mark.parametrize(
    "ways",
    [
        "both ways",
        pytest.param("it hears nothing", marks=pytest.mark.slow),
        pytest.param("it is not heard", marks=pytest.mark.slow),
    ],
)
async def test_a_server_is_cut_off(tmp_path: Path, ways: str) -> None:
    async with swarm(tmp_path) as running:
        name = running.at(VICTIM)
        trainer = next(n for n in (0, 1) if VICTIM in running.steps(n)[-1]["route"])
        cut = running.cut(name, back=ways == "both ways", forth=ways != "it hears nothing")
        took = await running.next_step(trainer, cut)
        print(f"{ways}: next applied step {took:.2f} s after the cut (goal {REROUTED_S:.0f} s)")
        assert took < 2 * REROUTED_S
        await until(lambda: running.state(name) == "unknown", "the victim stops serving")
        before = running.committed("front")
        await until(lambda: running.committed("front") >= before + 2, "the others go on")
        stale = running.round_of(name)
        assert stale <= before
        assert not running.steps(0, cut + 1, through=VICTIM) + running.steps(1, cut + 1, through=VICTIM)
        healed = running.heal()
        await until(lambda: running.state(name) == "serving", "it serves again", 2 * RETURNED_S)
        assert running.round_of(name) > stale
        agreed = await running.all_agree(healed, 2 * RETURNED_S)
        print(f"{ways}: all replicas in one round {agreed:.2f} s after it healed (goal {RETURNED_S:.0f} s)")
        running.check()


@pytest.mark.slow
async def test_a_slot_that_was_given_away_is_fenced(tmp_path: Path) -> None:
    """Who was away for long finds its slot taken, under a later epoch, and joins anew elsewhere."""
    async with swarm(tmp_path) as running:
        name = running.at(VICTIM)
        epoch = running.client.parts.slots.of_peer(name).grant.epoch  # type: ignore[union-attr]
        running.cut(name)
        await until(lambda: running.holder_of(name) is None, "the client has freed the slot")
        assert running.state(name) == "unknown"  # before the slot was free, it had stopped serving
        newcomer = await running.add_server(4)
        await until(lambda: running.holder_of(newcomer) == VICTIM, "a newcomer has the slot")
        await until(lambda: running.state(newcomer) == "serving", "the newcomer serves")
        running.heal()
        await until(lambda: running.holder_of(name) not in (None, VICTIM), "another slot")
        await until(lambda: running.state(name) == "serving", "it serves there")
        assert running.holder_of(newcomer) == VICTIM
        assert running.client.parts.slots.of_peer(newcomer).grant.epoch > epoch  # type: ignore[union-attr]
        assert len({running.holder_of(server) for server in running.servers}) == 5
        running.check()


@pytest.mark.slow
async def test_two_halves(tmp_path: Path) -> None:
    """Each half has a whole pipeline and a trainer. Only the one with the client may commit."""
    async with swarm(tmp_path) as running:
        for trainer in (0, 1):
            await until(lambda: running.steps(trainer), "steps of both trainers")  # noqa: B023
        far = {running.at("front.0.1.0"), running.at("back.0.1.0"), "trainer1"}
        cut = running.cut(*far)
        for name in far - {"trainer1"}:
            await until(lambda: running.state(name) == "unknown", "the far half pauses")  # noqa: B023
        frozen = {name: running.round_of(name) for name in far - {"trainer1"}}
        paused = time.monotonic()
        before = {stage: running.committed(stage) for stage in running.config.stages}
        await until(
            lambda: all(running.committed(s) >= before[s] + 2 for s in running.config.stages),
            "the half with the client goes on",
        )
        assert {name: running.round_of(name) for name in frozen} == frozen  # without the log no commit
        assert not [s for s in running.steps(1, paused) if s["at"] - s["seconds"] > paused]
        assert running.steps(0, cut)
        healed = running.heal()
        agreed = await running.all_agree(healed, 2 * RETURNED_S)
        print(f"halves: all replicas in one round {agreed:.2f} s after it healed (goal {RETURNED_S:.0f} s)")
        again = await running.next_step(1, healed)
        print(f"halves: the far trainer steps again {again:.2f} s after it healed")
        running.check()


async def test_a_member_that_cannot_learn_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off from the client just before its vote, but not from the other members: it commits nothing."""
    async with swarm(tmp_path) as running:
        name = running.at(VICTIM)
        held = running.held(name)
        assert held is not None
        assert held.served.member is not None
        exchange, cut_at = held.served.member.exchange, []
        vote = exchange.vote

        async def cut_off_and_vote(
            own: PublishedContribution, result: CommittedState | None
        ) -> dict[str, object]:
            if not cut_at:
                running.network.cut({name}, {"client"})
                running.directory.cut_off.add(name)
                cut_at.append(own.round)
            return await vote(own, result)

        monkeypatch.setattr(exchange, "vote", cut_off_and_vote)
        await until(lambda: cut_at, "the fault")
        await until(lambda: running.state(name) == "unknown", "it stops serving")
        await until(lambda: running.committed("front") > cut_at[0], "the others go on")
        assert running.round_of(name) == cut_at[0] - 1  # it neither committed nor gave up
        healed = running.heal()
        agreed = await running.all_agree(healed, 2 * RETURNED_S)
        print(f"unknown: all replicas in one round {agreed:.2f} s after it healed (goal {RETURNED_S:.0f} s)")
        assert running.holder_of(name) == VICTIM
        running.check()
