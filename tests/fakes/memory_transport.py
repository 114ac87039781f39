"""The transport without sockets: the fake that tests use, held to the same suite as the real ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from distqat.errors import CallTimeout, SwarmError
from distqat.protocol.hop import PeerAddress
from distqat.swarm import tensor_frame
from distqat.swarm.frame_reader import FrameReader
from distqat.swarm.incoming_call import Answer, ByteCount, IncomingCall, error_fields, error_of
from distqat.swarm.peer_link import gone
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import Gone, Unreached

NOBODY = "nobody of this name is in the network"


@dataclass
class MemoryNetwork:
    """Peers by name; `kill` makes one vanish in the middle of whatever it does."""

    peers: dict[str, MemoryTransport] = field(default_factory=dict)

    def kill(self, peer: str) -> None:
        self.peers[peer].die("the stream ended without a goodbye; the process or its network died")


class MemoryTransport:
    """One peer of a MemoryNetwork. Messages go through the real frame, so what travels is what would."""

    def __init__(self, network: MemoryNetwork, peer: str) -> None:
        self.peer = peer
        self.traffic = ByteCount()
        self.dead: str | None = None
        self.on_unreached: Unreached | None = None
        self._network = network
        self._answer: Answer | None = None
        self._gone: Gone | None = None
        self._inbound: Counter[str] = Counter()  # links by who dialled them
        self._links: dict[str, MemoryLink] = {}
        network.peers[peer] = self

    async def serve(self, answer: Answer, gone: Gone | None = None) -> None:
        self._answer, self._gone = answer, gone

    async def link(self, to: PeerAddress, *, prompt: bool = False) -> MemoryLink:
        link = self._links.get(to.peer)
        if link is not None and link.alive:
            return link
        if self.dead is not None:
            raise gone(to.peer, "this side has closed its transport")
        target = self._network.peers.get(to.peer)
        if target is None:
            if self.on_unreached is not None:
                self.on_unreached(to, NOBODY)
            raise gone(to.peer, NOBODY)
        link = self._links[to.peer] = MemoryLink(self, target)
        target._inbound[self.peer] += 1
        return link

    async def prove(self, to: PeerAddress) -> None:
        if to.peer not in self._network.peers:
            raise gone(to.peer, NOBODY)

    async def close(self) -> None:
        self.die("it closed the stream")

    def die(self, reason: str) -> None:
        """End all links of this peer, in both directions."""
        if self.dead is not None:
            return
        self.dead = reason
        if self._network.peers.get(self.peer) is self:
            del self._network.peers[self.peer]
        for link in list(self._links.values()):
            link.end("this side died")
        for other in list(self._network.peers.values()):
            link_here = other._links.get(self.peer)
            if link_here is not None:
                link_here.end(reason)

    def lost(self, peer: str) -> None:
        """A link that `peer` had dialled has ended."""
        self._inbound[peer] -= 1
        if self._inbound[peer] <= 0:
            del self._inbound[peer]
            if self._gone is not None and self.dead is None:
                self._gone(peer, False)

    async def take(self, call: IncomingCall) -> Message:
        """Answer a call of another peer; every error becomes one that a peer may see."""
        if self._answer is None:
            raise gone(self.peer, "it does not serve")
        try:
            return _through_frame(call.method, await self._answer(call))[0]
        except asyncio.CancelledError:
            raise
        except Exception as error:  # as at the edge of a channel
            raise error_of(self.peer, error_fields(error)) from error


class MemoryLink:
    """A call goes straight to the other transport, framed and unframed on the way."""

    def __init__(self, source: MemoryTransport, target: MemoryTransport) -> None:
        self.peer = target.peer
        self._source, self._target = source, target
        self._ended: str | None = None
        self._waiting: set[asyncio.Future[Message]] = set()
        self._answering: set[asyncio.Task[Message]] = set()
        self._bytes_in = self._bytes_out = 0

    @property
    def alive(self) -> bool:
        return self._ended is None

    async def call(
        self,
        method: str,
        message: Message | None = None,
        *,
        timeout: float,
        urgent: bool = False,
        prompt: bool = False,
    ) -> Message:
        if self._ended is not None:
            raise gone(self.peer, self._ended)
        sent, size = _through_frame(method, message or Message())
        self._bytes_out += size
        self._source.traffic.bytes_out += size
        self._target.traffic.bytes_in += size
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Message] = loop.create_future()
        late = CallTimeout(f"{self.peer} did not answer {method!r} in {timeout:.1f} s; it is slow or stopped")
        timer = loop.call_later(timeout, _fail, answer, late)
        self._waiting.add(answer)
        task = asyncio.ensure_future(self._target.take(IncomingCall(self._source.peer, method, sent)))
        self._answering.add(task)
        task.add_done_callback(lambda done: self._answered(done, answer))
        try:
            reply = await answer
        finally:
            timer.cancel()
            self._waiting.discard(answer)
            answer.cancel()
        size = _through_frame(method, reply)[1]
        self._bytes_in += size
        self._source.traffic.bytes_in += size
        self._target.traffic.bytes_out += size
        return reply

    def _answered(self, task: asyncio.Task[Message], answer: asyncio.Future[Message]) -> None:
        self._answering.discard(task)
        error = SwarmError(f"{self.peer}: it was cancelled") if task.cancelled() else task.exception()
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(task.result())

    def bytes_out(self) -> int:
        return self._bytes_out

    def bytes_in(self) -> int:
        return self._bytes_in

    def close(self, reason: str = "closed by this side") -> None:
        self.end(reason)

    def end(self, reason: str) -> None:
        """Calls in flight raise PeerGone, and what answers them is cancelled, as with a real stream."""
        if self._ended is not None:
            return
        self._ended = reason
        for answer in list(self._waiting):
            _fail(answer, gone(self.peer, reason))
        for task in list(self._answering):
            task.cancel()
        self._target.lost(self._source.peer)


def _fail(answer: asyncio.Future[Message], error: SwarmError) -> None:
    if not answer.done():
        answer.set_exception(error)


def _through_frame(method: str, message: Message) -> tuple[Message, int]:
    raw = memoryview(b"".join(tensor_frame.encode(tensor_frame.CALL, 1, method, message)))
    incoming, sent = FrameReader(max_payload=2**40, now=0.0), 0
    while True:
        room = incoming.buffer()
        room[:] = raw[sent : sent + len(room)]
        sent += len(room)
        whole = incoming.received(len(room), 0.0)
        if whole is not None:
            return whole.message, len(raw)
