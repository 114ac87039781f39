"""A call between peers: what the answering side sees of it, and how an error travels back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distqat import errors
from distqat.errors import RemoteFault, SwarmError
from distqat.failures import describe, place_of
from distqat.swarm import tensor_frame
from distqat.swarm.frame_reader import ReceivedFrame
from distqat.swarm.tensor_frame import Message

MAX_ERROR_TEXT = 2000

ERRORS_BY_CODE: dict[str, type[SwarmError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SwarmError)
}


@dataclass(frozen=True)
class IncomingCall:
    """One request at the answering side. `peer` is authenticated by libp2p, claimed on a Unix socket."""

    peer: str
    method: str
    message: Message


Answer = Callable[[IncomingCall], Awaitable[Message]]


@dataclass
class ByteCount:
    """Bytes of frames in and out, shared by the channels of one role."""

    bytes_in: int = 0
    bytes_out: int = 0


def error_frame(call: ReceivedFrame, error: Exception) -> list[bytes | memoryview]:
    """The answer to a call that failed."""
    return tensor_frame.encode(tensor_frame.ERROR, call.request, call.method, Message(error_fields(error)))


def error_fields(error: Exception) -> dict[str, Any]:
    """What travels of an error: of an exception that is not a SwarmError, its kind and its place too."""
    if isinstance(error, RemoteFault):
        fault = {"kind": error.kind, "place": error.place, "said": error.said}
    elif isinstance(error, SwarmError):
        fault = {}
    else:
        text = describe(error)[:MAX_ERROR_TEXT]
        return {
            "code": RemoteFault.code,
            "text": text,
            "at": None,
            "kind": type(error).__name__,
            "place": place_of(error),
            "said": text,
        }
    return {"code": error.code, "text": str(error)[:MAX_ERROR_TEXT], "at": error.at, **fault}


def error_of(peer: str, fields: Mapping[str, Any]) -> SwarmError:
    """The error that such fields speak of, as the caller sees it."""

    def text(name: str) -> str:
        return str(fields.get(name, ""))[:MAX_ERROR_TEXT]

    error = ERRORS_BY_CODE.get(text("code"), SwarmError)(f"{peer}: {text('text')}")
    at = fields.get("at")
    error.at = at if isinstance(at, str) else None
    if isinstance(error, RemoteFault):
        error.kind, error.place, error.said = text("kind"), text("place"), text("said")
    return error
