"""A committed state goes from donors to a joiner whatever happens to them, over every kind of stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes.direct_calls import from_peer
from tests.fakes.memory_transport import MemoryNetwork, MemoryTransport

from distqat.diloco.outer_optimizer import OuterState
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.transfer import donor as donor_module
from distqat.distributed.transfer import download as download_module
from distqat.distributed.transfer.donor import DonatedMoments, DonatedState, Donor
from distqat.distributed.transfer.download import WINDOW, ChunkCache, Download, StateHolder, WantedState
from distqat.distributed.transfer.snapshot_exchange import FetchedState, fetch
from distqat.distributed.transfer.state_chunks import ChunkedState
from distqat.distributed.transfer.token_bucket import TokenBucket
from distqat.errors import PeerGone, StageUnavailable
from distqat.protocol.calls.transfer_calls import DescribeState, FetchChunk
from distqat.protocol.hop import PeerAddress
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.call_messages import CallHandlers
from distqat.swarm.handshake import Admission
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import StreamTransport, Transport, UnixStreams

pytestmark = pytest.mark.timeout(60)

CHUNK = 1024
New = Callable[[str], Transport]


def state(round: int = 3, seed: int = 1) -> CommittedState:
    """Some 40 kB in chunks of 1 kB."""
    generator = torch.Generator().manual_seed(seed)
    anchor = {
        name: torch.randn(size, generator=generator) for name, size in (("a", 5000), ("b", 3), ("c", 0))
    }
    anchor["scalar"] = torch.tensor(1.5)
    buffers = {"count": torch.tensor(7), "on": torch.tensor([True, False])}
    slots = {"momentum": {name: tensor * 0.5 for name, tensor in anchor.items()}}
    return CommittedState(round, anchor, OuterState(2, slots), {}, buffers)


class Server:
    """A donor and what it was asked for; `spoil` may replace or refuse an answer."""

    def __init__(self, transport: Transport, name: str, shared: CommittedState, moments: bool) -> None:
        self.giver = StateHolder(name, PeerAddress(name, "here"))
        self.shared = shared
        self.transport = transport
        self.inner = {"a/exp_avg": torch.full((5000,), float(ord(name[-1])))}
        bucket = TokenBucket(None, 0, lambda: 0.0)
        self.donor = Donor(self._held, self._moments if moments else None, bucket, chunk_bytes=CHUNK)
        self.sent: list[str] = []
        self.spoil: Callable[[IncomingCall, Message], Awaitable[Message]] | None = None

    async def answer(self, call: IncomingCall) -> Message:
        fields = call.message.fields
        reply = await CallHandlers("a donor", self.donor.handlers).answer(call)
        if self.spoil is not None:
            reply = await self.spoil(call, reply)
        self.sent.append(
            f"{call.method} {str(fields['digest'])[:8]} {fields.get('index', fields.get('part', 'shared'))}"
        )
        return reply

    async def _held(self, round: int) -> DonatedState:
        return DonatedState(self.shared, 42)

    async def _moments(self) -> DonatedMoments:
        return DonatedMoments(self.inner, 43)

    def chunks(self, digest: str) -> list[int]:
        """Which chunks of a state it sent."""
        return [int(s.split()[2]) for s in self.sent if s.startswith(f"chunk {digest[:8]}")]


class Scene:
    def __init__(self, new: New, kill: Callable[[Transport], None]) -> None:
        self._new, self._kill = new, kill
        self.joiner = new("joiner")
        self.servers: list[Server] = []
        self.pieces = ChunkCache()

    async def add(self, shared: CommittedState | None = None, *, moments: bool = True) -> Server:
        name = f"donor{len(self.servers)}"
        server = Server(self._new(name), name, shared or state(), moments)
        await server.transport.serve(server.answer)
        self.servers.append(server)
        return server

    def kill(self, server: Server) -> None:
        self._kill(server.transport)

    def download(self, *servers: Server, of: CommittedState | None = None) -> Download:
        wanted = of or state()
        givers = [server.giver for server in servers or self.servers]
        return Download(self.joiner, givers, WantedState(wanted.round, wanted.digest), self.pieces)

    async def fetch(
        self, *servers: Server, of: CommittedState | None = None, moments: bool = True
    ) -> FetchedState:
        return await fetch(self.download(*servers, of=of), (of or state()).round, moments=moments)


@contextlib.asynccontextmanager
async def memory_scene(folder: Path) -> AsyncIterator[Scene]:
    network = MemoryNetwork()
    scene = Scene(lambda name: MemoryTransport(network, name), lambda one: network.kill(one.peer))
    yield scene
    for server in scene.servers:
        server.donor.close()


@contextlib.asynccontextmanager
async def unix_scene(folder: Path) -> AsyncIterator[Scene]:
    transports: list[StreamTransport] = []

    def new(name: str) -> Transport:
        transports.append(StreamTransport(Admission("run", name), [UnixStreams(folder, name, "here")]))
        return transports[-1]

    def kill(one: Transport) -> None:
        assert isinstance(one, StreamTransport)
        one._answer = _refuse
        for channel in one._inbound.channels():
            channel._transport.abort()

    scene = Scene(new, kill)
    yield scene
    for transport in transports:
        await transport.close()
    for server in scene.servers:
        server.donor.close()


async def _refuse(call: IncomingCall) -> Message:
    raise PeerGone("it was killed")


@pytest.fixture(params=[memory_scene, unix_scene], ids=["memory", "unix"])
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    async with request.param(tmp_path) as made:
        yield made


def count(shared: CommittedState) -> int:
    """Chunks of a state that differ."""
    return len(set(ChunkedState(shared.tensors(), shared.digest, CHUNK).description.hashes))


def at_chunk(number: int, do: Callable[[], Any]) -> Callable[[IncomingCall, Message], Awaitable[Message]]:
    """Something happens when a donor is about to send its `number`-th chunk."""
    passed = 0

    async def spoil(call: IncomingCall, reply: Message) -> Message:
        nonlocal passed
        if call.method == "chunk":
            passed += 1
            if passed == number:
                do()
        return reply

    return spoil


async def test_a_state_and_one_donors_moments_arrive(scene: Scene) -> None:
    first, second = await scene.add(), await scene.add()
    got = await scene.fetch()
    assert got.shared.digest == state().digest
    assert got.shared.round == 3
    assert set(got.givers) <= {"donor0", "donor1"}
    sent = first.chunks(state().digest) + second.chunks(state().digest)
    assert len(sent) == len(set(sent)) == count(state())
    assert any(torch.equal(got.inner["a/exp_avg"], s.inner["a/exp_avg"]) for s in (first, second))
    assert got.step == 43


async def test_a_donor_that_dies_is_followed_by_the_next_which_sends_only_what_is_missing(
    scene: Scene,
) -> None:
    dies, lives = await scene.add(), await scene.add()
    total, digest = count(state()), state().digest
    asked = asyncio.Event()

    async def slow(call: IncomingCall, reply: Message) -> Message:  # it describes once the other one is dead
        if call.method == "snapshot":
            await asked.wait()
        return reply

    lives.spoil = slow
    dies.spoil = at_chunk(10, lambda: (asked.set(), scene.kill(dies)))
    got = await scene.fetch()
    assert got.shared.digest == digest
    before, after = dies.chunks(digest), lives.chunks(digest)
    assert len(set(before) | set(after)) == total
    assert total - 10 <= len(after) < total
    assert len(before) + len(after) - total <= WINDOW, "only those on their way at the death are sent twice"
    assert torch.equal(got.inner["a/exp_avg"], lives.inner["a/exp_avg"])


async def test_when_all_donors_die_nothing_is_loaded_and_the_next_goes_on_from_there(scene: Scene) -> None:
    servers = [await scene.add(), await scene.add()]
    for server in servers:
        server.spoil = at_chunk(8, lambda dying=server: scene.kill(dying))
    with pytest.raises(StageUnavailable, match="gave the state of round 3"):
        await scene.fetch()
    later = await scene.add()
    got = await scene.fetch(later)
    assert got.shared.digest == state().digest
    assert len(later.chunks(state().digest)) <= count(state()) - 8, "what was there is not sent again"


async def test_a_donor_that_stalls_is_left_at_its_deadline(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "CHUNK_TIMEOUT", 0.2)
    stalls, lives = await scene.add(), await scene.add()
    never, stalled = asyncio.Event(), []

    async def stall(call: IncomingCall, reply: Message) -> Message:
        if call.method == "chunk" and len(stalls.chunks(state().digest)) >= 3:
            stalled.append(call)
            await never.wait()
        return reply

    stalls.spoil = stall
    assert (await scene.fetch(stalls, lives)).shared.digest == state().digest
    if not stalled:  # the other one was faster; alone it is found out
        scene.pieces = ChunkCache()
        with pytest.raises(StageUnavailable, match="did not answer 'chunk'"):
            await scene.fetch(stalls)
    assert stalled


async def test_wrong_bytes_in_a_chunk_set_a_donor_aside(scene: Scene) -> None:
    liar, honest = await scene.add(), await scene.add()
    lies = []

    async def flip(call: IncomingCall, reply: Message) -> Message:
        if call.method != "chunk":
            return reply
        lies.append(call.message.fields["index"])
        return Message({}, {"bytes": reply.tensors["bytes"] ^ 1})

    liar.spoil = flip
    got = await scene.fetch(liar, honest)
    assert got.shared.digest == state().digest
    assert lies
    assert got.givers == ("donor1",)
    scene.pieces = ChunkCache()
    with pytest.raises(StageUnavailable, match="other bytes"):
        await scene.fetch(liar)


def _of_another(reply: Message) -> Message:
    return ChunkedState(state(seed=9).tensors(), state().digest, CHUNK).description.message(3, 42)


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (lambda r: Message({**r.fields, "round": 4}, r.tensors), "describes round 4"),
        (lambda r: Message({**r.fields, "digest": "0" * 64}, r.tensors), "describes round 3, 000000000000"),
        (lambda r: Message(r.fields, {"schema": r.tensors["schema"]}), "lacks its hashes"),
        (lambda r: Message({**r.fields, "chunk_bytes": 7}, r.tensors), "chunk_bytes"),
        (lambda r: Message({}, r.tensors), "round"),
        (_of_another, "has no chunk|other bytes|digest"),
    ],
)
async def test_a_wrong_description_sets_a_donor_aside(
    scene: Scene, lie: Callable[[Message], Message], words: str
) -> None:
    liar, honest = await scene.add(), await scene.add()

    async def described(call: IncomingCall, reply: Message) -> Message:
        return lie(reply) if call.method == "snapshot" else reply

    liar.spoil = described
    assert (await scene.fetch(liar, honest, moments=False)).shared.digest == state().digest
    scene.pieces = ChunkCache()
    with pytest.raises(StageUnavailable, match=words):
        await scene.fetch(liar, moments=False)


async def test_a_donor_that_gives_another_state_throughout_is_found_out_at_the_end(scene: Scene) -> None:
    """Its description and its chunks fit each other, but not the digest in the commit log."""
    other = state(seed=9)
    liar, honest = await scene.add(other), await scene.add()
    lies = []

    async def as_if(request: DescribeState, call: IncomingCall) -> Message:
        reply = await donor.describe(replace(request, digest=other.digest), call)
        lies.append(request.digest)
        return Message({**reply.fields, "digest": state().digest}, reply.tensors)

    async def other_chunk(request: FetchChunk, call: IncomingCall) -> Message:
        return await donor.chunk(replace(request, digest=other.digest), call)

    donor = liar.donor
    donor.handlers = {DescribeState: as_if, FetchChunk: other_chunk}
    got = await scene.fetch(liar, honest, moments=False)
    assert got.shared.digest == state().digest
    scene.pieces = ChunkCache()
    with pytest.raises(StageUnavailable, match="its bytes have digest"):
        await scene.fetch(liar, moments=False)
    assert lies == [state().digest] * 2


async def test_a_donor_that_is_further_refuses_unless_it_is_read_already(scene: Scene) -> None:
    server = await scene.add()
    server.shared = state(round=4, seed=2)
    with pytest.raises(StageUnavailable, match="round 4 stands here, asked for was 3"):
        await scene.fetch()
    server.shared = state()

    def advance() -> None:
        server.shared = state(round=4, seed=2)

    server.spoil = at_chunk(3, advance)
    assert (await scene.fetch()).shared.digest == state().digest, "what a joiner reads stays as it is"
    assert (await scene.fetch(of=state(round=4, seed=2))).shared.round == 4


async def test_without_moments_a_joiner_starts_with_fresh_ones(scene: Scene) -> None:
    await scene.add(moments=False)
    got = await scene.fetch()
    assert (got.inner, got.step) == ({}, 42)


async def test_moments_start_anew_at_the_next_donor_when_theirs_dies(scene: Scene) -> None:
    servers = [await scene.add(), await scene.add()]
    died: list[Server] = []

    def dying(own: Server) -> Callable[[IncomingCall, Message], Awaitable[Message]]:
        async def spoil(call: IncomingCall, reply: Message) -> Message:
            moments = call.method == "chunk" and call.message.fields["digest"] != state().digest
            if moments and call.message.fields["index"] >= 5 and not died:
                died.append(own)
                scene.kill(own)
            return reply

        return spoil

    for server in servers:
        server.spoil = dying(server)
    got = await scene.fetch()
    (lives,) = [server for server in servers if server not in died]
    assert died
    assert torch.equal(got.inner["a/exp_avg"], lives.inner["a/exp_avg"])


async def test_a_frozen_state_is_let_go_after_silence(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await scene.add()
    await scene.fetch()
    chunk = FetchChunk(state().digest, 0)
    await server.donor.chunk(chunk, from_peer("joiner"))
    monkeypatch.setattr(donor_module, "SILENCE_S", -1.0)
    server.donor.sweep()
    with pytest.raises(StageUnavailable, match="not held here any more"):
        await server.donor.chunk(chunk, from_peer("joiner"))


async def test_joiners_wait_for_a_busy_donor(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "BUSY_S", 0.0)
    server = await scene.add()
    refused = 0

    class Sometimes:
        def take(self, amount: float, patience_s: float) -> float | None:
            nonlocal refused
            refused += 1
            return None if refused % 2 else 0.0

    server.donor._bucket = Sometimes()  # type: ignore[assignment]
    assert (await scene.fetch()).shared.digest == state().digest
    assert refused >= 2 * count(state())
