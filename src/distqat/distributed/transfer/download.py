"""The taking side of a state transfer: chunks from one donor after the other, each known by its sha256.

What was received is kept whoever it came from, so the next donor sends only what is missing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import torch
from torch import Tensor

from distqat.distributed.transfer.donor import MOMENTS, SHARED
from distqat.distributed.transfer.state_chunks import ChunkedStateDescription, Named
from distqat.errors import BadContribution, Busy, CallTimeout, StageUnavailable, SwarmError
from distqat.failpoints import failpoint
from distqat.protocol.calls.transfer_calls import DescribeState, FetchChunk, StatePart
from distqat.protocol.hop import PeerAddress
from distqat.swarm.call_messages import exchange
from distqat.swarm.transport import LinkLike, Transport

logger = logging.getLogger(__name__)

WINDOW = 3  # chunks in flight
DESCRIBE_TIMEOUT = 60.0  # a donor reads and hashes its state for that
CHUNK_TIMEOUT = 15.0
BUSY_S = 0.5  # between two questions to a donor that many fetch from
BUSY_PATIENCE_S = 60.0
LATECOMERS_S = 0.3  # for the others' descriptions, once the first is there
PROBED = 4  # donors whose speed is measured
MAX_MOMENTS = 4  # times the size of the shared part: Adam has two moments, and the weights are half of it


@dataclass(frozen=True)
class StateHolder:
    """One who may have the state; `stage` says of which, to a holder that has several."""

    name: str
    address: PeerAddress
    stage: str = ""


@dataclass(frozen=True)
class WantedState:
    """The state that is asked for, as the commit log names it."""

    round: int
    digest: str
    window: int = WINDOW


@dataclass
class _Offer:
    giver: StateHolder
    link: LinkLike
    description: ChunkedStateDescription
    step: int
    pace_s: float = 0.0  # what one chunk took


class ChunkCache:
    """Chunks by their sha256. Outlives a transfer that failed, so that the next one goes on from it."""

    def __init__(self) -> None:
        self._chunks: dict[bytes, Tensor] = {}

    def missing(self, description: ChunkedStateDescription) -> deque[int]:
        """Indices of chunks that are not here; equal ones once."""
        wanted = {h: i for i, h in reversed(list(enumerate(description.hashes))) if h not in self._chunks}
        return deque(sorted(wanted.values()))

    def keep_only(self, description: ChunkedStateDescription) -> None:
        """Forget what belongs to other states."""
        hashes = set(description.hashes)
        self._chunks = {h: chunk for h, chunk in self._chunks.items() if h in hashes}

    def add(self, description: ChunkedStateDescription, index: int, chunk: Tensor | None) -> None:
        """Raises BadContribution unless these are the bytes of that chunk."""
        size = description.size(index)
        if chunk is None or chunk.dtype != torch.uint8 or chunk.shape != (size,):
            raise BadContribution(f"chunk {index} is not {size} bytes")
        if hashlib.sha256(chunk.numpy().data).digest() != description.hashes[index]:
            raise BadContribution(f"chunk {index} has other bytes than its sha256 says")
        self._chunks[description.hashes[index]] = chunk

    def join(self, description: ChunkedStateDescription) -> Named:
        """The whole state; BadContribution if its digest is another."""
        chunks = [self._chunks[each] for each in description.hashes]
        return description.unpack(torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.uint8))


@dataclass(frozen=True)
class Downloaded:
    """A state whose digest is the one asked for, the donor's step, and who gave how many chunks."""

    tensors: Named
    step: int
    givers: dict[str, int]


class Download:
    """One state from as many donors as it takes."""

    def __init__(
        self,
        transport: Transport,
        givers: Sequence[StateHolder],
        wish: WantedState,
        pieces: ChunkCache | None = None,
    ) -> None:
        self._transport = transport
        self._givers = list(givers)
        self._wish = wish
        self._pieces = pieces or ChunkCache()
        self._sent: dict[str, int] = {}
        self._served: list[StateHolder] = []  # those that did well, the last one first
        self._last: SwarmError = StageUnavailable("there is no other replica")

    async def shared(self) -> Downloaded:
        """The part that all replicas have in common. Raises StageUnavailable when no donor gave it."""
        async with aclosing(self._offers()) as offers:
            async for offer in offers:
                try:
                    await self._drain(offer, self._pieces)
                    tensors = await asyncio.to_thread(self._pieces.join, offer.description)
                except SwarmError as error:
                    self._set_aside(offer.giver, error)
                    continue
                self._served.insert(0, offer.giver)
                return Downloaded(tensors, offer.step, dict(self._sent))
        raise StageUnavailable(f"no replica gave the state of round {self._wish.round}: {self._last}")

    async def moments(self, limit_bytes: int) -> Downloaded | None:
        """One donor's inner moments, of the one that served best if it lives; None if nobody gives any."""
        for giver in [*self._served, *(g for g in self._givers if g not in self._served)]:
            pieces = ChunkCache()  # they belong to one donor: another's do not fit
            try:
                offer = await self._describe(giver, MOMENTS)
                if offer.description.nbytes > limit_bytes:
                    raise BadContribution(f"inner moments of {offer.description.nbytes} bytes")
                await self._drain(offer, pieces)
                tensors = await asyncio.to_thread(pieces.join, offer.description)
                return Downloaded(tensors, offer.step, {giver.name: len(offer.description.hashes)})
            except SwarmError as error:
                logger.info("no inner moments from %s: %s", giver.name, error)
        return None

    # inside

    async def _offers(self) -> AsyncGenerator[_Offer, None]:
        """Those who have the state, the fastest first; one that is late is asked last."""
        asked = {asyncio.ensure_future(self._describe(g, SHARED)): g for g in self._givers}
        open_tasks = set(asked)
        try:
            while open_tasks:
                done, open_tasks = await asyncio.wait(open_tasks, return_when=asyncio.FIRST_COMPLETED)
                if open_tasks and any(task.exception() is None for task in done):
                    late, open_tasks = await asyncio.wait(open_tasks, timeout=LATECOMERS_S)
                    done |= late
                offers = []
                for task in done:
                    error = task.exception()
                    if isinstance(error, SwarmError):
                        self._set_aside(asked[task], error)
                    else:
                        offers.append(task.result())
                for offer in await self._fastest_first(offers):
                    yield offer
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _describe(self, giver: StateHolder, part: StatePart) -> _Offer:
        link, wish = await self._transport.link(giver.address), self._wish
        request = DescribeState(wish.round, wish.digest, part, giver.stage)
        offer, reply = await exchange(link, request, timeout=DESCRIBE_TIMEOUT)
        description = await asyncio.to_thread(ChunkedStateDescription.parse, offer, reply)
        if part == SHARED and (offer.round, offer.digest) != (wish.round, wish.digest):
            raise BadContribution(
                f"it describes round {offer.round}, {offer.digest[:12]}; asked for was "
                f"{wish.round}, {wish.digest[:12]}"
            )
        return _Offer(giver, link, description, offer.step)

    async def _fastest_first(self, offers: list[_Offer]) -> list[_Offer]:
        """Measured by one chunk of each, which is not wasted: each sends another one."""
        probed, rest = offers[:PROBED], offers[PROBED:]
        if len(probed) < 2:
            return offers
        taken: set[bytes] = set()
        probes: dict[asyncio.Future[bool], _Offer] = {}
        for offer in probed:
            missing = (i for i in self._pieces.missing(offer.description) if _hash(offer, i) not in taken)
            index = next(missing, None)
            if index is None:
                rest.append(offer)  # so little is left that its speed does not matter
                continue
            taken.add(_hash(offer, index))
            probes[asyncio.ensure_future(self._timed(offer, index))] = offer
        slow = await self._until_one_is_back(set(probes))
        good = [offer for probe, offer in probes.items() if probe not in slow and probe.result()]
        good.sort(key=lambda offer: offer.pace_s)
        return [*good, *(probes[probe] for probe in slow), *rest]

    async def _until_one_is_back(self, probes: set[asyncio.Future[bool]]) -> set[asyncio.Future[bool]]:
        """Wait for the first chunk, and a moment for the others; the probes that were not back by then."""
        waiting = set(probes)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if any(probe.result() for probe in done):
                    if waiting:
                        _, waiting = await asyncio.wait(waiting, timeout=LATECOMERS_S)
                    break
            return waiting
        finally:
            for probe in probes:
                probe.cancel()
            await asyncio.gather(*probes, return_exceptions=True)

    async def _timed(self, offer: _Offer, index: int) -> bool:
        """Whether the chunk came."""
        began = time.monotonic()
        try:
            await self._chunk(offer, index, self._pieces)
        except SwarmError as error:
            self._set_aside(offer.giver, error)
            return False
        offer.pace_s = time.monotonic() - began
        return True

    async def _drain(self, offer: _Offer, pieces: ChunkCache) -> None:
        """Fetch what is missing, some chunks in flight at a time."""
        pieces.keep_only(offer.description)
        missing = pieces.missing(offer.description)

        async def worker() -> None:
            while missing:
                await self._chunk(offer, missing.popleft(), pieces)

        workers = [asyncio.ensure_future(worker()) for _ in range(min(self._wish.window, len(missing)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for each in workers:
                each.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _chunk(self, offer: _Offer, index: int, pieces: ChunkCache) -> None:
        failpoint("join.chunk")
        request = FetchChunk(offer.description.digest, index, offer.giver.stage)
        give_up = time.monotonic() + BUSY_PATIENCE_S
        others = len(self._givers) > 1  # then one that has become silent is not waited for
        while True:
            try:
                _, reply = await exchange(offer.link, request, timeout=CHUNK_TIMEOUT, prompt=others)
                break
            except Busy as error:
                if time.monotonic() > give_up:
                    raise CallTimeout(f"{offer.giver.name} was busy for {BUSY_PATIENCE_S:.0f} s") from error
                await asyncio.sleep(BUSY_S)
        await asyncio.to_thread(pieces.add, offer.description, index, reply.tensors.get("bytes"))
        self._sent[offer.giver.name] = self._sent.get(offer.giver.name, 0) + 1

    def _set_aside(self, giver: StateHolder, error: SwarmError) -> None:
        logger.info("no snapshot of round %d from %s: %s", self._wish.round, giver.name, error)
        self._last = error
        if giver in self._givers:
            self._givers.remove(giver)


def _hash(offer: _Offer, index: int) -> bytes:
    return offer.description.hashes[index]
