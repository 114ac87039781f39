"""A link to one peer: a stream for tensors, a stream for control, and a heartbeat on the latter.

A ping behind a 64 MB transfer waits 309 ms on the same stream and 2 ms on its own, hence two. A stopped peer
closes nothing, hence the heartbeat.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from distqat.errors import PeerGone
from distqat.swarm.channel import Channel
from distqat.swarm.frame import Message


@dataclass(frozen=True)
class Heartbeat:
    """Seconds between pings, and of silence after which the peer counts as gone."""

    interval_s: float = 1.0
    silence_s: float = 6.0


@dataclass(frozen=True)
class Address:
    """Where a peer can be reached: its libp2p identity, its physical host, its multiaddrs."""

    peer: str
    host: str = ""
    maddrs: tuple[str, ...] = ()


class Link:
    """The dialling side's two channels to `peer`."""

    def __init__(self, peer: str, data: Channel, control: Channel, heartbeat: Heartbeat) -> None:
        self.peer = peer
        self.data = data
        self.control = control
        self._heartbeat = heartbeat
        self._watch = asyncio.ensure_future(self._keep_alive())

    @property
    def alive(self) -> bool:
        return not (self.data.closed.done() or self.control.closed.done())

    async def call(
        self, method: str, message: Message | None = None, *, timeout: float, urgent: bool = False
    ) -> Message:
        """Call the peer; `urgent` takes the control stream, past any transfer. Raises as Channel.call."""
        channel = self.control if urgent else self.data
        return await channel.call(method, message or Message(), timeout=timeout)

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
        while True:
            self.control.ping()
            done, _ = await asyncio.wait(
                ends, timeout=self._heartbeat.interval_s, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return self._drop(next(iter(done)).result())
            silence = loop.time() - max(self.control.last_heard, self.data.last_heard)
            if silence > self._heartbeat.silence_s:
                return self._drop(f"no sign of life for {silence:.1f} s")

    def _drop(self, reason: str) -> None:
        for channel in (self.data, self.control):
            channel.abort(reason)


class InboundLinks:
    """The accepting side: channels of one link are paired, and a silent or half-dead link is dropped whole."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._channels: dict[bytes, list[Channel]] = {}
        self._watches: set[asyncio.Task[None]] = set()

    def add(self, link: bytes, channel: Channel) -> None:
        self._channels.setdefault(link, []).append(channel)
        watch = asyncio.ensure_future(self._watch(link, channel))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    def peers(self) -> set[str]:
        return {channel.peer for channels in self._channels.values() for channel in channels}

    def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        for channels in list(self._channels.values()):
            for channel in channels:
                channel.close()
        self._channels.clear()

    async def _watch(self, link: bytes, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        reason = "?"
        while True:
            done, _ = await asyncio.wait({channel.closed}, timeout=self._heartbeat.interval_s)
            if done:
                reason = channel.closed.result()
                break
            heard = max(each.last_heard for each in self._channels[link])
            if loop.time() - heard > self._heartbeat.silence_s:
                reason = f"no sign of life for {loop.time() - heard:.1f} s"
                break
        for each in self._channels.pop(link, []):
            each.abort(reason)


def gone(peer: str, reason: str) -> PeerGone:
    """The error for a peer that was not reached or did not stay."""
    return PeerGone(f"{peer} is gone: {reason}")
