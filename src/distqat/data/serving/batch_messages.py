"""Messages between trainers and the data server: a length, then one msgpack map. Never pickle."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from typing import Any

import msgpack

from distqat.errors import BadFrame

PROTOCOL = 1
MAX_BYTES = 1 << 20
LENGTH = struct.Struct("!I")
Message = dict[str, Any]


def encode(message: Mapping[str, Any]) -> bytes:
    """One frame; BadFrame if it is longer than a peer would take."""
    body: bytes = msgpack.packb(dict(message))
    if len(body) > MAX_BYTES:
        raise BadFrame(f"a message of {len(body)} bytes exceeds {MAX_BYTES}")
    return LENGTH.pack(len(body)) + body


def decode_length(header: bytes) -> int:
    """Length of the body that follows a header of `LENGTH.size` bytes."""
    (length,) = LENGTH.unpack(header)
    if not 0 < length <= MAX_BYTES:
        raise BadFrame(f"a message of {length} bytes; at most {MAX_BYTES} are read")
    return int(length)


def decode(body: bytes) -> Message:
    """A map with string keys; BadFrame for anything else."""
    try:
        message = msgpack.unpackb(body)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise BadFrame(f"{len(body)} bytes are no message: {type(error).__name__}") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise BadFrame("a message is a map with string keys")
    return message


async def read(reader: asyncio.StreamReader, *, silence_s: float | None, body_s: float) -> Message | None:
    """The next message; None where the stream ends between two.

    Args:
        silence_s: how long to wait for a message to begin; None waits for the peer's death alone.
        body_s: how long it may take from its first byte to its last.

    Raises:
        BadFrame: no message, or one cut short.
        TimeoutError: asyncio's, when a time is over.
    """
    try:
        first = await asyncio.wait_for(reader.read(1), silence_s)
        if not first:
            return None
        header = first + await asyncio.wait_for(reader.readexactly(LENGTH.size - 1), body_s)
        return decode(await asyncio.wait_for(reader.readexactly(decode_length(header)), body_s))
    except asyncio.IncompleteReadError as error:
        raise BadFrame(f"a message was cut short after {len(error.partial)} bytes") from error


async def write(writer: asyncio.StreamWriter, message: Mapping[str, Any], *, timeout_s: float) -> None:
    """Send one message; waits while the peer does not read, at most `timeout_s`."""
    writer.write(encode(message))
    await asyncio.wait_for(writer.drain(), timeout_s)


def integer(message: Message, key: str, *, low: int, high: int) -> int:
    """An integer field within bounds; BadFrame otherwise."""
    value = message.get(key)
    if type(value) is not int or not low <= value <= high:
        raise BadFrame(f"field {key!r} must be an integer of {low}..{high}, not {value!r}"[:200])
    return value


def mapping(message: Message, key: str) -> Message:
    """A field that is a map with string keys; BadFrame otherwise."""
    value = message.get(key)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise BadFrame(f"field {key!r} must be a map with string keys")
    return value


def text(message: Message, key: str) -> str:
    """A string field of at most 200 characters; BadFrame otherwise."""
    value = message.get(key)
    if not isinstance(value, str) or len(value) > 200:
        raise BadFrame(f"field {key!r} must be a string of at most 200 characters")
    return value
