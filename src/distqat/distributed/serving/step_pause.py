"""Inner steps stand still while a round needs it: asked for and let go as often as it likes, never twice."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from typing_extensions import Self


class Pausable(Protocol):
    """What can be paused: `pause` returns between two inner steps, `resume` without a pause is an error."""

    async def pause(self) -> None: ...
    def resume(self) -> None: ...


class StepPause:
    """A block that begins with inner steps paused and leaves them going; within it they may be let go.

    However the block ends, by a return, an error or its cancellation, steps go on after it.
    """

    def __init__(self, steps: Pausable) -> None:
        self._steps = steps
        self._held = False

    async def __aenter__(self) -> Self:
        try:
            await self.take()
        except BaseException:
            self.let_go()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.let_go()

    async def take(self) -> None:
        """Returns between two inner steps; no other begins until `let_go`."""
        if not self._held:
            self._held = True  # before it stands still: who is cancelled while it waits must let go as well
            await self._steps.pause()

    def let_go(self) -> None:
        """Inner steps go on."""
        if self._held:
            self._held = False
            self._steps.resume()
