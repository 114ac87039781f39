"""A call between peers: what the answering side sees of it, and how an error travels back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from distqat import errors
from distqat.errors import SwarmError
from distqat.swarm import frame
from distqat.swarm.frame import Message
from distqat.swarm.incoming import Received

MAX_ERROR_TEXT = 2000

ERRORS_BY_CODE: dict[str, type[SwarmError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SwarmError)
}


@dataclass(frozen=True)
class Call:
    """One request at the answering side. `peer` is authenticated by libp2p, claimed on a Unix socket."""

    peer: str
    method: str
    message: Message


Answer = Callable[[Call], Awaitable[Message]]


@dataclass
class Traffic:
    """Bytes of frames in and out, shared by the channels of one role."""

    bytes_in: int = 0
    bytes_out: int = 0


def error_frame(call: Received, code: str, text: str, at: str | None) -> list[bytes | memoryview]:
    """The answer to a call that failed."""
    fields = {"code": code, "text": text[:MAX_ERROR_TEXT], "at": at}
    return frame.encode(frame.ERROR, call.request, call.method, Message(fields))


def error_of(peer: str, message: Message) -> SwarmError:
    """The error that such an answer speaks of, as the caller sees it."""
    code, text = message.fields.get("code"), str(message.fields.get("text"))[:MAX_ERROR_TEXT]
    error = ERRORS_BY_CODE.get(str(code), SwarmError)(f"{peer}: {text}")
    at = message.fields.get("at")
    error.at = at if isinstance(at, str) else None
    return error
