"""How a run goes, on the terminal of the launcher that started its client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from distqat.errors import DistqatError
from distqat.launch.display import Display
from distqat.launch.launcher_roles import READY_S
from distqat.launch.progress_text import ClientStatus, ProgressFrame, RunGoal, TimeLeft
from distqat.launch.progress_text import replicas as told
from distqat.launch.status_poller import StatusPoller
from distqat.process import RoleProcess

if TYPE_CHECKING:
    from distqat.config import Config

T = TypeVar("T")
LOOK_EVERY_S = 0.25  # how often the display moves; the client is asked as often


@dataclass
class RunWatch:
    """Asks the client of a run how it goes and shows that.

    `expected`: servers that this launcher starts itself; None: others do.
    """

    config: Config
    title: str
    goal: RunGoal
    display: Display
    say: Callable[[str], None]
    expected: int | None = None
    began: float = field(default_factory=time.monotonic)
    phase: str = "starting the monitor"
    over: str = ""  # what is still to be done once the client has ended
    _following: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._status = StatusPoller(self.config.experiment_prefix)
        self._stages = [] if self.goal.outer_steps is None else self.config.stages  # a baseline has none

    async def show(self) -> None:
        """Show how it goes; never returns."""
        reading, pace = ClientStatus(), TimeLeft(self.goal)
        while True:
            status = await self._status.ask()
            elapsed = time.monotonic() - self.began
            if status is not None:
                before, reading = reading, ClientStatus.of(status, self._stages, time.time())
                if before.step == 0 and reading.step > 0:
                    self.say(f"first step after {elapsed:.1f} s")
            left = pace.update(reading, elapsed)
            waits = self._waiting_for(status, reading)
            self.display.show(ProgressFrame(self.title, waits, elapsed, reading, self.goal, pace.share, left))
            await asyncio.sleep(LOOK_EVERY_S)

    async def during(self, work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
        """Show how the run goes until `work` is done; what it returns. None: stopped before, and told so."""
        working, showing = asyncio.ensure_future(work), asyncio.ensure_future(self.show())
        asked = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({working, showing, asked}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if showing.done():  # it never returns: only an error ends it
                showing.result()
            self.display.clear()
            self.say(f"stopped before the run was finished; logs in {self.config.log_dir}/")
            return None
        finally:
            for task in (working, showing, asked):
                task.cancel()
            self.display.clear()
            await asyncio.gather(working, showing, return_exceptions=True)
            await self.close()

    def follow(self, client: RoleProcess) -> None:
        """Ask this client from when it serves on; one that was started again is another peer."""
        self._following.append(asyncio.create_task(self._follow(client)))

    async def close(self) -> None:
        """Ends the asking and takes the display away."""
        for task in self._following:
            task.cancel()
        await self._status.close()

    async def _follow(self, client: RoleProcess) -> None:
        try:
            self._status.follow(await client.ready(READY_S))
        except DistqatError as error:
            if client.returncode is None:  # its end is told by whoever keeps it running
                self.say(str(error))
            return
        self.phase = "waiting for the first step"

    def _waiting_for(self, status: dict[str, Any] | None, reading: ClientStatus) -> str:
        """What the display says instead of, or beside, the figures."""
        if self.over:
            return self.over
        if self.goal.outer_steps is not None and (reading.round or 0) >= self.goal.outer_steps:
            return "assembling and judging the model"
        if status is None:
            return "the client does not answer" if reading.step else self.phase
        if reading.wait:
            return reading.wait
        if reading.step:
            return f"nobody serves {', '.join(reading.missing)}" if reading.missing else reading.unsaved
        return f"{self.phase}: {self._servers(reading)}" if self._stages else self.phase

    def _servers(self, reading: ClientStatus) -> str:
        if self.expected is None:
            return f"servers {told(reading)}"
        return f"{sum(reading.replicas.values())} of {self.expected} servers"
