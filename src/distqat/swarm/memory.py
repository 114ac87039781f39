"""The transport without sockets: the fake that tests use, held to the same suite as the real ones."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from distqat.errors import BadFrame, CallTimeout, PeerGone, SwarmError
from distqat.swarm import frame
from distqat.swarm.channel import ERRORS_BY_CODE, Answer, Call, Traffic
from distqat.swarm.frame import Message
from distqat.swarm.link import Address, gone


@dataclass
class MemoryNetwork:
    """Peers by name; `kill` makes one vanish in the middle of whatever it does."""

    peers: dict[str, MemoryTransport] = field(default_factory=dict)

    def kill(self, peer: str) -> None:
        transport = self.peers.pop(peer)
        transport.die("the process or its network died")


class MemoryTransport:
    """One peer of a MemoryNetwork. Messages go through the real frame, so what travels is what would."""

    def __init__(self, network: MemoryNetwork, peer: str) -> None:
        self.peer = peer
        self.traffic = Traffic()
        self._network = network
        self._answer: Answer | None = None
        self._answering: set[asyncio.Task[Message]] = set()
        self._dead: str | None = None
        network.peers[peer] = self

    async def serve(self, answer: Answer) -> None:
        self._answer = answer

    async def link(self, to: Address) -> MemoryLink:
        if to.peer not in self._network.peers:
            raise gone(to.peer, "nobody of this name is in the network")
        return MemoryLink(self, self._network.peers[to.peer])

    async def close(self) -> None:
        self._network.peers.pop(self.peer, None)
        self.die("it closed the stream")

    def die(self, reason: str) -> None:
        self._dead = reason
        for task in self._answering:
            task.cancel()

    @property
    def dead(self) -> str | None:
        return self._dead

    async def take(self, call: Call) -> Message:
        """Answer a call of another peer; cancelled when this one dies."""
        if self._dead is not None or self._answer is None:
            raise gone(self.peer, self._dead or "it does not serve")
        task = asyncio.ensure_future(self._answer_one(call))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._dead is not None:
                raise gone(self.peer, self._dead) from None
            raise

    async def _answer_one(self, call: Call) -> Message:
        assert self._answer is not None
        return await self._answer(call)


class MemoryLink:
    """A call goes straight to the other transport, framed and unframed on the way."""

    def __init__(self, source: MemoryTransport, target: MemoryTransport) -> None:
        self.peer = target.peer
        self._source, self._target = source, target
        self._closed: str | None = None
        self._bytes_in = self._bytes_out = 0

    @property
    def alive(self) -> bool:
        return self._closed is None and self._target.dead is None

    async def call(
        self, method: str, message: Message | None = None, *, timeout: float, urgent: bool = False
    ) -> Message:
        if not self.alive:
            raise gone(self.peer, self._closed or str(self._target.dead))
        sent, size = _through_frame(method, message or Message())
        self._bytes_out += size
        self._source.traffic.bytes_out += size
        self._target.traffic.bytes_in += size
        try:
            reply = await asyncio.wait_for(
                self._target.take(Call(self._source.peer, method, sent)), timeout
            )
        except asyncio.TimeoutError:
            raise CallTimeout(f"{self.peer} did not answer {method!r} in {timeout:.1f} s") from None
        except PeerGone:
            raise
        except SwarmError as error:
            raise ERRORS_BY_CODE[error.code](f"{self.peer}: {error}") from error
        except Exception as error:
            raise SwarmError(f"{self.peer}: {type(error).__name__}: {error}") from error
        received, size = _through_frame(method, reply)
        self._bytes_in += size
        self._source.traffic.bytes_in += size
        self._target.traffic.bytes_out += size
        return received

    def bytes_out(self) -> int:
        return self._bytes_out

    def bytes_in(self) -> int:
        return self._bytes_in

    def close(self, reason: str = "closed by this side") -> None:
        self._closed = reason


def _through_frame(method: str, message: Message) -> tuple[Message, int]:
    import numpy as np

    buffers = frame.encode(frame.CALL, 1, method, message)
    raw = b"".join(buffers)
    prefix = frame.Prefix.unpack(raw[: frame.PREFIX.size], max_payload=2**40)
    start = frame.PREFIX.size + prefix.header_bytes
    payload = np.frombuffer(raw[start:], dtype=np.uint8).copy()
    with contextlib.suppress(BadFrame):
        return frame.decode(raw[frame.PREFIX.size : start], payload)[1], len(raw)
    raise BadFrame(f"{method}: does not survive its own frame")
