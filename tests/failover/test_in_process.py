"""Rows 12, 17, 18, 19 and 22 of the fault table in one process: they run wherever the tests run."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.failover.memory_scene import Driver, batches, mlp
from tests.failover.round_scene import OnlyClient
from tests.fakes.memory_directory import MemoryDirectory
from tests.fakes.memory_directory import MemorySwarm as Records
from tests.fakes.memory_transport import MemoryLink, MemoryNetwork, MemoryTransport
from tests.swarm_scene import MemorySwarm

from distqat.checkpoint import CheckpointStore, tensor_file
from distqat.config import Config, agreement
from distqat.distributed.client import Client
from distqat.distributed.coordination import preflight
from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.distributed.serving.checkpoint_loop import CheckpointLoop, StateToWrite
from distqat.distributed.serving.committed_state import initial
from distqat.distributed.serving.slot_request import ask_for_slot
from distqat.errors import ProtocolMismatch, Refused, SwarmError
from distqat.metrics import NullSink
from distqat.protocol.calls.slot_calls import AskStatus, GrantedSlot, RequestSlot
from distqat.protocol.hop import Hop, PeerAddress
from distqat.swarm.call_messages import ask
from distqat.topology.expert import ExpertId

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("one_thread")]
FRONT, BACK = "front.0.0.0", "back.0.0.0"


class Newcomer:
    """As much of a server as asks for a slot."""

    def __init__(self, network: MemoryNetwork, config: Config, name: str) -> None:
        self.name = name
        transport = MemoryTransport(network, name)
        self._config = config
        self._peer: Any = SimpleNamespace(identity=SimpleNamespace(peer=name), host="", maddrs=())
        self._coordinator = CoordinatorLink(transport, OnlyClient())  # type: ignore[arg-type]

    async def ask(self, turns: int) -> GrantedSlot:
        for _ in range(turns):  # who is first is a matter of the event loop
            await asyncio.sleep(0)
        return await ask_for_slot(self._config, self._peer, self._coordinator, None)


@pytest.fixture
async def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Client, Any]]:
    """The real client and its real log; a maker of servers."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    config = mlp().model_copy(update={"log_dir": str(tmp_path / "logs")})
    network, numbers = MemoryNetwork(), iter(range(10**6))
    transport = MemoryTransport(network, "client")
    directory = MemoryDirectory(Records(), "client", config.experiment_prefix, tuple(config.stages))
    peer: Any = SimpleNamespace(transport=transport, directory=directory, host="", maddrs=())
    client = Client(config, [], peer, None, NullSink())  # type: ignore[arg-type]
    client.parts.preflight.open()
    await transport.serve(client.calls.answer, client.calls.died)

    def newcomer() -> Newcomer:
        return Newcomer(network, config, f"server-{next(numbers)}")

    newcomer.kill, newcomer.network = network.kill, network  # type: ignore[attr-defined]
    yield client, newcomer
    client.parts.rounds.close()
    client.parts.log.close()


async def test_two_servers_claim_one_gap_two_hundred_times(
    claims: tuple[Client, Any], fault_seed: int
) -> None:
    """Row 18: one of the two gets the gap, the other the next slot; the log has one owner per epoch."""
    client, newcomer = claims
    rng = random.Random(fault_seed)
    holders: dict[str, Newcomer] = {}
    for _ in range(4):
        server = newcomer()
        holders[str((await server.ask(0)).expert)] = server
    assert sorted(holders) == ["back.0.0.0", "back.0.1.0", "front.0.0.0", "front.0.1.0"]
    for _ in range(200):
        gap = rng.choice(sorted(holders))
        newcomer.kill(holders.pop(gap).name)
        two = newcomer(), newcomer()
        slots = await asyncio.gather(*(server.ask(rng.randrange(4)) for server in two))
        owners = {str(slot.expert): server for slot, server in zip(slots, two, strict=True)}
        assert len(owners) == 2, "each has a slot of its own"
        assert gap in owners, "the gap is filled"
        (other,) = owners.keys() - {gap}
        assert other not in holders, "and nobody's slot was given away"
        assert client.parts.slots.of_peer(owners[gap].name).grant.uid == gap  # type: ignore[union-attr]
        assert len({holder.grant.uid for holder in client.parts.slots.holders}) == 5
        holders[gap] = owners[gap]
        newcomer.kill(owners[other].name)
    text = (Path(client.parts.config.log_dir) / "commit_log.jsonl").read_text()
    grants = [line for line in text.splitlines() if '"grant"' in line]
    assert len(grants) == len(set(grants)) == 4 + 2 * 200


@pytest.mark.parametrize(
    ("holding", "named"),
    [("nope.0.5.0", "stranger"), ("front.0.999999.0", "stranger"), ("garbage", "stranger"), ("", "another")],
)
async def test_a_stranger_gets_no_slot_that_the_run_does_not_have(
    claims: tuple[Client, Any], holding: str, named: str
) -> None:
    """Nor one in another peer's name; and the log does not grow by the attempt."""
    client, newcomer = claims
    log = Path(client.parts.config.log_dir) / "commit_log.jsonl"
    before, config = log.read_text(), client.parts.config
    agreements = {stage: agreement(config, stage) for stage in config.stages}
    request = RequestSlot(Hop("any.0.0.0", PeerAddress(named)), agreements, holding)
    link = await MemoryTransport(newcomer.network, "stranger").link(PeerAddress("client"))
    with pytest.raises(Refused, match="slot"):
        await ask(link, request, timeout=10)
    newcomer.kill("stranger")  # and the client does without it
    assert log.read_text() == before
    assert (await newcomer().ask(0)).epoch == 1


async def test_who_only_says_that_it_held_a_slot_is_dialled(claims: tuple[Client, Any]) -> None:
    client, newcomer = claims
    dialled: list[str] = []

    async def prove(to: PeerAddress) -> None:
        dialled.append(to.peer)

    client.calls.reach._transport.prove = prove  # type: ignore[method-assign]
    config, network = client.parts.config, newcomer.network
    agreements = {stage: agreement(config, stage) for stage in config.stages}
    for _ in range(2):  # the second time the log knows it
        request = RequestSlot(Hop("any.0.0.0", PeerAddress("stranger")), agreements, FRONT)
        link = await MemoryTransport(network, "stranger").link(PeerAddress("client"))
        assert (await ask(link, request, timeout=10)).expert == ExpertId.parse(FRONT)  # type: ignore[union-attr]
        network.kill("stranger")
    assert dialled == ["stranger"]
    assert client.parts.slots.holders == []


async def test_a_stale_record_costs_one_call_until_it_is_renewed(fault_seed: int) -> None:
    """Row 19: the record of a dead replica stays in the directory; it is asked once."""
    config = mlp()
    rng = random.Random(fault_seed)
    dead = f"{rng.choice(['front', 'back'])}.0.0.0"
    async with MemorySwarm(config, replicas=2) as swarm:
        driver = Driver(swarm)
        for number, batch in enumerate(batches(config, 12)):
            if number == 3:
                driver.kill(dead)
            await asyncio.wait_for(driver.train(batch), 10)
        assert len(driver.attempts) == 1
        assert driver.attempts[0].at == dead
        driver.check()
        stale = driver._snapshot
        renewed = [replace(s, expires_at=9.0) if str(s.expert) == dead else s for s in stale.servers]
        driver._snapshot = replace(stale, servers=tuple(renewed))
        now = 1e9  # its back-off is long over
        chosen = {str(e) for e in driver._router.choose(driver._snapshot, 0, now).experts}
        assert dead in chosen, "declared again, it is asked again"


@pytest.mark.parametrize("method", ["forward", "backward", "loss"])
async def test_a_replica_without_memory_fails_its_step_alone(
    method: str, monkeypatch: pytest.MonkeyPatch, fault_seed: int
) -> None:
    """Row 17: an allocation fails in the compute thread; the step runs elsewhere, the replica lives on."""
    config = mlp()
    rng = random.Random(fault_seed)
    uid, fails = BACK if method == "loss" else FRONT, rng.randrange(4, 12)
    async with MemorySwarm(config, replicas=2) as swarm:
        driver, passed, replica = Driver(swarm), [0], swarm.stage(uid).replica
        original = getattr(replica, method)

        def starved(*args: Any, **kwargs: Any) -> Any:
            passed[0] += 1
            if passed[0] == fails:
                raise MemoryError("cannot allocate")
            return original(*args, **kwargs)

        monkeypatch.setattr(replica, method, starved)
        for batch in batches(config, 8):
            await asyncio.wait_for(driver.train(batch), 10)
        assert passed[0] >= fails, "the fault fired"
        assert [error.at for error in driver.attempts] == [uid]
        assert "MemoryError" in str(driver.attempts[0])
        driver.check()


class LateDirectory(OnlyClient):
    """The client's record is not there at the first look."""

    def __init__(self) -> None:
        self.looks = 0

    async def roles(self, role: str) -> list[PeerAddress]:
        self.looks += 1
        return await super().roles(role) if self.looks > 1 else []


@pytest.mark.parametrize("error", [ProtocolMismatch("another version"), Refused("another token")])
async def test_who_is_refused_does_not_wait_for_the_client(error: SwarmError) -> None:
    """Row 22: also when the client is found only after a while."""
    transport = MemoryTransport(MemoryNetwork(), "server")

    async def refuse(to: PeerAddress) -> MemoryLink:
        raise error

    transport.link = refuse  # type: ignore[method-assign]
    directory = LateDirectory()
    coordinator = CoordinatorLink(transport, directory)  # type: ignore[arg-type]
    with pytest.raises(type(error), match="another"):
        await asyncio.wait_for(coordinator.insist(AskStatus()), 10)
    assert directory.looks == 2


async def test_a_full_disk_is_told_once_and_the_old_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Row 12: rounds go by while nothing can be written; then there is room again."""
    config = mlp()
    mirror = config.param_mirror.model_copy(update={"checkpoint_dir": str(tmp_path / "checkpoints")})
    config = config.model_copy(update={"param_mirror": mirror})
    full = [False]

    def scarce(point: str) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with MemorySwarm(config) as swarm:
        checkpoints = CheckpointLoop(config, "front", FRONT)
        shared = initial(swarm.stage(FRONT).replica.module)
        monkeypatch.setattr(tensor_file, "failpoint", scarce)
        for round in range(1, 8):
            full[0] = 2 <= round <= 5
            with caplog.at_level(logging.WARNING):
                own = asyncio.get_running_loop().create_future()
                own.set_result({})
                checkpoints.save(StateToWrite(replace(shared, round=round), own, round, 1000))
                await checkpoints.flush()
    warnings = [r.getMessage() for r in caplog.records if "is not on disk" in r.getMessage()]
    assert len(warnings) == 1
    assert "No space left on device; make room" in warnings[0]
    kept = CheckpointStore(tmp_path / "checkpoints", config.experiment_prefix).rounds()
    assert [entry.round for entry in kept if entry.manifests][-2:] == [6, 7]


async def test_nobody_gets_a_slot_before_the_checks_are_over(
    claims: tuple[Client, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that asks early is told to ask again, and hears then what its model is to be checked with."""
    client, newcomer = claims
    monkeypatch.setattr(preflight, "HOLD_S", 0.0)
    client.parts.preflight = preflight.Preflight(mlp())
    asked = asyncio.ensure_future(newcomer().ask(0))
    held = asyncio.get_running_loop().create_future()
    passed = client.parts.preflight.passed

    async def seen() -> bool:
        if not held.done():
            held.set_result(None)
        return await passed()

    monkeypatch.setattr(client.parts.preflight, "passed", seen)
    await held
    assert not asked.done()
    client.parts.preflight.told = {"inputs": {"x": ("float32", [2, 1, 8, 8])}, "labels": {}}
    monkeypatch.setattr(preflight, "HOLD_S", 10.0)
    client.parts.preflight.open()
    slot = await asyncio.wait_for(asked, 10)
    assert slot.expert.stage in ("front", "back")
    assert slot.batch is not None
    assert list(slot.batch["inputs"]["x"][1]) == [2, 1, 8, 8]
