"""One trainer's connection to the data server: its slots, its leases, its requests."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distqat.data.reading_errors import told
from distqat.data.serving import batch_messages
from distqat.data.serving.batch_memory import SlotMemory
from distqat.data.serving.batch_messages import Message
from distqat.data.serving.prefetch import Prefetch
from distqat.data.source import Item
from distqat.errors import BadFrame, Busy, DataError, DistqatError
from distqat.failpoints import failpoint

logger = logging.getLogger(__name__)

BODY_S = 10.0  # for the rest of a message, and for a peer to take ours
MAX_COUNT = 1 << 20


@dataclass
class BatchLease:
    """A batch in a trainer's hands."""

    slot: int
    items: Sequence[Item]
    consumed: bool = False


class TrainerLink:
    """Answers one trainer until it goes away; then its leases go back."""

    def __init__(
        self,
        prefetch: Prefetch,
        memory: SlotMemory,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        batch_ids: Callable[[], int],
        *,
        silence_s: float,
    ) -> None:
        self._prefetch = prefetch
        self._memory = memory
        self._reader, self._writer = streams
        self._batch_id = batch_ids
        self._silence_s = silence_s
        self._leases: dict[int, BatchLease] = {}
        self._free = list(range(memory.slots))
        self._answers: set[asyncio.Task[None]] = set()
        self._writing = asyncio.Lock()
        self._gone = False

    async def serve(self) -> None:
        """Returns when the trainer has closed, died, fallen silent or sent nonsense."""
        try:
            while (request := await self._read()) is not None:
                if len(self._answers) > 2 * self._memory.slots:
                    raise BadFrame("more requests than slots are waiting for their answer")
                self._start(request)
        except (BadFrame, asyncio.TimeoutError, ConnectionError):
            pass  # whatever ended it, the leases go back and the trainer sees its socket closed
        except asyncio.CancelledError:  # the server ends; until then a draw is never cancelled half-way
            for answer in self._answers:
                answer.cancel()
            raise
        finally:
            self.close()

    def close(self) -> None:
        """End the connection and give back what is not consumed. Idempotent."""
        self._gone = True
        self._writer.close()
        leases, self._leases = self._leases, {}
        for lease in leases.values():
            if not lease.consumed:
                self._prefetch.give_back(lease.items)

    async def _read(self) -> Message | None:
        return await batch_messages.read(self._reader, silence_s=self._silence_s, body_s=BODY_S)

    def _start(self, request: Message) -> None:
        answer = asyncio.get_running_loop().create_task(self._answer(request))
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)

    async def _answer(self, request: Message) -> None:
        reply = await answer_of(request, self._perform)
        if self._gone:
            return
        try:
            async with self._writing:
                await batch_messages.write(self._writer, reply, timeout_s=BODY_S)
        except (ConnectionError, asyncio.TimeoutError):
            self.close()

    async def _perform(self, request: Message) -> dict[str, Any]:
        kind = request.get("op")
        if kind == "next":
            return await self._next(batch_messages.integer(request, "count", low=1, high=MAX_COUNT))
        if kind == "ping":
            return {}
        if kind == "position":
            return {"state": self._prefetch.state()}
        if kind not in ("consumed", "release"):
            raise BadFrame(f"unknown request {kind!r}"[:100])
        batch_id = batch_messages.integer(request, "batch_id", low=0, high=1 << 62)
        lease = self._leases.get(batch_id)
        if lease is None:
            raise DataError(f"batch {batch_id} is not leased to this trainer")
        reply = self._consumed(lease) if kind == "consumed" else {}
        del self._leases[batch_id]  # not before there is an answer: one that failed may be asked for again
        self._free.append(lease.slot)
        if not lease.consumed:
            self._prefetch.give_back(lease.items)
        return reply

    def _consumed(self, lease: BatchLease) -> dict[str, Any]:
        if not lease.consumed:
            self._prefetch.consume(lease.items)
            lease.consumed = True
        position = self._prefetch.state()  # now: it tells of these samples, and of no later ones
        failpoint("data.consumed.before_reply")
        return {"state": position, "account": self._prefetch.account()}

    async def _next(self, count: int) -> dict[str, Any]:
        if not self._free:
            raise Busy(f"all {self._memory.slots} batches are leased; report one as consumed or release it")
        slot = self._free.pop()
        items: Sequence[Item] = ()
        try:
            items, batch = await self._prefetch.next(count)
            if self._gone:
                raise DataError("the trainer is gone")
            tensors = self._memory.write(slot, batch)
            failpoint("data.next.before_reply")
        except BaseException:
            self._free.append(slot)
            if items:
                self._prefetch.give_back(items)
            raise
        batch_id = self._batch_id()
        self._leases[batch_id] = BatchLease(slot, items)
        reply = {"batch_id": batch_id, "slot": slot, "size": batch.size, "tensors": tensors}
        return {**reply, "epoch": items[0].epoch, "spans": spans(items)}


def spans(items: Sequence[Item]) -> list[list[int]]:
    """`[epoch, start, stop]` of each run of consecutive items."""
    runs: list[list[int]] = []
    for item in items:
        if runs and runs[-1][0] == item.epoch and runs[-1][2] == item.index:
            runs[-1][2] += 1
        else:
            runs.append([item.epoch, item.index, item.index + 1])
    return runs


async def answer_of(request: Message, perform: Callable[[Message], Awaitable[dict[str, Any]]]) -> Message:
    """The reply to a request, whatever `perform` raises: a trainer that is not answered would wait."""
    number, kind = request.get("id"), str(request.get("op"))[:50]
    try:
        reply = {"id": number, "ok": True, **await perform(request)}
        batch_messages.encode(reply)  # one that cannot be sent is a failure too
        return reply
    except DistqatError as error:
        return refusal(number, error)
    except Exception as error:
        logger.exception("The request %r failed", kind)
        return refusal(number, DataError(f"the data server cannot answer {kind!r}: {told(error)}"))


def refusal(number: object, error: DistqatError) -> Message:
    """The reply to a request that failed; the class travels by its name."""
    text = str(error)[:2000].encode("utf-8", "backslashreplace").decode()  # names of files may be any bytes
    return {"id": number, "ok": False, "error": type(error).__name__, "text": text}


def send_welcome(sock: socket.socket, reply: Message, memory: SlotMemory) -> None:
    """The answer to a hello, with the memory's descriptor; the socket is fresh, so it is taken whole."""
    frame = batch_messages.encode(reply)
    if socket.send_fds(sock, [frame], [memory.fd]) != len(frame):
        raise BadFrame("the trainer's socket did not take the welcome")
