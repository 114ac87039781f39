"""Streams opened by hand: what a peer that means harm may try with hellos, links and silence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from distqat.errors import PeerGone, Refused, SwarmError
from distqat.protocol.hop import PeerAddress
from distqat.protocol.peer_silence import Heartbeat
from distqat.swarm import handshake, tensor_frame, transport
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.handshake import CONTROL, DATA, Admission, Hello
from distqat.swarm.peer_link import MAX_LINKS_PER_PEER
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import StreamTransport, UnixStreams

pytestmark = [pytest.mark.timeout(30), pytest.mark.enable_socket]

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Scene:
    folder: Path
    server: StreamTransport
    left: list[str] = field(default_factory=list)
    silent: list[bool] = field(default_factory=list)
    somebody_left: asyncio.Event = field(default_factory=asyncio.Event)
    opened: list[Stream] = field(default_factory=list)

    async def connect(self) -> Stream:
        stream = await asyncio.open_unix_connection(str(self.folder / "server.sock"))
        self.opened.append(stream)
        return stream

    async def open(self, peer: str, purpose: int, link: bytes) -> Stream:
        """A stream whose hello was welcome. Raises Refused."""
        reader, writer = await self.connect()
        await handshake.greet(reader, writer, Admission("run", peer), "server", Hello(peer, purpose, link))
        return reader, writer

    async def alive(self, stream: Stream) -> bool:
        """Whether a ping is answered."""
        reader, writer = stream
        writer.writelines(tensor_frame.encode(tensor_frame.PING, 0, "ping", Message()))
        raw = await asyncio.wait_for(reader.read(tensor_frame.PREFIX.size), 5)
        return bool(raw) and tensor_frame.FramePrefix.unpack(raw, 1 << 20).kind == tensor_frame.PONG


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    server = StreamTransport(
        Admission("run", "server"), [UnixStreams(tmp_path, "server", "here")], heartbeat=Heartbeat(0.02, 0.4)
    )
    made = Scene(tmp_path, server)

    async def answer(call: IncomingCall) -> Message:
        return Message({"peer": call.peer})

    def gone(peer: str, silent: bool) -> None:
        made.left.append(peer)
        made.silent.append(silent)
        made.somebody_left.set()

    await server.serve(answer, gone)
    yield made
    for _, writer in made.opened:
        writer.close()
    await server.close()


LINK = b"0123456789abcdef"


async def test_another_peers_link_id_is_another_link(scene: Scene) -> None:
    victim = await scene.open("victim", DATA, LINK)
    thief = await scene.open("thief", CONTROL, LINK)
    thief[1].close()
    await asyncio.wait_for(scene.somebody_left.wait(), 5)
    assert scene.left == ["thief"]
    assert await scene.alive(victim)


async def test_a_channel_of_a_link_cannot_be_opened_twice(scene: Scene) -> None:
    data = await scene.open("peer", DATA, LINK)
    await scene.open("peer", CONTROL, LINK)
    with pytest.raises(Refused, match="has this channel already"):
        await scene.open("peer", DATA, LINK)
    with pytest.raises(Refused, match="unknown purpose 9"):
        await scene.open("peer", 9, LINK)
    assert await scene.alive(data)


async def test_links_per_peer_are_bounded(scene: Scene) -> None:
    for number in range(MAX_LINKS_PER_PEER):
        await scene.open("peer", DATA, bytes([number]) * 16)
    with pytest.raises(Refused, match="links of this peer"):
        await scene.open("peer", DATA, LINK)
    await scene.open("other", DATA, LINK)


async def test_one_channel_takes_the_other_with_it_and_gone_is_said_once(scene: Scene) -> None:
    data = await scene.open("peer", DATA, LINK)
    control = await scene.open("peer", CONTROL, LINK)
    data[1].close()
    control[1].close()  # both in one turn of the loop
    await asyncio.wait_for(scene.somebody_left.wait(), 5)
    assert await data[0].read() == b""
    assert await control[0].read() == b""
    assert scene.left == ["peer"]
    assert scene.silent == [False], "who ends its streams is dead or has left"


async def test_a_silent_link_is_dropped(scene: Scene) -> None:
    stream = await scene.open("peer", DATA, LINK)
    assert await asyncio.wait_for(stream[0].read(), 5) == b""
    assert scene.left == ["peer"]
    assert scene.silent == [True], "it may come back"


async def greeting(scene: Scene, count: int) -> None:
    """Wait until that many hellos are half-open: each stream is accepted in a turn of the loop of its own."""
    for _ in range(10_000):
        if scene.server._greeting == count:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{scene.server._greeting} half-open hellos, not {count}")


async def test_half_open_hellos_are_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_GREETING", 3)
    half_open = [await scene.connect() for _ in range(3)]
    for _, writer in half_open:
        writer.write(b"DQAT")
    await greeting(scene, 3)
    reader, _ = await scene.connect()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    half_open[0][1].close()
    await greeting(scene, 2)
    await scene.open("honest", DATA, LINK)


async def test_a_hello_that_never_ends_is_dropped(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "HELLO_TIMEOUT", 0.02)
    reader, writer = await scene.connect()
    writer.write(b"DQAT")
    assert await asyncio.wait_for(reader.read(), 5) == b""


@pytest.mark.parametrize("raw", [bytes(handshake.HELLO.size), b"GET / HTTP/1.1\r\n" * 20])
async def test_a_hello_of_another_protocol_is_dropped(scene: Scene, raw: bytes) -> None:
    reader, writer = await scene.connect()
    writer.write(raw)
    with contextlib.suppress(ConnectionResetError):  # what was not read resets the stream
        assert await asyncio.wait_for(reader.read(), 5) == b""
    assert scene.left == []


async def test_another_protocol_version_is_told_so(scene: Scene) -> None:
    reader, writer = await scene.connect()
    writer.write(handshake.HELLO.pack(handshake.MAGIC, 99, DATA, LINK, bytes(16), bytes(32), b"peer"))
    verdict = handshake.ANSWER.unpack(await asyncio.wait_for(reader.readexactly(handshake.ANSWER.size), 5))
    assert b"protocol version 99" in verdict[3]


async def test_an_acceptor_that_is_no_server_of_ours(tmp_path: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * handshake.ANSWER.size)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    for name, behave in (("refuse", refuse), ("hang", hang_up)):
        server = await asyncio.start_unix_server(behave, str(tmp_path / f"{name}.sock"))
        caller = StreamTransport(Admission("run", "caller"), [UnixStreams(tmp_path, "caller", "here")])
        with pytest.raises(SwarmError, match=r"does not speak|closed the stream"):
            await caller.link(PeerAddress(name, "here"))
        await caller.close()
        server.close()


async def test_a_socket_file_that_nobody_listens_on_is_a_gone_peer(tmp_path: Path) -> None:
    (tmp_path / "dead.sock").touch()
    caller = StreamTransport(Admission("run", "caller"), [UnixStreams(tmp_path, "caller", "here")])
    with pytest.raises(PeerGone, match="cannot be connected"):
        await caller.link(PeerAddress("dead", "here"))


@pytest.mark.parametrize("claim", ["nothing", "the dialler's own proof", "another token"])
async def test_who_does_not_know_the_token_is_never_called(tmp_path: Path, claim: str) -> None:
    """Anybody may announce itself as the client or a server of a closed swarm; it learns nothing by that."""
    heard: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await reader.readexactly(handshake.HELLO.size)
        link, own = hello[8:24], hello[40:72]
        proof = {
            "nothing": b"",
            "the dialler's own proof": own,
            "another token": Admission("run", "server", "guessed").proof(
                link, "caller", "server", answering=True
            ),
        }[claim]
        magic, version = handshake.MAGIC, tensor_frame.PROTOCOL_VERSION
        writer.write(handshake.ANSWER.pack(magic, version, 1, proof))
        heard.append(await reader.read())
        writer.close()

    impostor = await asyncio.start_unix_server(accept, str(tmp_path / "server.sock"))
    caller = StreamTransport(Admission("run", "caller", "secret"), [UnixStreams(tmp_path, "caller", "here")])
    with pytest.raises(PeerGone, match="does not know the run's token"):
        await caller.link(PeerAddress("server", "here"))
    await caller.close()
    impostor.close()
    assert not any(heard)  # not a byte behind the hello
