"""Named places where a test may inject a fault: `DISTQAT_FAILPOINTS=stage.commit.before_apply:kill9@3`.

The value is a comma-separated list of `name:action@hit`; the action runs at the `hit`-th passage (from 1),
with `name:action@hit+` at every passage from that one on.
`@FOLDER` instead arms nothing yet: such a list is read from the file `FOLDER/PID` once somebody puts it
there, which arms a role that runs; the file is renamed `PID.fired` when its action runs.
Actions: `kill9`, `stop` (SIGSTOP), `exit`, `error` (raises an error of ours), `raise` (raises an exception
that nobody foresaw), `full` (as a full disk), each reported on standard error before it runs, so that a fault
test can prove that its fault fired. Off by default; the environment is read once.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from distqat.errors import ConfigError, DistqatError

ENVIRONMENT_VARIABLE = "DISTQAT_FAILPOINTS"
ACTIONS = ("kill9", "stop", "exit", "error", "raise", "full")
_ITEM = re.compile(
    rf"(?P<name>[^:@\s]+):(?P<action>{'|'.join(ACTIONS)})(@(?P<hit>[1-9][0-9]{{0,8}})(?P<on>\+)?)?"
)


class FailpointError(DistqatError):
    """Raised by the action `error`."""


@dataclass
class Failpoints:
    """The armed failpoints of one process; counts passages by name."""

    armed: dict[str, tuple[str, int, bool]] = field(default_factory=dict)  # action, hit, and every later one
    hits: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Failpoints:
        """`name:action@hit,...` or `name:action@hit+`; raises ConfigError for anything else."""
        armed = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            match = _ITEM.fullmatch(item)
            if match is None:
                raise ConfigError(
                    f"{ENVIRONMENT_VARIABLE}: {item!r} is not name:action@hit with an action of {ACTIONS}"
                )
            armed[match["name"]] = match["action"], int(match["hit"] or "1"), match["on"] is not None
        return cls(armed)

    def passage(self, name: str) -> str | None:
        """Count one passage of `name`; the action that is due, if any."""
        if name not in self.armed:
            return None
        self.hits[name] = self.hits.get(name, 0) + 1
        action, hit, on = self.armed[name]
        return action if self.hits[name] == hit or (on and self.hits[name] > hit) else None


@dataclass
class Orders:
    """Failpoints of a process that runs already, from the file with its PID in `folder`."""

    folder: Path
    _text: str = ""
    _points: Failpoints = field(default_factory=Failpoints)

    def passage(self, name: str) -> str | None:
        """As `Failpoints.passage`; passages are counted from when the file appears, or changes."""
        path = self.folder / str(os.getpid())
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        if text != self._text:
            self._text, self._points = text, Failpoints.parse(text)
        action = self._points.passage(name)
        if action is not None:
            path.replace(path.with_name(f"{path.name}.fired"))
            self._text = ""
        return action


@lru_cache(maxsize=1)
def _armed() -> Failpoints | Orders:
    text = os.environ.get(ENVIRONMENT_VARIABLE, "")
    return Orders(Path(text[1:])) if text.startswith("@") else Failpoints.parse(text)


def failpoint(name: str) -> None:
    """Mark a place; does nothing unless a test armed it."""
    action = _armed().passage(name)
    if action is None:
        return
    sys.stderr.write(f"failpoint {name}: {action}\n")
    sys.stderr.flush()
    if action == "kill9":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "exit":
        os._exit(1)
    elif action == "raise":
        raise ZeroDivisionError(f"failpoint {name} raised as asked by {ENVIRONMENT_VARIABLE}")
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        raise FailpointError(f"failpoint {name} raised as asked by {ENVIRONMENT_VARIABLE}")
