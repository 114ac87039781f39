"""Bytes of a stream become frames: prefix, header and payload go each into memory of its own size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distqat.errors import BadFrame
from distqat.swarm import tensor_frame
from distqat.swarm.tensor_frame import Message

SLACK_S = 30.0
SLOWEST_BYTES_PER_S = 4096.0


@dataclass(frozen=True)
class ReceivedFrame:
    """One whole frame; `nbytes` is the memory that it takes."""

    kind: int
    request: int
    method: str
    message: Message
    nbytes: int


class FrameReader:
    """One frame after the other. Never asks for more bytes than the part that it is in still lacks."""

    def __init__(self, max_payload: int, now: float) -> None:
        self._max_payload = max_payload
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._prefix: tensor_frame.FramePrefix | None = None
        self._header: memoryview | None = None
        self._payload: np.ndarray[Any, np.dtype[np.uint8]] | None = None
        self._target = memoryview(bytearray(tensor_frame.PREFIX.size))
        self._filled = self._total = 0
        self._began = now

    def buffer(self) -> memoryview:
        """Where the next bytes belong."""
        return self._target[self._filled :]

    def received(self, nbytes: int, now: float) -> ReceivedFrame | None:
        """`nbytes` were written to `buffer()`: the frame that they complete, if any. Raises BadFrame."""
        if self._total == 0:
            self._began = now
        self._filled += nbytes
        self._total += nbytes
        while self._filled == len(self._target):
            whole = self._part_complete(now)
            if whole is not None:
                return whole
        return None

    def overdue(self, now: float) -> bool:
        """Whether a frame has begun and comes slower than any network that can train."""
        return self._total > 0 and now - self._began > SLACK_S + self._total / SLOWEST_BYTES_PER_S

    def resumed(self, now: float) -> None:
        """This side had stopped reading: the time since does not count against the sender."""
        self._began = now

    def _part_complete(self, now: float) -> ReceivedFrame | None:
        if self._prefix is None:
            self._prefix = tensor_frame.FramePrefix.unpack(self._target, self._max_payload)
            self._target = memoryview(bytearray(self._prefix.header_bytes))
        elif self._header is None:
            self._header = self._target
            self._payload = _allocate(self._prefix.payload_bytes)
            self._target = self._payload.data
        else:
            prefix, header, payload = self._prefix, self._header, self._payload
            assert payload is not None
            self._begin(now)
            method, message = tensor_frame.decode(header, payload, self._max_payload)
            decoded = sum(tensor.nbytes for tensor in message.tensors.values())
            nbytes = prefix.header_bytes + max(prefix.payload_bytes, decoded)
            return ReceivedFrame(prefix.kind, prefix.request, method, message, nbytes)
        self._filled = 0
        return None


def _allocate(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pages are touched as bytes arrive, so an announced size alone takes no memory."""
    try:
        return np.empty(size, dtype=np.uint8)
    except MemoryError:
        raise BadFrame(f"no memory for a payload of {size} bytes") from None
