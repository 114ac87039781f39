"""Every transport passes this suite: the in-memory fake, Unix sockets, libp2p's raw streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.fakes.memory_transport import MemoryNetwork, MemoryTransport

from distqat.codec.activation_codec import encode_activation
from distqat.codec.aligned import CodeGrid
from distqat.errors import CallTimeout, PeerGone, ProtocolMismatch, Refused, StaleAttempt, SwarmError
from distqat.protocol.hop import PeerAddress
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.dht_node import DhtNode, EngineOptions, P2PStreams
from distqat.swarm.handshake import Admission
from distqat.swarm.peer_identity import PeerIdentity
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import StreamTransport, Transport, UnixStreams

pytestmark = [pytest.mark.timeout(60), pytest.mark.enable_socket]


@dataclass
class Pair:
    caller: Transport
    server: Transport
    address: PeerAddress
    kill_server: Callable[[], Awaitable[None]]


@contextlib.asynccontextmanager
async def memory_pair(folder: Path) -> AsyncIterator[Pair]:
    network = MemoryNetwork()
    caller, server = MemoryTransport(network, "caller"), MemoryTransport(network, "server")

    async def kill() -> None:
        network.kill("server")

    yield Pair(caller, server, PeerAddress("server"), kill)


@contextlib.asynccontextmanager
async def unix_pair(folder: Path) -> AsyncIterator[Pair]:
    caller, server = (
        StreamTransport(Admission("run", name), [UnixStreams(folder, name, "here")])
        for name in ("caller", "server")
    )

    async def kill() -> None:
        for channel in server._inbound.channels():
            channel._transport.abort()

    yield Pair(caller, server, PeerAddress("server", "here"), kill)
    await caller.close()
    await server.close()


@contextlib.asynccontextmanager
async def libp2p_pair(folder: Path) -> AsyncIterator[Pair]:
    server_engine = await DhtNode.start(PeerIdentity.load_or_create(folder / "server.key"), EngineOptions())
    addresses = await server_engine.addresses()
    caller_engine = await DhtNode.start(
        PeerIdentity.load_or_create(folder / "caller.key"), EngineOptions(initial_peers=addresses)
    )
    caller, server = (
        StreamTransport(Admission("run", engine.peer), [P2PStreams(engine)])
        for engine in (caller_engine, server_engine)
    )

    async def kill() -> None:
        server_engine.p2p._child.kill()

    yield Pair(caller, server, PeerAddress(server_engine.peer, maddrs=addresses), kill)
    await caller.close()
    await server.close()
    await caller_engine.stop()
    await server_engine.stop()


@pytest.fixture(params=[memory_pair, unix_pair, libp2p_pair], ids=["memory", "unix", "libp2p"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    async with request.param(tmp_path) as made:
        yield made


async def test_tensors_arrive_as_they_left(pair: Pair) -> None:
    async def echo(call: IncomingCall) -> Message:
        assert call.method == "echo"
        assert call.message.needs_grad == frozenset({"a"})
        return Message({"got": call.message.fields["n"]}, call.message.tensors)

    await pair.server.serve(echo)
    tensors = {
        "a": torch.randn(3, 5),
        "half": torch.randn(7).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "mask": torch.tensor([True, False, True]),
        "transposed": torch.randn(4, 6).t(),
        "large": torch.randint(0, 255, (3_000_000,), dtype=torch.uint8),
    }
    link = await pair.caller.link(pair.address)
    reply = await link.call("echo", Message({"n": 7}, tensors, frozenset({"a"})), timeout=10)
    assert reply.fields == {"got": 7}
    assert list(reply.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert reply.tensors[name].dtype == tensor.dtype
        assert torch.equal(reply.tensors[name], tensor), name
    assert pair.caller.traffic.bytes_out > 3_000_000
    assert pair.caller.traffic.bytes_in > 3_000_000


async def test_a_coded_tensor_arrives_as_the_tensor_and_is_a_quarter(pair: Pair) -> None:
    async def answer(call: IncomingCall) -> Message:
        return Message(tensors={name: tensor.double() for name, tensor in call.message.tensors.items()})

    await pair.server.serve(answer)
    x = torch.randint(0, 256, (1000, 64)).float() * 0.5
    coded = encode_activation(x, CodeGrid(0.5, 0, 255), None)
    assert coded is not None
    link = await pair.caller.link(pair.address)
    before = link.bytes_out()
    reply = await link.call("x", Message({}, {"x": x}, frozenset({"x"}), {"x": coded}), timeout=10)
    assert link.bytes_out() - before < 0.26 * x.nbytes
    assert torch.equal(reply.tensors["x"], x.double())


async def test_calls_overlap_and_answers_come_in_any_order(pair: Pair) -> None:
    first_may_answer = asyncio.Event()

    async def answer(call: IncomingCall) -> Message:
        if call.message.fields["n"] == 1:
            await first_may_answer.wait()
        else:
            first_may_answer.set()
        return Message({"n": call.message.fields["n"]})

    await pair.server.serve(answer)
    link = await pair.caller.link(pair.address)
    replies = await asyncio.gather(*(link.call("n", Message({"n": n}), timeout=10) for n in (1, 2)))
    assert [reply.fields["n"] for reply in replies] == [1, 2]


async def test_errors_keep_their_kind(pair: Pair) -> None:
    async def answer(call: IncomingCall) -> Message:
        if call.method == "stale":
            raise StaleAttempt("attempt 2 runs already")
        raise ZeroDivisionError("a bug")

    await pair.server.serve(answer)
    link = await pair.caller.link(pair.address)
    with pytest.raises(StaleAttempt, match="attempt 2 runs already"):
        await link.call("stale", timeout=10)
    with pytest.raises(SwarmError, match="ZeroDivisionError: a bug"):
        await link.call("bug", timeout=10)


async def test_a_death_in_mid_call_is_noticed_at_once(pair: Pair) -> None:
    arrived = asyncio.Event()

    async def never(call: IncomingCall) -> Message:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    await pair.server.serve(never)
    link = await pair.caller.link(pair.address)
    call = asyncio.ensure_future(link.call("never", timeout=30))
    await arrived.wait()
    await pair.kill_server()
    with pytest.raises(PeerGone):
        await asyncio.wait_for(call, 5)
    assert not link.alive


async def test_a_call_without_answer_times_out(pair: Pair) -> None:
    async def never(call: IncomingCall) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    await pair.server.serve(never)
    link = await pair.caller.link(pair.address)
    with pytest.raises(CallTimeout, match="never"):
        await link.call("never", timeout=0.05)
    assert link.alive


async def test_a_peer_that_closes_is_gone(pair: Pair) -> None:
    async def answer(call: IncomingCall) -> Message:
        return Message()

    await pair.server.serve(answer)
    link = await pair.caller.link(pair.address)
    await link.call("x", timeout=10)
    await pair.server.close()
    with pytest.raises(PeerGone):
        await link.call("x", timeout=10)
    with pytest.raises(PeerGone):
        await link.call("x", timeout=10)


async def test_an_unknown_peer_is_gone(pair: Pair) -> None:
    nobody = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
    with pytest.raises(PeerGone):
        await pair.caller.link(PeerAddress(nobody))


async def test_another_run_or_token_is_refused(tmp_path: Path) -> None:
    async def answer(call: IncomingCall) -> Message:
        return Message()

    server = StreamTransport(Admission("run", "server", "secret"), [UnixStreams(tmp_path, "server", "here")])
    await server.serve(answer)
    for admission, words in (
        (Admission("other", "caller", "secret"), "experiment_prefix 'run'"),
        (Admission("run", "caller"), "DISTQAT_TOKEN"),
        (Admission("run", "caller", "wrong"), "DISTQAT_TOKEN"),
    ):
        caller = StreamTransport(admission, [UnixStreams(tmp_path, "caller", "here")])
        with pytest.raises((Refused, ProtocolMismatch), match=words):
            await caller.link(PeerAddress("server", "here"))
    good = StreamTransport(Admission("run", "caller", "secret"), [UnixStreams(tmp_path, "caller", "here")])
    await (await good.link(PeerAddress("server", "here"))).call("x", timeout=10)
    await good.close()
    await server.close()


async def test_a_caller_that_left_is_gone_once_also_after_a_redial(pair: Pair) -> None:
    left: list[str] = []
    changed = asyncio.Event()

    def gone(peer: str, silent: bool) -> None:
        assert not silent
        left.append(peer)
        changed.set()

    async def answer(call: IncomingCall) -> Message:
        return Message()

    await pair.server.serve(answer, gone)
    for expected in (1, 2):
        link = await pair.caller.link(pair.address)
        await link.call("x", timeout=10)
        assert len(left) == expected - 1
        link.close()
        await asyncio.wait_for(changed.wait(), 5)
        changed.clear()
        assert left == [pair.caller.peer] * expected
    await asyncio.sleep(0.02)  # nothing more may come
    assert len(left) == 2


async def test_links_are_shared_and_one_cancelled_caller_does_not_end_the_dialling(pair: Pair) -> None:
    async def answer(call: IncomingCall) -> Message:
        return Message()

    await pair.server.serve(answer)
    first, second, third = (asyncio.ensure_future(pair.caller.link(pair.address)) for _ in range(3))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is await third
    await (await second).call("x", timeout=10)


async def test_a_closed_transport_reaches_nobody(pair: Pair) -> None:
    async def answer(call: IncomingCall) -> Message:
        return Message()

    await pair.server.serve(answer)
    link = await pair.caller.link(pair.address)
    await pair.caller.close()
    with pytest.raises(PeerGone):
        await link.call("x", timeout=10)
    with pytest.raises(PeerGone):
        await pair.caller.link(pair.address)


async def test_who_serves_can_be_proven_to_be_reached_and_nobody_cannot(pair: Pair) -> None:
    async def answer(call: IncomingCall) -> Message:
        return Message()

    await pair.server.serve(answer)
    await pair.caller.prove(pair.address)
    unreached: list[str] = []
    pair.caller.on_unreached = lambda to, why: unreached.append(to.peer)
    closed = tuple("/ip4/127.0.0.1/tcp/1/p2p/" + text.rpartition("/")[2] for text in pair.address.maddrs)
    nobody = PeerAddress(pair.caller.peer[:-2] + "11", "nowhere", closed)
    with pytest.raises(PeerGone):
        await pair.caller.prove(nobody)
    assert unreached == []  # to look is not to need it
    if pair.address.host:  # Unix sockets know no other host
        return
    with pytest.raises(PeerGone):
        await pair.caller.link(nobody)
    assert unreached == [nobody.peer]


async def test_a_connection_that_is_there_proves_nothing(tmp_path: Path) -> None:
    async with libp2p_pair(tmp_path) as pair:

        async def answer(call: IncomingCall) -> Message:
            return Message()

        await pair.server.serve(answer)
        await pair.caller.serve(answer)
        behind = PeerAddress(pair.caller.peer, maddrs=("/ip4/127.0.0.1/tcp/1",))  # it has dialled the server
        await (await pair.server.link(behind)).call("x", timeout=10)
        with pytest.raises(PeerGone, match=r"/ip4/127\.0\.0\.1/tcp/1: connection refused"):
            await pair.server.prove(behind)
        taken = PeerAddress(pair.caller.peer, maddrs=pair.address.maddrs)  # where somebody else listens
        with pytest.raises(PeerGone, match="another peer answers there"):
            await pair.server.prove(taken)
