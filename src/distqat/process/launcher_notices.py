"""What a role tells whoever started it, beside its log: lines of JSON over a pipe.

    ready   once, when it serves
    notice  a sentence for the person at the terminal
    wait    what it waits for and since when (Unix time); an empty text: for nothing any more
    ended   the sentence with which it ends, and what kind of end that is

A role that nobody started over a fork server has no such pipe and tells its log alone.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distqat.process.role_command import READY_FD

logger = logging.getLogger(__name__)

End = Literal["final", "fault", "circumstance"]
"""final: a new start cannot help. fault: it may, but not if it ends likewise again. circumstance: it waits
for something outside, such as a peer or a port."""

MAX_TEXT = 2000  # a message of this size is written whole or not at all, whoever else writes


@dataclass(frozen=True)
class LastWords:
    """The sentence with which a role ended; `log`: of another role, whose end was the cause of this one."""

    sentence: str
    kind: End
    log: Path | None = None


class _Pipe:
    """The writing end that this process was given; a process forked from it has its own, or none."""

    def __init__(self) -> None:
        self._owner = 0
        self._number = -1
        self._ready_told = False
        self._lock = threading.Lock()

    def write(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._adopt()
            if self._owner == os.getpid():
                if message["event"] == "ready":
                    if self._ready_told:
                        return
                    self._ready_told = True
                with suppress(BlockingIOError, BrokenPipeError):  # a launcher that died, or does not read
                    os.write(self._number, json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def adopt(self) -> None:
        with self._lock:
            self._adopt()

    def _adopt(self) -> None:
        text = os.environ.pop(READY_FD, "")
        if text.isdigit():
            self._owner, self._number, self._ready_told = os.getpid(), int(text), False
            os.set_blocking(self._number, False)


_pipe = _Pipe()


def adopt_pipe() -> None:
    """Take the pipe out of the environment, before anything is started that would inherit its number."""
    _pipe.adopt()


def announce_ready(body: Mapping[str, Any]) -> None:
    """Tell whoever started this role that it serves; once, and nothing if nobody asked."""
    _pipe.write({"event": "ready", "body": dict(body)})


def notice(sentence: str) -> None:
    """Tell the log, and the person at the terminal of whoever started this role."""
    logger.warning("%s", sentence)
    _pipe.write({"event": "notice", "text": sentence[:MAX_TEXT]})


def tell_wait(what: str, since: float) -> None:
    """Tell what this role waits for since `since` (Unix time); "" when it waits no more."""
    _pipe.write({"event": "wait", "text": what[:MAX_TEXT], "since": since})


def tell_end(words: LastWords) -> None:
    """Tell with which sentence this role ends."""
    log = None if words.log is None else str(words.log)
    _pipe.write({"event": "ended", "text": words.sentence[:MAX_TEXT], "kind": words.kind, "log": log})
