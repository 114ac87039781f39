"""A link to one peer: a stream for tensors, a stream for control, and a heartbeat on the latter.

A ping behind a 64 MB transfer waits 309 ms on the same stream and 2 ms on its own, hence two. A stopped peer
closes nothing, hence the heartbeat; peer_silence.py says how long that takes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from distqat.errors import PeerGone, Refused
from distqat.protocol.peer_silence import STALL_S, Heartbeat, PeerSilence
from distqat.swarm.call_channel import CallChannel
from distqat.swarm.handshake import Hello
from distqat.swarm.tensor_frame import Message

MAX_LINKS_PER_PEER = 16  # one is usual; a redial overlaps with a link that is not yet known to be dead
TOO_SLOW = "a frame that it began does not get done"


class PeerLink:
    """The dialling side's two channels to `peer`."""

    def __init__(self, peer: str, data: CallChannel, control: CallChannel, heartbeat: Heartbeat) -> None:
        self.peer = peer
        self.data = data
        self.control = control
        self.silent = False  # how it ended
        self._heartbeat = heartbeat
        self._watch = asyncio.ensure_future(self._keep_alive())

    @property
    def alive(self) -> bool:
        return not (self.data.closed.done() or self.control.closed.done())

    async def call(
        self,
        method: str,
        message: Message | None = None,
        *,
        timeout: float,
        urgent: bool = False,
        prompt: bool = False,
    ) -> Message:
        """Call the peer; `urgent` takes the control stream, past any transfer. Raises as Channel.call.

        `prompt`: somebody else can do it, so give up as soon as the peer is in doubt (CallTimeout).
        """
        channel = self.control if urgent else self.data
        return await channel.call(method, message or Message(), timeout=timeout, prompt=prompt)

    def bytes_out(self) -> int:
        return self.data.traffic.bytes_out + self.control.traffic.bytes_out

    def bytes_in(self) -> int:
        return self.data.traffic.bytes_in + self.control.traffic.bytes_in

    def close(self, reason: str = "closed by this side") -> None:
        """Orderly end of both streams."""
        self._watch.cancel()
        for channel in (self.data, self.control):
            channel.close(reason)

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        ends = {self.data.closed, self.control.closed}
        watched = PeerSilence(self._heartbeat, loop.time())
        pinged = -math.inf
        while True:
            now = loop.time()
            if now - pinged >= self._heartbeat.interval_s:
                self.control.ping()
                pinged = now
            done, _ = await asyncio.wait(
                ends, timeout=watched.next_look(now), return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return self._drop(next(iter(done)).result())
            now = loop.time()
            heard = max(self.control.last_heard, self.data.last_heard)
            silence = watched.look(now, heard, self.bytes_out())
            if silence > self._heartbeat.silence_s:
                self.silent = True
                return self._drop(f"no sign of life for {silence:.1f} s")
            if self.control.overdue() or self.data.overdue():
                return self._drop(TOO_SLOW)
            if watched.doubtful(now):
                for channel in (self.data, self.control):
                    channel.doubt(silence)

    def _drop(self, reason: str) -> None:
        for channel in (self.data, self.control):
            channel.abort(reason)


class InboundLinks:
    """The accepting side: the channels of one link live and end together, at most one per purpose.

    A link belongs to the peer that opened it: a link id that another peer names is another link. `gone` hears
    of a peer once its last link has ended, unless this side ended it, and whether it had become silent: who
    ended its streams is dead or has left, who is silent may come back.
    """

    def __init__(self, heartbeat: Heartbeat, gone: Callable[[str, bool], None]) -> None:
        self._heartbeat = heartbeat
        self._gone = gone
        self._links: dict[tuple[str, bytes], dict[int, CallChannel]] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._listening_since = -math.inf  # later than this no silence is our own

    def check(self, hello: Hello) -> None:
        """Refused unless `hello` may open a channel."""
        channels = self._links.get((hello.peer, hello.link))
        if channels is not None and hello.purpose in channels:
            raise Refused(f"link {hello.link.hex()[:8]} has this channel already")
        if channels is None and sum(peer == hello.peer for peer, _ in self._links) >= MAX_LINKS_PER_PEER:
            raise Refused(f"{MAX_LINKS_PER_PEER} links of this peer are open")

    def add(self, hello: Hello, channel: CallChannel) -> None:
        """Take a channel that `check` let in."""
        key = hello.peer, hello.link
        self._links.setdefault(key, {})[hello.purpose] = channel
        channel.closed.add_done_callback(lambda closed: self._end(key, closed.result()))
        if self._sweeper is None:
            self._sweeper = asyncio.ensure_future(self._sweep())

    def channels(self) -> list[CallChannel]:
        """All open channels."""
        return [channel for channels in self._links.values() for channel in channels.values()]

    def silence(self, peer: str) -> float:
        """Seconds since a link that this peer opened gave a sign of life; infinite without one."""
        heard = [channel.last_heard for channel in self.channels() if channel.peer == peer]
        return asyncio.get_running_loop().time() - max(heard, default=-math.inf)

    def doubtful(self, peer: str) -> bool:
        """Whether this peer has links to us that give no sign of life."""
        silence, listened = self.silence(peer), asyncio.get_running_loop().time() - self._listening_since
        return silence < math.inf and min(silence, listened) >= self._heartbeat.doubt_s

    def close(self) -> None:
        """Say goodbye to everybody."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        channels = self.channels()
        self._links.clear()
        for channel in channels:
            channel.close()

    def _end(self, key: tuple[str, bytes], reason: str, *, silent: bool = False) -> None:
        channels = self._links.pop(key, None)
        if channels is None:
            return
        for channel in channels.values():
            channel.abort(reason)
        if all(peer != key[0] for peer, _ in self._links):
            # What it raises is logged by the loop, and ends neither the sweep nor another link.
            asyncio.get_running_loop().call_soon(self._gone, key[0], silent)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._listening_since = loop.time()
        while True:
            due = loop.time() + self._heartbeat.interval_s
            await asyncio.sleep(self._heartbeat.interval_s)
            if loop.time() > due + STALL_S:  # we were away: what came meanwhile is not read yet
                self._listening_since = loop.time()
            for key, channels in list(self._links.items()):
                heard = max(channel.last_heard for channel in channels.values())
                silence = loop.time() - max(heard, self._listening_since)
                if silence > self._heartbeat.silence_s:
                    self._end(key, f"no sign of life for {silence:.1f} s", silent=True)
                elif any(channel.overdue() for channel in channels.values()):
                    self._end(key, TOO_SLOW, silent=True)


def gone(peer: str, reason: str) -> PeerGone:
    """The error for a peer that was not reached or did not stay."""
    return PeerGone(f"{peer} is gone: {reason}")
