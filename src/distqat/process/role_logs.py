"""Where a role's log lines go and what they look like."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqat.environment import SPELL
from distqat.errors import ConfigError
from distqat.terminal import complain, keeps_clean

VERBOSITY = "HIVEMIND_VERBOSITY"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass
class LogClaim:
    """A log file that no other launcher on this host writes, until `release` or the end of the process."""

    path: Path
    number: int
    _lock: int

    def release(self) -> None:
        """Lets others take the name of the log."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


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


def level_of(level: str | None) -> int:
    """The level given, else that of HIVEMIND_VERBOSITY, else INFO. ConfigError: no such level."""
    name = (level or os.environ.get(VERBOSITY) or "INFO").upper()
    name = {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(name, name)
    if name not in _LEVELS:
        raise ConfigError(f"unknown log level {name!r}; known: {', '.join(_LEVELS)}")
    return int(getattr(logging, name))


def set_up_logging(role: str, level: str | None = None, file: Path | None = None) -> None:
    """Log to standard error (for a started role that is its log file), and to `file` if given.

    The engine's loggers follow: their records come through ours, in our format. Where the terminal is kept
    clean it gets our own records beside the log.
    """
    number = level_of(level)
    logging.addLevelName(logging.WARNING, "WARNING")  # hivemind renames it as it is imported
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if keeps_clean():
        handlers.append(TerminalHandler())
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, encoding="utf-8", errors=SPELL))
    layout = logging.Formatter(f"%(asctime)s %(levelname)-7s [{role}] %(message)s")
    for handler in handlers:
        handler.setFormatter(layout)
    _replace_handlers(handlers)
    root = logging.getLogger()
    root.setLevel(max(number, logging.INFO))  # other libraries' debug lines help nobody
    logging.getLogger("distqat").setLevel(number)
    _adopt_engine_logs(number)


def warn_at_terminal() -> None:
    """Of a command that has no log: our warnings as they are to the terminal, all else where it is kept."""
    if keeps_clean():
        terminal = TerminalHandler(logging.WARNING)
        terminal.setFormatter(logging.Formatter("%(message)s"))
        _replace_handlers([logging.StreamHandler(sys.stderr), terminal])


class TerminalHandler(logging.Handler):
    """Our own records for the person at the terminal; tracebacks are for the log."""

    def filter(self, record: logging.LogRecord) -> Any:
        """Lines of ours, without tracebacks."""
        ours = record.name.partition(".")[0] == "distqat" and not record.exc_info
        return super().filter(record) if ours else False

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the line to the person's terminal."""
        complain(self.format(record))


def _replace_handlers(handlers: Sequence[logging.Handler]) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        root.addHandler(handler)


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
