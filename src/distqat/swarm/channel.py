"""Calls over one byte stream: many at a time, answers in any order, received in place.

The dialling side calls, the accepting side answers; neither sends a frame that the other did not ask for, so
the switch from hello to frames leaves no byte behind. An end of stream without BYE is a death.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distqat import errors
from distqat.errors import BadFrame, Busy, CallTimeout, PeerGone, SwarmError
from distqat.swarm import frame
from distqat.swarm.frame import Message

logger = logging.getLogger(__name__)

MAX_PAYLOAD_BYTES = 2 * 1024**3
MAX_CALLS_IN_FLIGHT = 256
WRITE_BUFFER_BYTES = 4 * 1024**2

ERRORS_BY_CODE: dict[str, type[SwarmError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SwarmError)
}


@dataclass(frozen=True)
class Call:
    """One request as the answering side sees it. `peer` is authenticated by libp2p, claimed on a Unix socket."""

    peer: str
    method: str
    message: Message


Answer = Callable[[Call], Awaitable[Message]]


@dataclass
class Traffic:
    """Bytes of frames in and out, shared by the channels of one role."""

    bytes_in: int = 0
    bytes_out: int = 0


class Channel(asyncio.BufferedProtocol):
    """One stream after its hello; also the protocol that receives frames into preallocated memory."""

    def __init__(
        self,
        transport: asyncio.Transport,
        peer: str,
        *,
        answer: Answer | None,
        traffic: Traffic,
        max_payload: int = MAX_PAYLOAD_BYTES,
    ) -> None:
        self.peer = peer
        self.last_heard = asyncio.get_running_loop().time()
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.traffic = Traffic()  # of this channel alone
        self._role_traffic = traffic
        self._transport = transport
        self._answer = answer
        self._max_payload = max_payload
        self._requests = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._held_bytes = 0  # payloads of calls that are being answered
        self._writable = asyncio.Event()
        self._writable.set()
        self._orderly = False
        self._expect_prefix()
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        transport.set_protocol(self)
        transport.resume_reading()

    # calling

    async def call(self, method: str, message: Message, *, timeout: float) -> Message:
        """Send a call and wait for its answer.

        Raises what the peer raised (by its code), CallTimeout after `timeout` seconds, PeerGone when the
        stream ends first.
        """
        request = next(self._requests)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[request] = answer
        try:
            return await asyncio.wait_for(self._send_and_wait(request, method, message, answer), timeout)
        except asyncio.TimeoutError:
            raise CallTimeout(
                f"{self.peer} did not answer {method!r} in {timeout:.1f} s; it is slow, stopped or cut off"
            ) from None
        finally:
            self._waiting.pop(request, None)

    async def _send_and_wait(
        self, request: int, method: str, message: Message, answer: asyncio.Future[Message]
    ) -> Message:
        await self._send(frame.CALL, request, method, message)
        return await answer

    def ping(self) -> None:
        """Ask the other side for a sign of life; `last_heard` moves when it comes."""
        self._write(frame.encode(frame.PING, 0, "ping", Message()))

    def close(self, reason: str = "closed by this side") -> None:
        """Say BYE and close; calls in flight raise PeerGone."""
        if not self.closed.done():
            with contextlib.suppress(OSError):
                self._write(frame.encode(frame.BYE, 0, "bye", Message()))
            self._end(reason)

    def abort(self, reason: str) -> None:
        """Drop the stream without a word: the peer is taken for dead."""
        self._end(reason)
        self._transport.abort()

    async def _send(self, kind: int, request: int, method: str, message: Message) -> None:
        await self._writable.wait()
        if self.closed.done():
            raise PeerGone(f"{self.peer} is gone: {self.closed.result()}")
        self._write(frame.encode(kind, request, method, message))

    def _write(self, buffers: list[bytes | memoryview]) -> None:
        size = sum(len(part) for part in buffers)
        self.traffic.bytes_out += size
        self._role_traffic.bytes_out += size
        self._transport.writelines(buffers)

    # receiving: prefix, header, payload, each into its own memory

    def _expect_prefix(self) -> None:
        self._prefix: frame.Prefix | None = None
        self._header: memoryview | None = None
        self._payload: np.ndarray[Any, np.dtype[np.uint8]] | None = None
        self._target = memoryview(bytearray(frame.PREFIX.size))
        self._filled = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._target[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.last_heard = asyncio.get_running_loop().time()
        self.traffic.bytes_in += nbytes
        self._role_traffic.bytes_in += nbytes
        self._filled += nbytes
        try:
            while self._filled == len(self._target):
                self._part_complete()
        except BadFrame as error:
            logger.warning("closing the stream from %s: %s", self.peer, error)
            self.abort(f"it sent a bad frame: {error}")

    def _part_complete(self) -> None:
        if self._prefix is None:
            self._prefix = frame.Prefix.unpack(self._target, self._max_payload)
            self._target = memoryview(bytearray(self._prefix.header_bytes))
        elif self._header is None:
            self._header = self._target
            self._payload = np.empty(self._prefix.payload_bytes, dtype=np.uint8)
            self._target = memoryview(self._payload)
        else:
            prefix, header, payload = self._prefix, self._header, self._payload
            assert payload is not None
            self._expect_prefix()
            self._frame_complete(prefix, *frame.decode(header, payload))
            return
        self._filled = 0

    def _frame_complete(self, prefix: frame.Prefix, method: str, message: Message) -> None:
        if prefix.kind == frame.CALL:
            self._start_answer(prefix.request, method, message)
        elif prefix.kind in (frame.REPLY, frame.ERROR):
            waiting = self._waiting.get(prefix.request)
            if waiting is None or waiting.done():
                return  # its caller gave up
            if prefix.kind == frame.REPLY:
                waiting.set_result(message)
            else:
                waiting.set_exception(_error_of(self.peer, message))
        elif prefix.kind == frame.PING:
            self._write(frame.encode(frame.PONG, 0, "pong", Message()))
        elif prefix.kind == frame.BYE:
            self._orderly = True

    # answering

    def _start_answer(self, request: int, method: str, message: Message) -> None:
        if self._answer is None:
            raise BadFrame(f"a call of {method!r} on a stream that this side dialled")
        size = sum(tensor.nbytes for tensor in message.tensors.values())
        task = asyncio.ensure_future(self._answer_one(request, method, message))
        self._answering.add(task)
        self._hold(size)
        task.add_done_callback(lambda done: (self._answering.discard(done), self._hold(-size)))

    def _hold(self, size: int) -> None:
        """Stop reading while calls that are being answered hold more than one largest payload."""
        before, self._held_bytes = self._held_bytes, self._held_bytes + size
        if self._transport.is_closing():
            return
        if before <= self._max_payload < self._held_bytes:
            self._transport.pause_reading()
        elif self._held_bytes <= self._max_payload < before:
            self._transport.resume_reading()

    async def _answer_one(self, request: int, method: str, message: Message) -> None:
        assert self._answer is not None
        try:
            if len(self._answering) > MAX_CALLS_IN_FLIGHT:
                raise Busy(f"{MAX_CALLS_IN_FLIGHT} calls of this peer are in flight; wait for one to end")
            reply = await self._answer(Call(self.peer, method, message))
            kind = frame.REPLY
        except SwarmError as error:
            kind, reply = frame.ERROR, Message({"code": error.code, "text": str(error)})
        except Exception as error:  # noqa: BLE001 - the edge: the peer gets an answer, the log the traceback
            logger.exception("answering %r for %s failed", method, self.peer)
            kind, reply = frame.ERROR, Message({"code": "error", "text": f"{type(error).__name__}: {error}"})
        with contextlib.suppress(PeerGone):
            await self._send(kind, request, method, reply)

    # the stream's own events

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._orderly:
            self._end("it closed the stream")
        else:
            self._end("the stream ended without a goodbye; the process or its network died")

    def _end(self, reason: str) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(PeerGone(f"{self.peer} is gone: {reason}"))
        for task in self._answering:
            task.cancel()
        self._writable.set()
        if not self._transport.is_closing():
            self._transport.close()


def _error_of(peer: str, message: Message) -> SwarmError:
    code, text = message.fields.get("code"), message.fields.get("text")
    return ERRORS_BY_CODE.get(str(code), SwarmError)(f"{peer}: {text}")
