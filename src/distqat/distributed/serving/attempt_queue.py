"""Attempts at the steps of one replica: one holds the step lock and works, others wait for it.

`StepLock` decides; here its decisions are carried out: callers wait, a timer watches the holder's silence,
and the work of an attempt that loses the lock is undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from distqat.distributed.serving.attempt_state import OpenAttempt
from distqat.errors import StaleAttempt, SwarmError
from distqat.protocol.step_attempts import StepId
from distqat.protocol.step_lock import (
    Action,
    LockExpired,
    LockGrant,
    LockQuiet,
    LockRefused,
    ResolvePrepared,
    StepLock,
)


class AttemptQueue:
    """All methods run on the event loop."""

    def __init__(
        self,
        lock: StepLock,
        uid: str,
        undo: Callable[[], asyncio.Future[None]],
        resolve: Callable[[OpenAttempt], object],
    ) -> None:
        """`undo` queues the undoing of the current work; `resolve` asks the route of a prepared attempt."""
        self.current: OpenAttempt | None = None
        """The work of the lock's holder, from its beginning to its end."""
        self._lock = lock
        self._uid = uid
        self._undo_work = undo
        self._resolve = resolve
        self._granted: dict[StepId, asyncio.Future[None]] = {}
        self._quiet = asyncio.Event()
        self._free = asyncio.Event()  # set while no attempt is at work
        self._free.set()
        self._timer: asyncio.TimerHandle | None = None

    def work_of(self, id: StepId) -> OpenAttempt:
        """The work of `id`. Raises StaleAttempt unless it holds the lock."""
        if self.current is None or self._lock.holder != id:
            raise StaleAttempt(f"{id} does not hold the lock of {self._uid}")
        return self.current

    async def enter(self, attempt: OpenAttempt) -> None:
        """Returns once `attempt` holds the lock. Raises StaleAttempt when it never will; Busy."""
        id = attempt.id
        granted = self._granted.setdefault(id, asyncio.get_running_loop().create_future())
        try:
            self._act(self._lock.request(id, time.monotonic()))
            await granted
        finally:
            self._granted.pop(id, None)
        if self._lock.holder != id:
            raise StaleAttempt(f"{id} lost the lock of {self._uid} before it could begin")
        self.current, attempt.began = attempt, time.monotonic()
        self._free.clear()

    def committed(self, id: StepId) -> None:
        """The commit of `id` is applied: the next attempt may begin."""
        self._leave()
        self._act(self._lock.commit(id, time.monotonic()))

    async def drop(self, id: StepId) -> None:
        """End `id` without effect, whether it holds the lock or not. StaleAttempt when it is committed."""
        actions = self._lock.abort(id, time.monotonic())
        undone = self._undo(id)
        self._act(actions)
        if undone is not None:
            await undone

    def gone(self, trainer: str, silent: bool = False) -> None:
        """A trainer's link is lost; it makes no difference here how."""
        self._act(self._lock.gone(trainer, time.monotonic()))

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """A block that begins between two inner steps. However it ends, steps go on after it."""
        try:
            await self.pause()
            yield
        finally:
            self.resume()

    async def pause(self) -> None:
        """Let the running step end, grant no other; returns between two inner steps. May be repeated."""
        if not self._lock.paused:
            self._quiet.clear()
            self._act(self._lock.pause(time.monotonic()))
        await self._quiet.wait()

    def resume(self) -> None:
        """Grant steps again after `pause`. May be repeated."""
        if self._lock.paused:
            self._act(self._lock.resume(time.monotonic()))

    def refuse_waiting(self, error: SwarmError) -> None:
        """Nobody gets the lock soon: those who wait for it may go elsewhere."""
        for id in self._lock.waiting:
            self._settle(id, error)
            self._act(self._lock.abort(id, time.monotonic()))

    async def idle(self) -> None:
        """Return between two attempts."""
        await self._free.wait()

    def close(self) -> None:
        """Watch the holder no longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _undo(self, id: StepId) -> asyncio.Future[None] | None:
        """Undo the work of an attempt that has lost the lock.

        The lock may pass on at once: jobs keep their order, so this is done before the next attempt begins.
        """
        if self.current is None or self.current.id != id:
            return None
        self.current.cancel()
        self._leave()
        return self._undo_work()

    def _leave(self) -> None:
        self.current = None
        self._free.set()

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, LockQuiet):
                self._quiet.set()
            elif isinstance(action, LockGrant):
                self._settle(action.id, None)
            elif isinstance(action, LockRefused):
                self._settle(action.id, StaleAttempt(f"{action.id} at {self._uid}: {action.reason}"))
            elif isinstance(action, LockExpired):
                self._undo(action.id)
            elif isinstance(action, ResolvePrepared) and self.current is not None:
                self._resolve(self.current)
        self._set_timer()

    def _settle(self, id: StepId, error: SwarmError | None) -> None:
        granted = self._granted.get(id)
        if granted is None or granted.done():
            return
        if error is None:
            granted.set_result(None)
        else:
            granted.set_exception(error)

    def _set_timer(self) -> None:
        """Look at the lock again when its holder will have been silent for too long."""
        if self._timer is not None:
            self._timer.cancel()
        deadline, loop = self._lock.next_deadline, asyncio.get_running_loop()
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        self._timer = None if wait is None else loop.call_later(wait, self._tick)

    def _tick(self) -> None:
        self._act(self._lock.tick(time.monotonic()))
