"""The data server: one order of samples, shared by all trainers of a client.

A Unix socket in a directory of its own (0700) carries small messages; batches lie in shared memory.

    hello {trainer, count, slots, ...} -> {slots, slot_bytes} and the memory's descriptor
    next {count}                       -> {batch_id, slot, size, tensors, epoch, spans}
    consumed {batch_id}                the samples are done in this epoch -> {state}, the position after it,
                                       and {account}, what the data set leaves out
    release {batch_id}                 they are not, and are the next to be given out, to anyone
    position                           -> {state} for a checkpoint
    ping                               what an idle trainer sends, so that a stopped one is noticed

When a connection ends, for whatever reason, what the trainer had not consumed is released.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distqat.data.reading_errors import told
from distqat.data.serving import batch_messages
from distqat.data.serving.batch_memory import SlotMemory, batch_nbytes
from distqat.data.serving.prefetch import Prefetch
from distqat.data.serving.trainer_connection import BODY_S, MAX_COUNT, TrainerLink, refusal, send_welcome
from distqat.data.source import Source
from distqat.errors import BadFrame, DataError, DistqatError, ProtocolMismatch
from distqat.tasks.base import Batch, Task

log = logging.getLogger(__name__)

MAX_SLOTS = 256
SLOT_MARGIN = 2  # batches of one count may differ in bytes; pages never written take no room
SILENCE_S = 60.0
ACCEPT_AGAIN_S = 0.5
MAX_PATH = 107  # bytes of a Unix socket's address


class DataServer:
    """Serves the samples of `source` as batches of `task` at a Unix socket."""

    def __init__(
        self,
        source: Source,
        task: Task,
        *,
        workers: int = 0,
        silence_s: float = SILENCE_S,
    ) -> None:
        """`silence_s`: a trainer that says nothing for this long is taken for dead."""
        self._prefetch = Prefetch(source, task, workers=workers)
        self._task = task
        self._silence_s = silence_s
        self._nbytes: dict[int, int] = {}
        self._batch_ids = itertools.count()
        self._listener: socket.socket | None = None
        self._path: Path | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def restore(self, position: Mapping[str, Any]) -> None:
        """Go on from a position (blocking: call it before `start`); DataError if it is of other data."""
        self._prefetch.restore(position)

    def position(self) -> dict[str, Any]:
        """Where to go on after a restart, such that every sample not consumed comes again, once."""
        return self._prefetch.state()

    async def first_batch(self, size: int) -> Batch:
        """The next batch of `size` samples, which is given out again. Raises DataError."""
        items, batch = await self._prefetch.next(size)
        self._prefetch.give_back(items)
        return batch

    async def start(self, path: Path) -> None:
        """Listen at `path`; DataError if it is in use or its directory is open to others."""
        self._listener = listen(path)
        self._path = path
        self._spawn(self._accept(self._listener))

    async def stop(self) -> None:
        """End all connections and remove the socket. Idempotent."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._prefetch.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptor is free, for instance: connections that end free some
                log.warning("A trainer cannot connect: %s", error)
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            self._spawn(self._serve(sock))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        try:
            link = await self._welcome(sock, reader, writer)
            if link is not None:
                await link.serve()
        except (BadFrame, OSError, asyncio.TimeoutError) as error:
            log.warning("A trainer's connection to the data server ended: %s", error or type(error).__name__)
        except Exception:
            log.exception("A trainer's connection to the data server ended")
        finally:
            writer.close()

    async def _welcome(
        self, sock: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> TrainerLink | None:
        hello = await batch_messages.read(reader, silence_s=BODY_S, body_s=BODY_S)
        if hello is None:
            return None
        try:
            if hello.get("op") != "hello" or hello.get("protocol") != batch_messages.PROTOCOL:
                raise ProtocolMismatch(
                    f"the data server speaks protocol {batch_messages.PROTOCOL}, "
                    f"the trainer {hello.get('protocol')!r}: start both from one installation"
                )
            trainer = batch_messages.text(hello, "trainer")
            slots = batch_messages.integer(hello, "slots", low=1, high=MAX_SLOTS)
            slot_bytes = await self._slot_bytes(batch_messages.integer(hello, "count", low=1, high=MAX_COUNT))
            memory = _memory(slots, slot_bytes)
        except DistqatError as error:
            await batch_messages.write(writer, refusal(hello.get("id"), error), timeout_s=BODY_S)
            return None
        except Exception as error:  # whatever it is, a trainer that is not answered would wait
            log.exception("A trainer cannot be served")
            sentence = f"the data server cannot serve a trainer: {told(error)}"
            await batch_messages.write(
                writer, refusal(hello.get("id"), DataError(sentence)), timeout_s=BODY_S
            )
            return None
        try:
            welcome = {
                "id": hello.get("id"),
                "ok": True,
                "slots": slots,
                "slot_bytes": memory.slot_bytes,
            }
            send_welcome(sock, welcome, memory)
        finally:
            memory.close_fd()
        log.debug("Trainer %s connected; %d slots of %d bytes", trainer, slots, slot_bytes)
        batch_ids = self._batch_ids.__next__
        return TrainerLink(self._prefetch, memory, (reader, writer), batch_ids, silence_s=self._silence_s)

    async def _slot_bytes(self, size: int) -> int:
        """Room for a batch of `size` samples, measured on the first one where the task sets no bound."""
        most = self._task.batch_bytes(size)
        if most is not None:
            return max(most, 4096)
        if size not in self._nbytes:
            self._nbytes[size] = batch_nbytes(await self.first_batch(size))
        return max(self._nbytes[size] * SLOT_MARGIN, 4096)


def _memory(slots: int, slot_bytes: int) -> SlotMemory:
    try:
        return SlotMemory.create(slots, slot_bytes)
    except OSError as error:
        raise DataError(
            f"no memory to share {slots} batches of {slot_bytes} bytes: {error.strerror}; "
            "lower diloco.batch_size_per_step or gradient_accumulation_steps"
        ) from error


def listen(path: Path) -> socket.socket:
    """A listening Unix socket at `path`, in a directory that only this user can enter.

    The directory is made if it is missing; a socket left by a killed server is replaced.

    Raises:
        DataError: the directory is open to others, the path is too long, or a server listens there.
    """
    if len(str(path).encode()) > MAX_PATH:
        raise DataError(f"the socket path {path} is longer than {MAX_PATH} bytes; choose a shorter directory")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(path.parent.stat().st_mode) & 0o077:
        raise DataError(
            f"the directory {path.parent} of the data server's socket is open to others; chmod 700 it"
        )
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            else:
                raise DataError(f"a data server already listens at {path}; stop it first")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise DataError(f"the data server cannot listen at {path}: {error}") from error
    return listener
