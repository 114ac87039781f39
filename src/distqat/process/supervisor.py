"""Keeps roles running, and ends all of them."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from functools import partial

from distqat.process.forkserver_client import ForkServerClient, RoleProcess
from distqat.process.launcher_notices import notice
from distqat.process.restart_policy import CrashHistory, GiveUp, RestartPolicy, RoleFinished, after_exit
from distqat.process.role_command import RoleCommand
from distqat.process.role_endings import GIVEN_UP, RoleEnded, ending

logger = logging.getLogger(__name__)

OnStart = Callable[[RoleProcess], None]


class Supervisor:
    """Starts roles from one fork_server, restarts those that crash, and ends all of them on `stop`."""

    def __init__(
        self,
        fork_server: ForkServerClient,
        *,
        on_start: OnStart | None = None,
        on_end: Callable[[RoleEnded], None] | None = None,
        on_notice: Callable[[RoleCommand, str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fork_server = fork_server
        self._on_start = on_start
        self._on_end = on_end or _log
        self._on_notice = on_notice or _hand_up
        self._clock = clock
        self._stopping = asyncio.Event()
        self._live: dict[int, RoleProcess] = {}
        self._kept: set[asyncio.Task[int]] = set()
        self._ends: dict[str, RoleEnded] = {}

    @property
    def live(self) -> tuple[RoleProcess, ...]:
        """The roles that run now."""
        return tuple(self._live.values())

    def end_of(self, command: RoleCommand) -> RoleEnded | None:
        """How the last run of a role ended; None: the first one has not, or was never started."""
        return self._ends.get(command.name)

    def start(
        self, command: RoleCommand, policy: RestartPolicy | None = None, on_start: OnStart | None = None
    ) -> asyncio.Task[int]:
        """`keep` as a task, which `stop` waits for."""
        task = asyncio.create_task(self.keep(command, policy, on_start))
        self._kept.add(task)
        return task

    async def keep(
        self, command: RoleCommand, policy: RestartPolicy | None = None, on_start: OnStart | None = None
    ) -> int:
        """Run a role until it finishes, is given up, or `stop` ends it; its last exit code."""
        rules, history, code = policy or RestartPolicy(), CrashHistory(), 0
        while not self._stopping.is_set():
            role = await self._spawn(command)
            if role is None:
                break
            started = self._clock()
            self._live[role.pid] = role
            role.listen(partial(self._on_notice, command))
            for tell in (self._on_start, on_start):
                if tell is not None:
                    tell(role)
            try:
                code = await role.wait()
            finally:
                self._live.pop(role.pid, None)
            if self._stopping.is_set():
                if code == -signal.SIGTERM:  # we asked before it had begun to listen: nothing was lost
                    code = 0
                self._tell(RoleEnded(command, role.pid, code, "stopped", role.last_words))
                break
            now, words = self._clock(), role.last_words
            decision, history = after_exit(
                history, rules, code=code, ran_s=now - started, now=now, words=words
            )
            if isinstance(decision, RoleFinished):
                self._tell(RoleEnded(command, role.pid, code, "finished", words))
                break
            if isinstance(decision, GiveUp):
                self._tell(RoleEnded(command, role.pid, code, f"{GIVEN_UP}: {decision.reason}", words))
                break
            again = f"starting again in {decision.delay_s:g} s"
            self._tell(RoleEnded(command, role.pid, code, again, words))
            await self._pause(decision.delay_s)
        return code

    async def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM to every role, SIGKILL to the process groups of those that are there after `grace_s`."""
        self._stopping.set()
        roles = self.live
        for role in roles:
            role.terminate()
        waits = [asyncio.create_task(role.wait()) for role in roles]
        if waits:
            await asyncio.wait(waits, timeout=grace_s)
        for role in roles:
            if role.returncode is None:
                logger.warning(
                    "%s (PID %d) did not end within %g s; killed", role.command.name, role.pid, grace_s
                )
                role.kill()
        await asyncio.gather(*waits)
        await asyncio.gather(*self._kept, return_exceptions=True)  # whoever awaits a task sees its error

    def _tell(self, ended: RoleEnded) -> None:
        self._ends[ended.command.name] = ended
        self._on_end(ended)

    async def _spawn(self, command: RoleCommand) -> RoleProcess | None:
        """None: `stop` came while it was being forked; the fork_server ends it as it closes."""
        spawning = asyncio.ensure_future(self._fork_server.spawn(command))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({spawning, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return None if self._stopping.is_set() else await spawning
        finally:
            stopping.cancel()
            spawning.cancel()

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except asyncio.TimeoutError:
            return


def _hand_up(command: RoleCommand, sentence: str) -> None:
    """To whoever started us: a client's trainers speak through it."""
    notice(f"{command.name}: {sentence}")


def _log(ended: RoleEnded) -> None:
    level = logging.INFO if ended.code == 0 or ended.consequence == "stopped" else logging.WARNING
    logger.log(
        level,
        "%s (PID %d) ended with %s: %s",
        ended.command.name,
        ended.pid,
        ending(ended.code),
        ended.consequence,
    )
