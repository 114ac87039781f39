"""How the run of a role ended, and what its supervisor's own program ends with when that was the last one."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from distqat.errors import ConfigError, DistqatError, RoleError, RunFailed
from distqat.process.launcher_notices import LastWords
from distqat.process.restart_policy import USAGE
from distqat.process.role_command import RoleCommand

GIVEN_UP = "given up"


@dataclass(frozen=True)
class RoleEnded:
    """How a role's run ended: its code, and what follows from it in one sentence."""

    command: RoleCommand
    pid: int
    code: int
    consequence: str
    words: LastWords | None = None  # with which it ended, if it said any

    @property
    def given_up(self) -> bool:
        """Whether it will not be started again."""
        return self.consequence.startswith(GIVEN_UP)

    @property
    def log(self) -> Path | None:
        """Where more of it stands: the log of the role that met the cause, else its own."""
        return (self.words.log if self.words else None) or self.command.log_path

    def failure(self) -> DistqatError:
        """The error of whoever cannot do without the role: the sentence that it ended with, and its log."""
        words = self.words
        text = f"{self.command.name} ended with {ending(self.code)}: {self.consequence}"
        if words is not None:
            text = words.sentence
        hopeless = words is not None and words.kind != "circumstance"
        error = ConfigError(text) if self.code == USAGE else RunFailed(text) if hopeless else RoleError(text)
        error.log = self.log
        return error


def ending(code: int) -> str:
    """An exit code in words: "code 1", "SIGKILL"."""
    if code >= 0:
        return f"code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
