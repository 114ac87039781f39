"""Batches made ahead of their request, in an order that does not depend on threads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from distqat.data.reading_errors import batch_of, read_from, restore
from distqat.data.rows import account_of
from distqat.data.serving.daemon_threads import DaemonThreads
from distqat.data.serving.sample_ledger import SampleLedger
from distqat.data.source import Item, Source
from distqat.errors import ConfigError, DataError
from distqat.tasks.base import Batch, Task


@dataclass(frozen=True)
class BatchDraft:
    """Samples that are out, and the batch that is being made of them."""

    items: Sequence[Item]
    batch: Future[Batch]


class Prefetch:
    """Draws samples in one thread, collates in `workers` (0: in the same), keeps `depth` batches ahead.

    All methods run on one event loop, which never waits for the source. A draw is never cancelled
    half-way, so no sample is lost when a trainer goes away in the middle of it.
    """

    def __init__(self, source: Source, task: Task, *, workers: int = 0, depth: int = 2) -> None:
        self._source = source
        self._task = task
        self._depth = max(depth, workers)
        self._ledger = SampleLedger()
        self._reader = DaemonThreads(1, name="distqat-read")
        self._pool = DaemonThreads(workers, name="distqat-collate") if workers else self._reader
        self._ready: deque[BatchDraft] = deque()
        self._drawing = asyncio.Lock()
        self._ahead: asyncio.Task[None] | None = None
        self._source_state = source.state()

    async def next(self, count: int) -> tuple[list[Item], Batch]:
        """The next `count` samples and their batch; what came back goes first.

        Call it in a task that is not cancelled while the server lives: its samples are out.

        Raises:
            DataError: the samples cannot be read or collated; they count as not given out.
            MissingExtra: a package that decoding needs is not installed.
        """
        async with self._drawing:
            draft = self._pop(count) or await self._draft(count)
        self._fill(count)
        try:
            return list(draft.items), await asyncio.wrap_future(draft.batch)
        except BaseException:
            self.give_back(draft.items)
            raise

    def give_back(self, items: Sequence[Item]) -> None:
        """Not consumed: these go out next, before batches made ahead of later samples."""
        self._ledger.give_back(items)

    def consume(self, items: Sequence[Item]) -> None:
        """Used by a trainer."""
        self._ledger.consume(items)

    def state(self) -> dict[str, Any]:
        """A position from which every sample that is not consumed comes again, once."""
        return {"order": self._source.order, **self._ledger.state(self._source_state)}

    def account(self) -> dict[str, Any]:
        """What the source left out so far (`rows.account_of`)."""
        return account_of(self._source)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position, before the first batch is asked for.

        Raises:
            DataError: the position was taken from another data set, split, seed or buffer.
        """
        if state.get("order") != self._source.order:
            raise DataError(
                f"the saved data position belongs to {state.get('order')!r}, this run reads "
                f"{self._source.order!r}: restore the data section and the seed, or start a new run"
            )
        restore(self._source, state)
        self._ledger.restore(state)
        self._source_state = self._source.state()

    def close(self) -> None:
        """Stop drawing; waits for neither the source nor a collation that is under way."""
        if self._ahead is not None:
            self._ahead.cancel()
        for threads in (self._reader, self._pool):
            threads.shutdown(wait=False, cancel_futures=True)

    def _pop(self, count: int) -> BatchDraft | None:
        self._keep_order()
        if self._ready and len(self._ready[0].items) != count:
            self._take_apart()  # trainers with other batch sizes
        return self._ready.popleft() if self._ready else None

    def _keep_order(self) -> None:
        """Where a sample came back that belongs before a batch made ahead, make those batches anew."""
        lowest = self._ledger.lowest_returned
        if self._ready and lowest is not None and lowest < self._ready[-1].items[-1].place:
            self._take_apart()

    def _take_apart(self) -> None:
        while self._ready:
            draft = self._ready.pop()
            draft.batch.cancel()
            self._ledger.give_back(draft.items)

    async def _draft(self, count: int) -> BatchDraft:
        items = self._ledger.take_returned(count)
        try:
            while len(items) < count:
                fresh = await self._read(count - len(items))
                items += self._ledger.admit(fresh)
        except BaseException:
            self._ledger.give_back(items)
            raise
        return BatchDraft(items, self._pool.submit(_collate, self._task, items))

    async def _read(self, count: int) -> list[Item]:
        loop = asyncio.get_running_loop()
        items = await loop.run_in_executor(self._reader, read_from, self._source, count)
        self._source_state = {"epoch": items[-1].epoch, "index": items[-1].index + 1}
        return items

    def _fill(self, count: int) -> None:
        if self._ahead is None or self._ahead.done():
            self._ahead = asyncio.get_running_loop().create_task(self._work_ahead(count))

    async def _work_ahead(self, count: int) -> None:
        try:
            while len(self._ready) < self._depth:
                async with self._drawing:
                    if self._ready and len(self._ready[0].items) != count:
                        return
                    self._ready.append(await self._draft(count))
                    self._keep_order()
        except (DataError, ConfigError):
            return  # whoever asks next meets it again and is told


def _collate(task: Task, items: Sequence[Item]) -> Batch:
    return batch_of(task, [item.sample for item in items], [item.place for item in items])
