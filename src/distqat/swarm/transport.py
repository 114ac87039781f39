"""The transport seam and its real form: frames over libp2p's raw streams or, on one host, Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from distqat.errors import Busy, CallTimeout, PeerGone, Refused, SwarmError
from distqat.protocol.hop import PeerAddress
from distqat.protocol.peer_silence import Heartbeat
from distqat.swarm import handshake
from distqat.swarm.call_channel import MAX_PAYLOAD_BYTES, Answer, ByteCount, CallChannel
from distqat.swarm.deadline import within
from distqat.swarm.handshake import Admission, Hello
from distqat.swarm.peer_link import InboundLinks, PeerLink, gone
from distqat.swarm.tensor_frame import Message

logger = logging.getLogger(__name__)

OPEN_TIMEOUT = 10.0
GOODBYE_TIMEOUT = 1.0
MAX_GREETING = 256  # streams in the middle of their hello
Gone = Callable[[str, bool], None]
"""Told the name of a peer whose links to us have all ended; True if it was silent, else it left or died."""
Unreached = Callable[[PeerAddress, str], None]
OnStream = Callable[[str | None, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class LinkLike(Protocol):
    """A way to call one peer."""

    peer: str

    @property
    def alive(self) -> bool:
        """Whether calls can be made; a link that ended stays so."""

    async def call(
        self,
        method: str,
        message: Message | None = None,
        *,
        timeout: float,
        urgent: bool = False,
        prompt: bool = False,
    ) -> Message:
        """The peer's answer within `timeout` seconds; `urgent` calls go over the control stream.

        Raises PeerGone, CallTimeout, and whatever error the peer answered with.
        """

    def bytes_out(self) -> int:
        """Bytes sent, frames and heartbeats."""

    def bytes_in(self) -> int:
        """Bytes received, frames and heartbeats."""

    def close(self, reason: str = ...) -> None:
        """Ends the link; calls in flight raise PeerGone with the reason."""


class Transport(Protocol):
    """Calls between peers. A dead peer raises PeerGone at once, a silent one after the heartbeat."""

    peer: str
    traffic: ByteCount
    on_unreached: Unreached | None
    """Told of peers that could not be connected to, and why."""

    async def serve(self, answer: Answer, gone: Gone | None = None) -> None:
        """Accept links and answer their calls; `gone` hears of peers whose links ended."""

    async def link(self, to: PeerAddress, *, prompt: bool = False) -> LinkLike:
        """The link to a peer, dialled if there is none. Raises PeerGone, Refused, ProtocolMismatch."""

    async def prove(self, to: PeerAddress) -> None:
        """Raises PeerGone unless a peer that has no connection to `to` gets one at its addresses.

        RoleError: nothing is known.
        """

    async def close(self) -> None:
        """Ends all links and stops listening."""


class Streams(Protocol):
    """Where byte streams come from."""

    async def listen(self, on_stream: OnStream) -> None:
        """Hand every stream that others open to `on_stream`, with the peer where it is authenticated."""

    def reaches(self, to: PeerAddress) -> bool:
        """Whether a stream to `to` may be opened this way."""

    async def open(self, to: PeerAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new stream. Raises OSError or PeerGone."""

    async def prove(self, to: PeerAddress) -> None:
        """As `Transport.prove`."""

    async def hang_up(self, peer: str) -> None:
        """`peer` is silent: drop what is connected to it, so that the next stream takes a new connection."""

    async def close(self) -> None:
        """Stops listening."""


class UnixStreams:
    """Unix sockets named after the peer in a private folder; reaches peers of the same host."""

    def __init__(self, folder: Path, peer: str, host: str) -> None:
        self._folder, self._peer, self._host = folder, peer, host
        self._server: asyncio.AbstractServer | None = None

    def _path(self, peer: str) -> Path:
        return self._folder / f"{peer[-24:]}.sock"

    def reaches(self, to: PeerAddress) -> bool:
        return bool(to.host) and to.host == self._host and self._path(to.peer).exists()

    async def listen(self, on_stream: OnStream) -> None:
        path = self._path(self._peer)
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(lambda r, w: on_stream(None, r, w), path=str(path))

    async def open(self, to: PeerAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self._path(to.peer)))

    async def prove(self, to: PeerAddress) -> None:
        return  # its socket is there

    async def hang_up(self, peer: str) -> None:
        return

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path(self._peer).unlink(missing_ok=True)


class StreamTransport:
    """Links over the first of `streams` that reaches a peer; one link per peer, redialled when it died."""

    def __init__(
        self,
        admission: Admission,
        streams: list[Streams],
        *,
        heartbeat: Heartbeat | None = None,
        max_payload: int = MAX_PAYLOAD_BYTES,
    ) -> None:
        self.peer = admission.peer
        self.traffic = ByteCount()
        self.on_unreached: Unreached | None = None
        self._admission = admission
        self._streams = streams
        self._heartbeat = heartbeat or Heartbeat()
        self._max_payload = max_payload
        self._links: dict[str, PeerLink] = {}
        self._dialling: dict[str, asyncio.Task[PeerLink]] = {}
        self._ending: set[asyncio.Future[None]] = set()
        self._inbound = InboundLinks(self._heartbeat, self._peer_gone)
        self._greeting = 0  # streams whose hello is not complete
        self._writers: dict[CallChannel, asyncio.StreamWriter] = {}  # a collected writer closes its stream
        self._answer: Answer | None = None
        self._gone: Gone | None = None
        self._closed = False

    async def serve(self, answer: Answer, gone: Gone | None = None) -> None:
        """Answer calls from now on, and hear of peers that left."""
        self._answer, self._gone = answer, gone
        for streams in self._streams:
            await streams.listen(self._accept)

    async def link(self, to: PeerAddress, *, prompt: bool = False) -> PeerLink:
        """The live link to a peer; dials if there is none. Raises PeerGone, Refused, ProtocolMismatch.

        Callers that come while it dials share the outcome; one that is cancelled does not end the dialling.
        `prompt`: do not dial a peer whose own links to us are in doubt (CallTimeout).
        """
        link = self._links.get(to.peer)
        if link is not None and link.alive:
            return link
        if self._closed:
            raise gone(to.peer, "this side has closed its transport")
        if prompt and self._inbound.doubtful(to.peer):
            raise CallTimeout(f"{to.peer} gives no sign of life on its own links; it is stopped or cut off")
        dial = self._dialling.get(to.peer)
        if dial is None:
            dial = self._dialling[to.peer] = asyncio.ensure_future(self._dial(to))
            dial.add_done_callback(lambda ended: self._dialled(to.peer, ended))
        try:
            return await asyncio.shield(dial)
        except SwarmError as error:
            raise type(error)(str(error)) from error  # callers add to their error; it must be their own

    async def prove(self, to: PeerAddress) -> None:
        """Raises PeerGone unless a stranger gets a connection to `to`; RoleError: nothing is known."""
        await self._way(to).prove(to)

    async def close(self) -> None:
        """Say goodbye on every link and stop listening; what was sent before has left, or a second passed."""
        self._closed = True
        for dial in list(self._dialling.values()):
            dial.cancel()
        for link in list(self._links.values()):
            link.close()
        self._inbound.close()
        for streams in self._streams:
            await streams.close()
        leaving = {channel.lost for channel in self._writers}
        if leaving:
            await asyncio.wait(leaving, timeout=GOODBYE_TIMEOUT)

    def _peer_gone(self, peer: str, silent: bool) -> None:
        if silent:
            self._hang_up(peer)
        if self._gone is not None and not self._closed:
            self._gone(peer, silent)

    async def _dial(self, to: PeerAddress) -> PeerLink:
        data = Hello(self.peer, handshake.DATA)
        control = Hello(self.peer, handshake.CONTROL, data.link)
        first = await self._open(to, data)
        try:
            second = await self._open(to, control)
        except BaseException:  # also when it is cancelled: nobody else knows of the first
            first.close()
            raise
        return PeerLink(to.peer, first, second, self._heartbeat)

    def _dialled(self, peer: str, dial: asyncio.Task[PeerLink]) -> None:
        del self._dialling[peer]
        if dial.cancelled() or dial.exception() is not None:
            return
        link = dial.result()
        if self._closed:
            link.close()
            return
        self._links[peer] = link
        for channel in (link.data, link.control):
            channel.closed.add_done_callback(lambda _: self._forget(peer, link))

    def _forget(self, peer: str, link: PeerLink) -> None:
        if self._links.get(peer) is link:
            del self._links[peer]
        if link.silent:
            self._hang_up(peer)

    def _hang_up(self, peer: str) -> None:
        """If no link to or from this silent peer lives: what it was connected by may never carry again."""
        link = self._links.get(peer)
        if self._closed or (link is not None and link.alive):
            return
        if self._inbound.silence(peer) <= self._heartbeat.doubt_s:
            return
        for streams in self._streams:
            ending = asyncio.ensure_future(streams.hang_up(peer))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _open(self, to: PeerAddress, greeting: Hello) -> CallChannel:
        try:
            reader, writer = await within(self._way(to).open(to), OPEN_TIMEOUT)
        except asyncio.TimeoutError:
            raise self._unreached(to, f"no connection within {OPEN_TIMEOUT:.0f} s") from None
        except OSError as error:
            raise self._unreached(to, f"it cannot be connected to ({error})") from error
        try:
            await handshake.greet(reader, writer, self._admission, to.peer, greeting)
        except BaseException:  # also when it is cancelled
            writer.close()
            raise
        return self._channel(writer, to.peer, None)

    def _way(self, to: PeerAddress) -> Streams:
        streams = next((each for each in self._streams if each.reaches(to)), None)
        if streams is None:
            raise gone(to.peer, "no transport of this role reaches it")
        return streams

    def _unreached(self, to: PeerAddress, why: str) -> PeerGone:
        if self.on_unreached is not None:
            self.on_unreached(to, why)
        return gone(to.peer, why)

    async def _accept(
        self, peer: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            greeting = await self._greeted(peer, reader, writer)
        except SwarmError as error:
            logger.warning("refused a stream: %s", error)
            with contextlib.suppress(OSError):
                writer.close()
            return
        assert self._answer is not None
        channel = self._channel(writer, greeting.peer, self._answer)
        self._inbound.add(greeting, channel)
        handshake.welcome(writer, self._admission, greeting)
        await channel.closed

    async def _greeted(
        self, peer: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Hello:
        if self._closed or self._greeting >= MAX_GREETING:
            raise Busy(f"{self._greeting} streams are in the middle of their hello")
        self._greeting += 1
        try:
            greeting = await handshake.receive(reader, writer, self._admission, peer)
        finally:
            self._greeting -= 1
        try:
            self._inbound.check(greeting)
        except Refused as error:
            handshake.refuse(writer, str(error))
            raise
        return greeting

    def _channel(self, writer: asyncio.StreamWriter, peer: str, answer: Answer | None) -> CallChannel:
        channel = CallChannel(
            writer.transport, peer, answer=answer, traffic=self.traffic, max_payload=self._max_payload
        )
        self._writers[channel] = writer
        channel.lost.add_done_callback(lambda _: self._writers.pop(channel))
        return channel


__all__ = [
    "Answer",
    "LinkLike",
    "PeerGone",
    "StreamTransport",
    "Streams",
    "Transport",
    "UnixStreams",
]
