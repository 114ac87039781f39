"""Who holds the committed state of a stage, and who is to bring it back from disk once nobody does."""

from __future__ import annotations

import asyncio
import contextlib
import time

from distqat.protocol.hop import Hop

LOST_S = 8.0  # how long those who held a stage have to come back, before it is restored from disk
DEAD_S = 1.5  # the same, where the last of them left or ended its streams: a dead process does not come back


class StageHolders:
    """The servers that hold one stage, by UID.

    The restorer of a stage is the server that was asked to bring it back; until it has, or is gone, nobody
    else is asked.
    """

    def __init__(self) -> None:
        self.began = False
        """Whether the stage has a round 0; without one there is nothing to bring back."""
        self.hops: dict[str, Hop] = {}
        self.generation: int | None = None
        """Of the start of the client that appointed the restorer; None: the first who asks is chosen."""
        self._restorer: str | None = None
        self._lost_at = time.monotonic()  # since when nobody holds its state
        self._patience_s = LOST_S  # after a start of the client they may well be there
        self._changed = asyncio.Event()

    def add(self, hop: Hop) -> None:
        """A server holds the newest committed state."""
        self.hops[hop.uid] = hop
        self._tell()

    def left(self, uid: str, *, for_good: bool) -> None:
        """A server is gone; `for_good`: it left or died, and was not just silent."""
        was_last = list(self.hops) == [uid]
        self.hops.pop(uid, None)
        if self._restorer == uid:
            self._restorer = None
        if was_last:
            self._lost_at = time.monotonic()
            self._patience_s = DEAD_S if for_good else LOST_S
        self._tell()

    def appoint(self, uid: str, generation: int) -> None:
        """`uid` is to bring the stage back, in a generation that begins for all stages together."""
        self._restorer, self.generation = uid, generation
        self._tell()

    def appointed(self, uid: str) -> bool:
        """Whether `uid` is to bring the stage back and has not yet."""
        return self.generation is not None and self._restorer == uid

    def may_restore(self, uid: str) -> bool:
        """Whether the stage is lost, and nobody else is to bring it back."""
        return not self.hops and self._restorer in (None, uid)

    def restored(self) -> None:
        """The restorer has brought it back."""
        self._restorer = self.generation = None
        self._tell()

    async def held(self) -> None:
        """Return when somebody holds the stage."""
        while not self.hops:
            await self._changed.wait()

    async def wait_for_donor(self, uid: str) -> bool:
        """Wait until somebody holds the stage: True.

        False asks `uid` to bring it back from disk: all who held it are gone, and did not come back in time.
        """
        while not self.hops:
            left_s: float | None = None
            if self.appointed(uid):
                return False
            if (self.began or self.generation is not None) and self._restorer in (None, uid):
                left_s = self._lost_at + self._patience_s - time.monotonic()
                if left_s <= 0:
                    self._restorer = uid
                    return False
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)
        return True

    def begin(self) -> None:
        """The stage has a committed round; who published it says next that it holds it."""
        self.began, self._lost_at = True, time.monotonic()
        self._tell()

    def _tell(self) -> None:
        """Wake who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()
