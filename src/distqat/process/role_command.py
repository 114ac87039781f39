"""What a role is started with, and the lines of JSON between an owner and its fork server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distqat.errors import RoleError

READY_FD = (
    "DISTQAT_READY_FD"  # where a role writes lines of JSON to who started it; set by the forked process
)
_LINE_LIMIT = 1 << 20


@dataclass(frozen=True)
class RoleCommand:
    """A role to start.

    name: the title without `distqat`, e.g. "server 0". entry: "package.module:function", called with argv.
    log_path: standard output and error go there (None: where the owner's go). env: None takes a name out.
    threads: CPU threads of torch (None: as the environment says).
    """

    name: str
    entry: str
    argv: tuple[str, ...] = ()
    log_path: Path | None = None
    env: Mapping[str, str | None] = field(default_factory=dict)
    threads: int | None = None

    def to_message(self) -> dict[str, Any]:
        """As the fields of a message to the fork server."""
        log = None if self.log_path is None else str(self.log_path.absolute())
        return {**vars(self), "env": dict(self.env), "log_path": log}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> RoleCommand:
        """The inverse of `to_message`."""
        log = message["log_path"]
        path = None if log is None else Path(log)
        return cls(**{**message, "argv": tuple(message["argv"]), "log_path": path})


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class MessageLines:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The messages that `data` completes. RoleError: a line that is not a JSON object, or too long."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_LIMIT:
            raise RoleError(f"a message of more than {_LINE_LIMIT} bytes between processes of one host")
        for line in lines:
            yield decode(line)


def decode(line: bytes) -> dict[str, Any]:
    """The message in a line. RoleError: it is not a JSON object."""
    try:
        message = json.loads(line)
    except ValueError as error:
        raise RoleError(f"not a line of JSON: {line[:80]!r}") from error
    if not isinstance(message, dict):
        raise RoleError(f"not a JSON object: {line[:80]!r}")
    return message
