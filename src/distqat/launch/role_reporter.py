"""What a launcher tells the person at its terminal about its roles, and writes into its log."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from distqat.errors import DistqatError
from distqat.launch.display import Display
from distqat.process import RoleCommand, RoleEnded, RoleProcess
from distqat.process.role_endings import ending
from distqat.terminal import complain

SETTLE_S = 3.0  # from the end of a role to when it is clear that the launcher goes on without it


class RoleReporter:
    """Standard output gets what goes on; standard error gets what ended something.

    A launcher ends with the sentence of the role that it cannot do without, so what a role that was given up
    said is held back until it is clear that the launcher goes on: nothing is told twice.
    """

    def __init__(self, display: Display, log: Path) -> None:
        self._display = display
        self._log = log
        self._given_up: list[RoleEnded] = []
        self._said: set[tuple[str, str]] = set()
        self._running: set[str] = set()

    def say(self, line: str) -> None:
        """One line on standard output and in the log."""
        self._display.say(line)
        self._write(line)

    def noticed(self, command: RoleCommand, sentence: str) -> None:
        """A role has something to say to the person at the terminal."""
        self.say(f"{command.name}: {sentence}")

    def started(self, role: RoleProcess) -> None:
        """A role runs; the first time is nothing to speak of."""
        if role.command.name in self._running:
            self.say(f"{role.command.name} started again: PID {role.pid}")
        self._running.add(role.command.name)

    def ended(self, ended: RoleEnded) -> None:
        """A role ended: how, and what follows."""
        if ended.given_up:
            self._write(self.told(ended))
            self._given_up.append(ended)
            asyncio.get_running_loop().call_later(SETTLE_S, self.goes_on)
        elif ended.code != 0 and ended.consequence != "stopped":
            said = (ended.command.name, ended.words.sentence if ended.words else "")
            self.say(self.told(ended, again=ended.words is not None and said in self._said))
            self._said.add(said)

    def goes_on(self) -> None:
        """The launcher lives on without the roles that were given up: say now what they ended with."""
        for ended in self._given_up:
            complain(self.told(ended))
        self._given_up.clear()

    def failure(self, cause: RoleEnded) -> DistqatError:
        """The error to end with, that of `cause`; what others ended with, if something else, is said now."""
        for ended in self._given_up:
            if ended is not cause and ended.failure().args != cause.failure().args:
                complain(self.told(ended))
        self._given_up.clear()
        return cause.failure()

    @property
    def given_up(self) -> RoleEnded | None:
        """The role that was given up last, if nothing was said of it yet."""
        return self._given_up[-1] if self._given_up else None

    def told(self, ended: RoleEnded, *, again: bool = False) -> str:
        """`server 0 (PID 7) ended with code 1: no such key; starting again in 0.2 s; see LOG`."""
        parts = [ended.consequence]
        if ended.words is not None:
            parts.insert(0, "the same error again" if again else ended.words.sentence)
        if ended.log is not None:
            parts.append(f"see {ended.log}")
        name = f"{ended.command.name} (PID {ended.pid})"
        return f"{name} ended with {ending(ended.code)}: {'; '.join(parts)}"

    def _write(self, line: str) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
