"""A trainer's side of the data server."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from distqat.data.serving import batch_messages
from distqat.data.serving.batch_memory import SlotMemory
from distqat.data.serving.batch_messages import Message
from distqat.errors import (
    BadFrame,
    Busy,
    DataError,
    DataServerGone,
    DistqatError,
    HubUnavailable,
    ProtocolMismatch,
    TaskError,
)
from distqat.tasks.base import Batch

SLOTS = 4
CONNECT_S = 120.0  # the first batch may have to come from the hub
NEXT_S = 120.0
ANSWER_S = 30.0
PING_S = 10.0
ERRORS: dict[str, type[DistqatError]] = {
    error.__name__: error
    for error in (BadFrame, Busy, DataError, HubUnavailable, ProtocolMismatch, TaskError)
}


@dataclass(frozen=True)
class LeasedBatch:
    """A batch as views on shared memory: valid until it is reported as consumed or released."""

    batch_id: int
    batch: Batch
    epoch: int
    spans: tuple[tuple[int, int, int], ...]
    """`(epoch, start, stop)` of the samples."""


class DataClient:
    """Requests may overlap. After DataServerGone connect anew: what was leased went back."""

    def __init__(self, sock: socket.socket, memory: SlotMemory) -> None:
        """Use `connect`."""
        self._sock = sock
        self._memory = memory
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._gone: str | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._last_position: Message | None = None
        self._account: Message = {}

    @classmethod
    async def connect(
        cls,
        path: Path,
        *,
        trainer: str,
        count: int,
        slots: int = SLOTS,
        timeout_s: float = CONNECT_S,
        ping_s: float = PING_S,
    ) -> Self:
        """Connect as `trainer`, who will lease at most `slots` batches of at most `count` samples at a time.

        Raises:
            DataServerGone: nobody answers at `path`.
            DataError, HubUnavailable, TaskError, ProtocolMismatch: the server's own words.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            hello = {
                "op": "hello",
                "id": 0,
                "protocol": batch_messages.PROTOCOL,
                "trainer": trainer,
                "count": count,
                "slots": slots,
            }
            memory = await asyncio.wait_for(_handshake(sock, path, hello), timeout_s)
            client = cls(sock, memory)
            await client._run(ping_s)
        except (OSError, asyncio.TimeoutError) as error:
            sock.close()
            why = "no answer in time" if isinstance(error, asyncio.TimeoutError) else error
            raise DataServerGone(f"no data server answers at {path}: {why}") from error
        except BaseException:
            sock.close()
            raise
        return client

    async def next(self, count: int, *, timeout_s: float = NEXT_S) -> LeasedBatch:
        """Lease the next `count` samples.

        Raises:
            DataServerGone: the server died or does not answer.
            Busy: all slots are leased.
            DataError, HubUnavailable, TaskError: the samples cannot be had, and why.
        """
        reply = await self._call({"op": "next", "count": count}, timeout_s)
        slot = batch_messages.integer(reply, "slot", low=0, high=self._memory.slots - 1)
        size = batch_messages.integer(reply, "size", low=1, high=1 << 20)
        tensors, spans = reply.get("tensors"), reply.get("spans")
        if not isinstance(tensors, list) or not isinstance(spans, list):
            raise BadFrame("the data server's reply describes no tensors")
        return LeasedBatch(
            batch_id=batch_messages.integer(reply, "batch_id", low=0, high=1 << 62),
            batch=self._memory.read(slot, tensors, size),
            epoch=batch_messages.integer(reply, "epoch", low=0, high=1 << 62),
            spans=tuple((int(e), int(a), int(b)) for e, a, b in spans),
        )

    async def consumed(self, batch_id: int) -> None:
        """The samples are done. Returns when the server has noted it: only then may a step be committed."""
        reply = await self._call({"op": "consumed", "batch_id": batch_id}, ANSWER_S)
        self._last_position = batch_messages.mapping(reply, "state")
        self._account = batch_messages.mapping(reply, "account")

    @property
    def account(self) -> Message:
        """What the data set leaves out (`rows.account_of`), as of the last batch that was consumed."""
        return self._account

    @property
    def last_position(self) -> Message | None:
        """The position just after the last batch that this client reported as consumed."""
        return self._last_position

    async def release(self, batch_id: int) -> None:
        """The samples were not used; they are the next to be given out."""
        await self._call({"op": "release", "batch_id": batch_id}, ANSWER_S)

    async def position(self) -> Message:
        """What `DataServer.restore` takes; belongs into a checkpoint."""
        return batch_messages.mapping(await self._call({"op": "position"}, ANSWER_S), "state")

    async def close(self) -> None:
        """Give everything back. Views on batches stay readable. Idempotent."""
        self._fail("this client is closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, ping_s: float) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._sock)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._receive(reader)), loop.create_task(self._ping(ping_s))]

    async def _call(self, request: Message, timeout_s: float) -> Message:
        if self._gone is not None or self._writer is None:
            raise DataServerGone(f"the data server is gone: {self._gone}")
        number = next(self._numbers)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._writer.write(batch_messages.encode({**request, "id": number}))
            reply = await asyncio.wait_for(future, timeout_s)
        except asyncio.TimeoutError:
            self._fail(f"no answer to {request['op']!r} in {timeout_s:.0f} s")
            raise DataServerGone(f"the data server is gone: {self._gone}") from None
        finally:
            self._waiting.pop(number, None)
        if reply.get("ok") is not True:
            raise ERRORS.get(str(reply.get("error")), DataError)(str(reply.get("text")))
        return reply

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        try:
            while (reply := await batch_messages.read(reader, silence_s=None, body_s=ANSWER_S)) is not None:
                future = self._waiting.get(batch_messages.integer(reply, "id", low=0, high=1 << 62))
                if future is not None and not future.done():
                    future.set_result(reply)
                elif "batch_id" in reply:  # for a caller who has gone away meanwhile
                    self._abandon(batch_messages.integer(reply, "batch_id", low=0, high=1 << 62))
            self._fail("it closed the connection")
        except (BadFrame, ConnectionError, asyncio.TimeoutError) as error:
            self._fail(str(error) or type(error).__name__)

    def _abandon(self, batch_id: int) -> None:
        if self._writer is not None:
            number = next(self._numbers)
            self._writer.write(batch_messages.encode({"op": "release", "batch_id": batch_id, "id": number}))

    async def _ping(self, every_s: float) -> None:
        try:
            while True:
                await asyncio.sleep(every_s)
                await self._call({"op": "ping"}, ANSWER_S)
        except DataServerGone:
            return

    def _fail(self, why: str) -> None:
        if self._gone is None:
            self._gone = why
        if self._writer is not None:
            self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(DataServerGone(f"the data server is gone: {self._gone}"))


async def _handshake(sock: socket.socket, path: Path, hello: Message) -> SlotMemory:
    """Say hello; the welcome brings the descriptor of the memory."""
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, str(path))
    await loop.sock_sendall(sock, batch_messages.encode(hello))
    data, fds = b"", list[int]()
    try:
        while len(data) < 4 or len(data) < 4 + batch_messages.decode_length(data[:4]):
            await _readable(sock)
            part, received, _, _ = socket.recv_fds(sock, 1 << 16, 1, socket.MSG_CMSG_CLOEXEC)
            fds += received
            if not part:
                raise ConnectionResetError("it closed the connection")
            data += part
        welcome = batch_messages.decode(data[4:])
        if welcome.get("ok") is not True:
            raise ERRORS.get(str(welcome.get("error")), DataError)(str(welcome.get("text")))
        slots = batch_messages.integer(welcome, "slots", low=1, high=1 << 16)
        slot_bytes = batch_messages.integer(welcome, "slot_bytes", low=1, high=1 << 46)
        if len(fds) != 1:
            raise BadFrame("the data server handed over no shared memory")
        memory = SlotMemory(fds[0], slots, slot_bytes)
        memory.close_fd()
        fds = []
        return memory
    finally:
        for fd in fds:
            os.close(fd)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock.fileno(), wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())
