"""Every directory passes this suite: the in-memory fake, and signed records in a real DHT on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from tests.fakes.memory_directory import MemoryDirectory, MemorySwarm

from distqat.errors import DirectoryUnavailable
from distqat.protocol.hop import PeerAddress
from distqat.swarm.dht_node import DhtNode, EngineOptions, dht_time
from distqat.swarm.directory import DhtDirectory, DirectoryWatch, keep_announced
from distqat.swarm.peer_identity import PeerIdentity
from distqat.topology.snapshot import ServerRecord

pytestmark = [pytest.mark.timeout(60), pytest.mark.enable_socket]

STAGES = ("front", "back")
LEASE_S = 1.5


@dataclass
class Swarm:
    """Three peers' directories of one run; `cut_off` takes a peer's connections."""

    peers: list[str]
    directories: list[DhtDirectory]
    cut_off: Callable[[int], Any]
    engines: list[DhtNode]


@contextlib.asynccontextmanager
async def memory_swarm(folder: Path) -> AsyncIterator[Swarm]:
    swarm, peers = MemorySwarm(), ["peer-0", "peer-1", "peer-2"]

    async def cut_off(index: int) -> None:
        swarm.cut_off.add(peers[index])

    made = [MemoryDirectory(swarm, peer, "run", STAGES, lease_s=LEASE_S) for peer in peers]
    yield Swarm(peers, list(made), cut_off, [])


@contextlib.asynccontextmanager
async def dht_swarm(folder: Path) -> AsyncIterator[Swarm]:
    engines: list[DhtNode] = []
    try:
        for index in range(3):
            known = await engines[0].addresses() if engines else ()
            identity = PeerIdentity.load_or_create(folder / f"{index}.key")
            engines.append(await DhtNode.start(identity, EngineOptions(initial_peers=known)))

        async def cut_off(index: int) -> None:
            await asyncio.gather(*(e.stop() for i, e in enumerate(engines) if i != index))
            for _ in range(500):
                if not await engines[index].p2p.list_peers():
                    return
                await asyncio.sleep(0.02)
            raise AssertionError("the connections of stopped peers did not end")

        yield Swarm(
            [engine.peer for engine in engines],
            [DhtDirectory(engine, "run", STAGES, lease_s=LEASE_S) for engine in engines],
            cut_off,
            engines,
        )
    finally:
        for engine in engines:
            await engine.stop()


@pytest.fixture(params=[memory_swarm, dht_swarm], ids=["memory", "dht"])
async def swarm(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Swarm]:
    async with request.param(tmp_path) as made:
        yield made


@pytest.fixture
async def dht(tmp_path: Path) -> AsyncIterator[Swarm]:
    async with dht_swarm(tmp_path) as made:
        yield made


def record(peer: str, stage: str = "front", index: int = 0, **changes: Any) -> ServerRecord:
    values: dict[str, Any] = {
        "epoch": 1,
        "state": "serving",
        "throughput": 10.0,
        "step": 5,
        "round": 2,
        "config_digest": "c",
        "host": "h",
        "addresses": ("/ip4/127.0.0.1/tcp/1",),
        "metrics": {"queue": 1.0},
        **changes,
    }
    return ServerRecord(peer_id=peer, stage=stage, index=index, **values)


async def test_an_empty_swarm_is_an_empty_snapshot(swarm: Swarm) -> None:
    for directory in swarm.directories:
        snapshot = await directory.snapshot()
        assert snapshot.stages == STAGES
        assert snapshot.servers == ()
        assert await directory.roles("client") == []


async def test_what_one_announces_all_see(swarm: Swarm) -> None:
    front = record(swarm.peers[1])
    back = record(swarm.peers[2], "back", state="joining", throughput=0.0)
    await swarm.directories[1].announce(front)
    await swarm.directories[2].announce(back)
    for directory in swarm.directories:
        snapshot = await directory.snapshot()
        assert [replace(server, expires_at=0.0) for server in snapshot.replicas("front")] == [front]
        assert [replace(server, expires_at=0.0) for server in snapshot.replicas("back")] == [back]
        assert snapshot.missing() == ("back",)


async def test_the_newest_record_of_a_peer_counts_also_at_another_stage(swarm: Swarm) -> None:
    await swarm.directories[1].announce(record(swarm.peers[1], step=1))
    await swarm.directories[1].announce(record(swarm.peers[1], step=2))
    assert [server.step for server in (await swarm.directories[0].snapshot()).servers] == [2]
    await swarm.directories[1].announce(record(swarm.peers[1], "back", 3))
    assert [str(server.expert) for server in (await swarm.directories[0].snapshot()).servers] == [
        "back.0.3.0"
    ]


async def test_the_end_of_a_run_is_found_after_its_lease(swarm: Swarm) -> None:
    assert await swarm.directories[0].finished() == []
    await swarm.directories[1].announce_finished(1000.0)
    await swarm.directories[2].announce_finished(2000.0)
    for number, nonsense in enumerate([{"at": "never"}, {}]):
        await swarm.directories[2]._store("distqat/1/run/finished", f"nonsense {number}", nonsense)
    found = [(finish.owner, finish.at) for finish in await swarm.directories[0].finished()]
    assert found == [(swarm.peers[2], 2000.0), (swarm.peers[1], 1000.0)]


async def test_roles_are_found_by_their_addresses(swarm: Swarm) -> None:
    await swarm.directories[1].announce_role("client", "host-1")
    (client,) = await swarm.directories[2].roles("client")
    assert (client.peer, client.host) == (swarm.peers[1], "host-1")
    assert client.maddrs
    assert await swarm.directories[2].roles("monitor") == []


async def test_the_runs_that_are_there_are_those_with_a_monitor_or_a_client(swarm: Swarm) -> None:
    own, other = swarm.directories[0], DhtDirectory(swarm.directories[1]._engine, "other", STAGES)
    assert await own.runs() == set()
    await other.announce_role("monitor", "host-1")
    await other.announce_role("client", "host-1")
    assert await own.runs() == {"other"}
    await swarm.directories[2].announce_role("client", "host-2")
    for directory in (*swarm.directories, other):
        assert await directory.runs() == {"run", "other"}


@pytest.mark.parametrize(
    "value", [b"{}", b'{"run": 1}', b'{"run": "a b"}', b'{"run": "' + b"x" * 600 + b'"}']
)
async def test_what_is_no_name_of_a_run_is_none(value: bytes) -> None:
    directory = MemoryDirectory(MemorySwarm(), "peer", "run", STAGES)
    await directory._engine.store("distqat/1/runs", "any", value, 8.0)
    assert await directory.runs() == set()


async def test_a_record_ends_with_its_lease(swarm: Swarm) -> None:
    directory = swarm.directories[0]
    await swarm.directories[1].announce(record(swarm.peers[1]))
    (server,) = (await directory.snapshot()).servers
    assert server.expires_at <= dht_time() + LEASE_S + 0.1
    await asyncio.sleep(server.expires_at + 0.1 - dht_time())  # the real engine takes no other clock
    assert (await directory.snapshot()).servers == ()


async def test_two_peers_may_claim_one_slot_and_neither_overwrites_the_other(swarm: Swarm) -> None:
    await swarm.directories[1].announce(record(swarm.peers[1]))
    await swarm.directories[2].announce(record(swarm.peers[2]))
    servers = (await swarm.directories[0].snapshot()).servers
    assert {server.peer_id for server in servers} == {swarm.peers[1], swarm.peers[2]}


async def test_a_record_that_speaks_for_another_peer_is_not_believed(swarm: Swarm) -> None:
    await swarm.directories[1].announce(record(swarm.peers[1]))
    await swarm.directories[2].announce(record(swarm.peers[1], throughput=1e6))
    (server,) = (await swarm.directories[0].snapshot()).servers
    assert (server.peer_id, server.throughput) == (swarm.peers[1], 10.0)


@pytest.mark.parametrize(
    "value",
    [
        b"\xff\x00 no json",
        b"[" * 8000,
        b'{"peer_id": 1}',
        json.dumps({**asdict(record("?")), "index": -1}).encode(),
        json.dumps({**asdict(record("?")), "throughput": math.inf}).encode(),
        json.dumps({**asdict(record("?")), "throughput": math.nan}).encode(),
        json.dumps({**asdict(record("?")), "metrics": {"a": math.nan}}).encode(),
        json.dumps({**asdict(record("?")), "epoch": 10**30}).encode(),
        json.dumps({**asdict(record("?")), "state": "owner"}).encode(),
        json.dumps({**asdict(record("?")), "addresses": ["x" * 5000]}).encode(),
        json.dumps({**asdict(record("?")), "stage": "back"}).encode(),
    ],
)
async def test_a_record_that_cannot_be_believed_is_ignored(
    value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    swarm = MemorySwarm()
    honest, hostile = (MemoryDirectory(swarm, peer, "run", STAGES) for peer in ("honest", "hostile"))
    await honest.announce(record("honest"))
    await hostile._engine.store("distqat/1/run/front", "any", value.replace(b'"?"', b'"hostile"'), 8.0)
    await hostile._engine.store("distqat/1/run/role:client", "client", value, 8.0)
    with caplog.at_level(logging.WARNING):
        assert [server.peer_id for server in (await honest.snapshot()).servers] == ["honest"]
    assert "ignored a record of hostile" in caplog.text
    assert await honest.roles("client") == []


async def test_a_lookup_that_fails_is_not_an_empty_swarm(swarm: Swarm) -> None:
    await swarm.directories[2].announce(record(swarm.peers[2]))
    watch = DirectoryWatch(swarm.directories[2], STAGES)
    known = await watch.refresh()
    assert len(known.servers) == 1
    await swarm.cut_off(2)
    with pytest.raises(DirectoryUnavailable):
        await swarm.directories[2].snapshot()
    with pytest.raises(DirectoryUnavailable):
        await swarm.directories[2].roles("client")
    assert await watch.refresh() == known


async def test_announcing_goes_on_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    swarm, calls = MemorySwarm(), asyncio.Semaphore(0)
    directory = MemoryDirectory(swarm, "peer", "run", STAGES)
    swarm.cut_off.add("peer")

    async def announce() -> None:
        calls.release()
        await directory.announce(record("peer"))

    with caplog.at_level(logging.INFO):
        task = asyncio.ensure_future(keep_announced(announce, every_s=0.001))
        for _ in range(3):
            await calls.acquire()
        swarm.cut_off.clear()
        while "works again" not in caplog.text:
            await calls.acquire()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert caplog.text.count("could not announce") == 1


# What hostile peers may do to the real one. They run our engine with its checks taken out.


async def hostile_store(
    engine: DhtNode, key: str, subkey: bytes | None, packed: bytes, expires_at: float
) -> None:
    """Sign and push raw bytes to every peer, past all checks on this side."""
    from hivemind.dht.node import DHTID
    from hivemind.dht.validation import DHTRecord
    from hivemind.utils.serializer import MSGPackSerializer

    node = engine._node
    key_id = DHTID.generate(source=key)
    tag = MSGPackSerializer.dumps(subkey) if subkey is not None else b""
    value = packed
    if subkey is not None and engine._signer.local_public_key in tag:
        value = engine._signer.sign_value(DHTRecord(key_id.to_bytes(), tag, packed, expires_at))
    node.protocol.record_validator = None
    for peer in await engine.p2p.list_peers():
        taken = await node.protocol.call_store(peer.peer_id, [key_id], [value], [expires_at], [subkey])
        assert taken == [False]
    node.protocol.storage.store(key_id, value, expires_at, subkey=subkey)  # it answers with it when asked


def nested_extension(depth: int) -> bytes:
    value: bytes = msgpack.packb(None)
    for _ in range(depth):
        value = msgpack.packb(msgpack.ExtType(0x40, value))
    return value


KEY = "distqat/1/run/front"


@pytest.mark.parametrize("depth", [3, 400])
async def test_a_signed_nested_record_neither_kills_nor_hangs_readers(dht: Swarm, depth: int) -> None:
    await dht.directories[1].announce(record(dht.peers[1]))
    own = b"front.0.0.0" + dht.engines[2]._signer.local_public_key
    await hostile_store(dht.engines[2], KEY, own, nested_extension(depth), dht_time() + 30)
    for directory in dht.directories[:2]:
        (server,) = (await directory.snapshot()).servers
        assert server.peer_id == dht.peers[1]


async def test_foreign_unsigned_and_unbounded_records_change_nothing(dht: Swarm) -> None:
    await dht.directories[1].announce(record(dht.peers[1]))
    hostile, soon = dht.engines[2], dht_time() + 30
    own = b"front.0.0.0" + hostile._signer.local_public_key
    foreign = b"front.0.0.0" + dht.engines[1]._signer.local_public_key
    plain = msgpack.packb(json.dumps(asdict(record(dht.peers[2], index=7))).encode())
    forged = msgpack.packb(json.dumps(asdict(record(dht.peers[1], throughput=1e6))).encode())
    await hostile_store(hostile, KEY, foreign, forged, soon)
    await hostile_store(hostile, KEY, b"front.0.0.0", plain, soon)
    await hostile_store(hostile, KEY, None, plain, soon)
    await hostile_store(hostile, KEY, None, plain, math.inf)
    for expires_at in (math.inf, dht_time() + 1e6):
        await hostile_store(hostile, KEY, own, plain, expires_at)
    for directory in dht.directories[:2]:
        (server,) = (await directory.snapshot()).servers
        assert (server.peer_id, server.throughput) == (dht.peers[1], 10.0)


async def test_a_stock_dht_peer_of_an_experimenter_can_look(dht: Swarm) -> None:
    addresses = list(await dht.engines[0].addresses())
    code = (
        "import sys, hivemind\n"
        "dht = hivemind.DHT(start=True, initial_peers=sys.argv[1:])\n"
        "print(*dht.get_visible_maddrs(), flush=True)\n"
        "dht.shutdown()\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *addresses, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 40)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and p2pd with it
    assert process.returncode == 0
    assert b"/p2p/" in output


async def test_a_dead_daemon_is_noticed_and_stopping_it_does_not_hang(tmp_path: Path) -> None:
    engine = await DhtNode.start(PeerIdentity.load_or_create(tmp_path / "key"), EngineOptions())
    engine.p2p._child.kill()
    assert await asyncio.wait_for(engine.daemon_death(), 10) != 0
    with pytest.raises(DirectoryUnavailable):
        await DhtDirectory(engine, "run", STAGES).announce_role("client", "h")
    await asyncio.wait_for(engine.stop(), 10)


def test_addresses_of_a_record() -> None:
    from distqat.swarm.directory import address_of

    assert address_of(record("p")) == PeerAddress("p", "h", ("/ip4/127.0.0.1/tcp/1",))
