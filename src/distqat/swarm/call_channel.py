"""Calls over one byte stream: many at a time, answers in any order, received in place.

The dialling side calls, the accepting side answers; neither sends a frame that the other did not ask for, so
the switch from hello to frames leaves no byte behind. An end of stream without BYE is a death.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any, cast

from distqat.errors import BadFrame, Busy, CallTimeout, PeerGone, SwarmError
from distqat.swarm import tensor_frame
from distqat.swarm.frame_reader import FrameReader, ReceivedFrame
from distqat.swarm.incoming_call import Answer, ByteCount, IncomingCall, error_frame, error_of
from distqat.swarm.tensor_frame import Message

logger = logging.getLogger(__name__)

MAX_PAYLOAD_BYTES = 2 * 1024**3
MAX_CALLS_IN_FLIGHT = 256
WRITE_BUFFER_BYTES = 4 * 1024**2
LINGER_S = 5.0  # for a goodbye that the other side does not take


class CallChannel(asyncio.BufferedProtocol):
    """One stream after its hello; also the protocol that receives frames into preallocated memory."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        peer: str,
        *,
        answer: Answer | None,
        traffic: ByteCount,
        max_payload: int = MAX_PAYLOAD_BYTES,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.peer = peer
        self.last_heard = self._loop.time()
        self.closed: asyncio.Future[str] = self._loop.create_future()  # nothing is sent or answered any more
        self.lost: asyncio.Future[None] = self._loop.create_future()  # what was sent before has left
        self.traffic = ByteCount()  # of this channel alone
        self._role_traffic = traffic
        self._transport = cast(asyncio.Transport, transport)  # a socket's is both, uvloop's too
        self._answer = answer
        self._max_payload = max_payload
        self._incoming = FrameReader(max_payload, self.last_heard)
        self._requests = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._prompt: set[int] = set()  # those of the waiting that somebody else could do instead
        self._answering: set[asyncio.Task[None]] = set()
        self._held_bytes = 0  # of calls that are being answered
        self._reading = True
        self._room: asyncio.Future[None] | None = None  # while the write buffer is full: done when it drains
        self._orderly = False
        self._linger: asyncio.TimerHandle | None = None
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._transport.set_protocol(self)
        self._transport.resume_reading()

    # calling

    async def call(self, method: str, message: Message, *, timeout: float, prompt: bool = False) -> Message:
        """Send a call and wait for its answer. Its tensors must not change until then.

        `prompt` calls are given up by `doubt` as well. Raises what the peer raised (by its code), CallTimeout
        after `timeout` seconds, PeerGone when the stream ends first, BadFrame when the message cannot travel.
        """
        request = next(self._requests) % 2**32
        answer: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[request] = answer
        if prompt:
            self._prompt.add(request)
        timer = self._loop.call_later(timeout, self._give_up, answer, method, timeout)
        try:
            while self._room is not None and not answer.done():
                either: set[asyncio.Future[Any]] = {self._room, answer}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self.closed.done():
                raise PeerGone(f"{self.peer} is gone: {self.closed.result()}")
            if not answer.done():
                self._write(tensor_frame.encode(tensor_frame.CALL, request, method, message))
            return await answer
        finally:
            timer.cancel()
            self._waiting.pop(request, None)
            self._prompt.discard(request)
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # seen, also where the caller was cancelled at that moment

    def _give_up(self, answer: asyncio.Future[Message], method: str, timeout: float) -> None:
        if not answer.done():
            text = f"{self.peer} did not answer {method!r} in {timeout:.1f} s; it is slow, stopped or cut off"
            answer.set_exception(CallTimeout(text))

    def doubt(self, silence: float) -> None:
        """The peer is silent, perhaps cut off: prompt calls raise CallTimeout, the stream stays."""
        for request in self._prompt:
            answer = self._waiting[request]
            if not answer.done():
                text = f"{self.peer} gave no sign of life for {silence:.1f} s; it is stopped or cut off"
                answer.set_exception(CallTimeout(text))

    def ping(self) -> None:
        """Ask the other side for a sign of life; `last_heard` moves when it comes."""
        self._say(tensor_frame.PING, "ping")

    def overdue(self) -> bool:
        """Whether the other side has begun a frame that it does not get done."""
        return self._reading and self._incoming.overdue(self._loop.time())

    def close(self, reason: str = "closed by this side") -> None:
        """Say BYE and close; calls in flight raise PeerGone."""
        if not self.closed.done():
            self._write(tensor_frame.encode(tensor_frame.BYE, 0, "bye", Message()))
            self._end(reason)

    def abort(self, reason: str) -> None:
        """Drop the stream without a word: the peer is taken for dead."""
        self._end(reason)
        self._transport.abort()

    def _say(self, kind: int, method: str) -> None:
        """Send a frame that may be left out: a peer that does not read gets no more of them."""
        if self._room is None and not self.closed.done():
            self._write(tensor_frame.encode(kind, 0, method, Message()))

    def _write(self, buffers: list[bytes | memoryview]) -> None:
        size = sum(len(part) for part in buffers)
        self.traffic.bytes_out += size
        self._role_traffic.bytes_out += size
        self._transport.writelines(buffers)

    # receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._incoming.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self.last_heard = self._loop.time()
        self.traffic.bytes_in += nbytes
        self._role_traffic.bytes_in += nbytes
        try:
            whole = self._incoming.received(nbytes, self.last_heard)
            if whole is not None and not self.closed.done():
                self._frame_complete(whole)
        except BadFrame as error:
            logger.warning("closing the stream from %s: %s", self.peer, error)
            self.abort(f"it sent a bad frame: {error}")

    def _frame_complete(self, whole: ReceivedFrame) -> None:
        if whole.kind == tensor_frame.CALL:
            self._start_answer(whole)
        elif whole.kind in (tensor_frame.REPLY, tensor_frame.ERROR):
            waiting = self._waiting.get(whole.request)
            if waiting is None or waiting.done():
                return  # its caller gave up
            if whole.kind == tensor_frame.REPLY:
                waiting.set_result(whole.message)
            else:
                waiting.set_exception(error_of(self.peer, whole.message.fields))
        elif whole.kind == tensor_frame.PING:
            self._say(tensor_frame.PONG, "pong")
        elif whole.kind == tensor_frame.BYE:
            self._orderly = True

    # answering

    def _start_answer(self, call: ReceivedFrame) -> None:
        if self._answer is None:
            raise BadFrame(f"a call of {call.method!r} on a stream that this side dialled")
        room = len(self._answering) < MAX_CALLS_IN_FLIGHT
        task = asyncio.ensure_future(self._answer_one(call, room=room))
        self._answering.add(task)
        self._held_bytes += call.nbytes
        task.add_done_callback(lambda done: self._answered(done, call.nbytes))
        self._throttle()

    def _answered(self, task: asyncio.Task[None], nbytes: int) -> None:
        self._answering.discard(task)
        self._held_bytes -= nbytes
        self._throttle()

    def _throttle(self) -> None:
        """Do not read while the calls that are being answered are too many, or hold too much."""
        full = self._held_bytes > self._max_payload or len(self._answering) > 2 * MAX_CALLS_IN_FLIGHT
        if full != self._reading or self._transport.is_closing():
            return
        self._reading = not full
        if full:
            self._transport.pause_reading()
        else:
            self._incoming.resumed(self._loop.time())
            self._transport.resume_reading()

    async def _answer_one(self, call: ReceivedFrame, *, room: bool) -> None:
        assert self._answer is not None
        try:
            if not room:
                raise Busy(f"{MAX_CALLS_IN_FLIGHT} calls of this peer are in flight; wait for one to end")
            reply = await self._answer(IncomingCall(self.peer, call.method, call.message))
            buffers = tensor_frame.encode(tensor_frame.REPLY, call.request, call.method, reply)
        except asyncio.CancelledError:
            if not self.closed.done():  # the call was ended, not the channel: its caller need not wait
                self._write(error_frame(call, SwarmError(f"{call.method!r} was cancelled")))
            raise
        except SwarmError as error:
            buffers = error_frame(call, error)
        except Exception as error:  # the edge: the peer gets an answer, the log the traceback
            logger.exception("answering %r for %s failed", call.method, self.peer)
            buffers = error_frame(call, error)
        while self._room is not None:
            await asyncio.wait({self._room})
        if not self.closed.done():
            self._write(buffers)

    # the stream's own events

    def pause_writing(self) -> None:
        if self._room is None and not self.closed.done():
            self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.set_result(None)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._orderly:
            self._end("it closed the stream")
        else:
            self._end("the stream ended without a goodbye; the process or its network died")
        if self._linger is not None:
            self._linger.cancel()
        if not self.lost.done():
            self.lost.set_result(None)

    def _end(self, reason: str) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(PeerGone(f"{self.peer} is gone: {reason}"))
        for task in self._answering:
            task.cancel()
        self.resume_writing()
        if not self._transport.is_closing():
            self._transport.close()
            self._linger = self._loop.call_later(LINGER_S, self._transport.abort)


__all__ = ["Answer", "ByteCount", "CallChannel", "IncomingCall"]
