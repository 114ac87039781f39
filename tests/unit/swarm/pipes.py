"""Two ends of a byte stream in one event loop, for the tests of this package: chunked, with backpressure."""

from __future__ import annotations

import asyncio
from typing import Any

from distqat.swarm.call_channel import Answer, ByteCount, CallChannel


class End(asyncio.Transport):
    """One end. Bytes arrive at `other` a `chunk` per turn of the loop."""

    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.other: End
        self.protocol: Any = None
        self.reading = False
        self._chunk = chunk
        self._outgoing = bytearray()
        self._high = 64 * 1024
        self._full = self._closing = self._lost = self._scheduled = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or 0

    def get_write_buffer_size(self) -> int:
        return len(self._outgoing)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        self.other._schedule()

    def write(self, data: Any) -> None:
        if self._closing:
            return
        self._outgoing += data
        if len(self._outgoing) > self._high and not self._full:
            self._full = True
            self.protocol.pause_writing()
        self._schedule()

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def close(self) -> None:
        self._closing = True
        self._schedule()

    def abort(self) -> None:
        self._closing = True
        self._outgoing.clear()
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self._lost:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._move)

    def _move(self) -> None:
        self._scheduled = False
        if self._outgoing and self.other.reading and not self.other._lost:
            room = self.other.protocol.get_buffer(-1)
            count = min(len(room), self._chunk, len(self._outgoing))
            assert count > 0, "a protocol must always have room"
            room[:count] = self._outgoing[:count]
            del self._outgoing[:count]
            self.other.protocol.buffer_updated(count)
            if self._full and not self._outgoing:
                self._full = False
                self.protocol.resume_writing()
            self._schedule()
        elif self._closing and not self._lost and not self._outgoing:
            self._lost = True
            self.protocol.connection_lost(None)
            if not self.other._lost:
                self.other._outgoing.clear()
                self.other.close()


def ends(chunk: int = 1 << 20) -> tuple[End, End]:
    """Two ends of one stream."""
    left, right = End(chunk), End(chunk)
    left.other, right.other = right, left
    return left, right


def channels(
    answer: Answer, *, chunk: int = 1 << 20, max_payload: int = 1 << 24
) -> tuple[CallChannel, CallChannel]:
    """The dialling and the answering channel of one stream."""
    left, right = ends(chunk)
    caller = CallChannel(left, "server", answer=None, traffic=ByteCount(), max_payload=max_payload)
    server = CallChannel(right, "caller", answer=answer, traffic=ByteCount(), max_payload=max_payload)
    return caller, server
