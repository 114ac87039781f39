"""Where a role's log lines go and what they look like."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from distqat.environment import SPELL
from distqat.errors import ConfigError

VERBOSITY = "HIVEMIND_VERBOSITY"
_TAIL = 20_000  # characters of a log in which its last sentence is looked for
_COMPLAINT = re.compile(r"distqat [a-z-]+: ")  # how the frame of a role reports an error that it ends with
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass
class LogClaim:
    """A log file that no other launcher on this host writes, until `release` or the end of the process."""

    path: Path
    number: int
    _lock: int

    def release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


LOG_NAME = "DISTQAT_LOG_NAME"  # which log file a launcher gave to a role, without its ending


def claim_log(folder: Path, stem: str, number: int | None = None) -> LogClaim:
    """Claim `{stem}.log` or `{stem}_{number}.log`; what a live process holds moves on to the next number."""
    folder.mkdir(parents=True, exist_ok=True)
    current = number
    while True:
        path = folder / (f"{stem}.log" if current is None else f"{stem}_{current}.log")
        lock = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            current = 1 if current is None else current + 1
            continue
        return LogClaim(path, 0 if current is None else current, lock)


def complaint(log: Path) -> str | None:
    """The sentence with which the role of this log last ended, if it ended with one."""
    lines = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:].splitlines()
    return next((line for line in reversed(lines) if _COMPLAINT.match(line)), None)


def level_of(level: str | None) -> int:
    """The level given, else that of HIVEMIND_VERBOSITY, else INFO. ConfigError: no such level."""
    name = (level or os.environ.get(VERBOSITY) or "INFO").upper()
    name = {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(name, name)
    if name not in _LEVELS:
        raise ConfigError(f"unknown log level {name!r}; known: {', '.join(_LEVELS)}")
    return int(getattr(logging, name))


def set_up_logging(role: str, level: str | None = None, file: Path | None = None) -> None:
    """Log to standard error (for a started role that is its log file), and to `file` if given.

    The engine's loggers follow: their records come through ours, in our format.
    """
    number = level_of(level)
    logging.addLevelName(logging.WARNING, "WARNING")  # hivemind renames it as it is imported
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, encoding="utf-8", errors=SPELL))
    layout = logging.Formatter(f"%(asctime)s %(levelname)-7s [{role}] %(message)s")
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        handler.setFormatter(layout)
        root.addHandler(handler)
    root.setLevel(max(number, logging.INFO))  # other libraries' debug lines help nobody
    logging.getLogger("distqat").setLevel(number)
    _adopt_engine_logs(number)


def _adopt_engine_logs(number: int) -> None:
    """Hivemind puts a handler of its own on its logger as it is imported; take that off again."""
    name = logging.getLevelName(number)
    if VERBOSITY in os.environ:
        name = logging.getLevelName(level_of(None))
    os.environ["HIVEMIND_LOGLEVEL"] = str(name)  # for an import that comes later, and the daemon's log
    engine = logging.getLogger("hivemind")
    for handler in list(engine.handlers):
        engine.removeHandler(handler)
    engine.propagate = True
    engine.setLevel(str(name))
