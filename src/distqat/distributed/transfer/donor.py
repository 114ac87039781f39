"""The giving side of a state transfer: freezes a state and hands it out in chunks, at a bounded rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distqat.diloco.tensor_digest import state_digest
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.transfer.state_chunks import CHUNK_BYTES, ChunkedState
from distqat.distributed.transfer.token_bucket import TokenBucket
from distqat.errors import BadFrame, Busy, StageUnavailable
from distqat.failpoints import failpoint
from distqat.protocol.call_schema import Call
from distqat.protocol.calls.transfer_calls import DescribeState, FetchChunk, StatePart
from distqat.swarm.call_messages import Handler
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.tensor_frame import Message

Named = dict[str, Tensor]
SHARED: StatePart = "shared"
MOMENTS: StatePart = "moments"

KEPT = 2  # frozen states of each part
SILENCE_S = 30.0  # a frozen state that nobody has asked for this long is let go
BURST_S = 1.0  # the rate is that of a second
PATIENCE_S = 5.0  # a chunk that would wait longer for its turn is refused as busy


def upload_bucket(megabytes_per_s: float | None) -> TokenBucket:
    """The limit that one server or client shares among all who fetch from it."""
    rate = None if megabytes_per_s is None else megabytes_per_s * 1e6
    return TokenBucket(rate, BURST_S * (rate or 0.0), time.monotonic)


@dataclass(frozen=True)
class DonatedState:
    """A committed state, and the number of inner steps of who holds it."""

    shared: CommittedState
    step: int


@dataclass(frozen=True)
class DonatedMoments:
    """What is the donor's own: moments of the inner optimizer at `step`; a copy."""

    tensors: Named
    step: int


@dataclass
class _Frozen:
    chunked: ChunkedState
    round: int
    step: int
    used: float


class Donor:
    """Answers DescribeState and FetchChunk.

    `held` gives the committed state of a round or of a later one; `moments` a copy of the inner moments,
    where there are any to give. Hashing runs beside the event loop; who waits for a turn takes no memory.
    """

    def __init__(
        self,
        held: Callable[[int], Awaitable[DonatedState]],
        moments: Callable[[], Awaitable[DonatedMoments]] | None,
        bucket: TokenBucket,
        *,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._held = held
        self._moments = moments
        self._bucket = bucket
        self._chunk_bytes = chunk_bytes
        self._frozen: dict[str, list[_Frozen]] = {SHARED: [], MOMENTS: []}  # last used last
        self._freezing = asyncio.Lock()
        self.handlers: dict[type[Call[Any]], Handler] = {
            DescribeState: self.describe,
            FetchChunk: self.chunk,
        }
        self._sweeper: asyncio.TimerHandle | None = None

    async def describe(self, request: DescribeState, call: IncomingCall) -> Message:
        """Describe "shared" of `round`, which has `digest` everywhere, or this donor's own "moments" of now.

        Raises StageUnavailable when this donor is further already, or has no such part.
        """
        round, digest, part = request.round, request.digest, request.part
        if part == MOMENTS and self._moments is None:
            raise StageUnavailable("no inner moments are to be had here")
        frozen = self._find(part, round, digest)
        if frozen is None:
            held = await self._held(round)
            if part == SHARED and (held.shared.round != round or held.shared.digest != digest):
                raise StageUnavailable(f"round {held.shared.round} stands here, asked for was {round}")
            async with self._freezing:  # who comes meanwhile gets the same one
                frozen = self._find(part, round, digest) or await self._freeze(part, held)
        return frozen.chunked.description.message(frozen.round, frozen.step)

    async def chunk(self, request: FetchChunk, call: IncomingCall) -> Message:
        """The bytes of one chunk. Busy when too many wait already; StageUnavailable when it was let go."""
        digest, index = request.digest, request.index
        frozen = next((f for fs in self._frozen.values() for f in fs if _digest(f) == digest), None)
        if frozen is None:
            raise StageUnavailable(f"the snapshot {digest[:12]} is not held here any more; ask for it again")
        frozen.used = time.monotonic()
        if index >= len(frozen.chunked.description.hashes):
            raise BadFrame(f"snapshot {digest[:12]} has no chunk {index}")
        wait = self._bucket.take(frozen.chunked.description.size(index), PATIENCE_S)
        if wait is None:
            raise Busy("too many fetch from here at the moment; ask again")
        if wait > 0:
            await asyncio.sleep(wait)
        failpoint("donor.chunk")
        return Message({}, {"bytes": frozen.chunked.chunk(index)})

    def close(self) -> None:
        """Let everything go."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._frozen = {SHARED: [], MOMENTS: []}

    def sweep(self) -> None:
        """Let go what nobody has asked for in a while."""
        oldest = time.monotonic() - SILENCE_S
        for part, frozen in self._frozen.items():
            self._frozen[part] = [each for each in frozen if each.used > oldest]
        self._sweeper = None
        if any(self._frozen.values()):
            self._arm()

    # inside

    def _find(self, part: str, round: int, digest: str) -> _Frozen | None:
        for each in self._frozen[part]:
            if each.round == round and (part == MOMENTS or _digest(each) == digest):
                each.used = time.monotonic()
                return each
        return None

    async def _freeze(self, part: str, held: DonatedState) -> _Frozen:
        tensors, step = held.shared.tensors(), held.step
        digest: str | None = held.shared.digest
        if part == MOMENTS:
            assert self._moments is not None
            own = await self._moments()
            tensors, step, digest = own.tensors, own.step, None

        def hashed() -> ChunkedState:
            chunked = ChunkedState(tensors, digest or state_digest(tensors), self._chunk_bytes)
            _ = chunked.description
            return chunked

        frozen = _Frozen(await asyncio.to_thread(hashed), held.shared.round, step, time.monotonic())
        kept = sorted(self._frozen[part], key=lambda each: each.used)[-(KEPT - 1) :]
        self._frozen[part] = [*kept, frozen]
        if self._sweeper is None:
            self._arm()
        return frozen

    def _arm(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(SILENCE_S, self.sweep)


def _digest(frozen: _Frozen) -> str:
    return frozen.chunked.description.digest
