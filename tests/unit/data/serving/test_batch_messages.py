"""Messages: a round trip, and no bytes that crash or hang a reader."""

from __future__ import annotations

import asyncio
import struct

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.data.serving import batch_messages
from distqat.errors import BadFrame


def read(data: bytes) -> batch_messages.Message | None:
    async def run() -> batch_messages.Message | None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await batch_messages.read(reader, silence_s=5.0, body_s=5.0)

    return asyncio.run(run())


def test_round_trip() -> None:
    sent = {"op": "next", "id": 7, "list": [1, "a", None, {"deep": [True]}]}
    assert read(batch_messages.encode(sent)) == sent
    assert read(b"") is None


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        got = read(data)
    except BadFrame:
        return
    assert got is None or isinstance(got, dict)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=100))
def test_any_body_is_a_map_or_refused(body: bytes) -> None:
    try:
        assert isinstance(batch_messages.decode(body), dict)
    except BadFrame:
        return


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!I", 1 << 30),
        struct.pack("!I", 0),
        struct.pack("!I", 9) + b"short",
        b"\x00",
        struct.pack("!I", 1) + b"\x01",
        struct.pack("!I", 3) + msgpack.packb({1: 2}),
    ],
)
def test_frames_that_are_none(data: bytes) -> None:
    with pytest.raises(BadFrame):
        read(data)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(BadFrame):
        batch_messages.decode(b"\x91" * 100_000 + b"\x01")


def test_long_messages_are_not_sent() -> None:
    with pytest.raises(BadFrame, match="exceeds"):
        batch_messages.encode({"x": b"0" * (batch_messages.MAX_BYTES + 1)})


@pytest.mark.parametrize("value", [None, "1", 1.0, True, -1, 11])
def test_integer_fields_are_bounded(value: object) -> None:
    with pytest.raises(BadFrame, match="'n' must be an integer of 0"):
        batch_messages.integer({"n": value}, "n", low=0, high=10)


@pytest.mark.parametrize("value", [None, 1, "x" * 201])
def test_text_fields_are_short(value: object) -> None:
    with pytest.raises(BadFrame, match="'t' must be a string"):
        batch_messages.text({"t": value}, "t")


def test_silence_ends_a_read() -> None:
    async def run() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await batch_messages.read(asyncio.StreamReader(), silence_s=0.01, body_s=1.0)
        reader = asyncio.StreamReader()
        reader.feed_data(b"\x00")  # begins, and never ends
        with pytest.raises(asyncio.TimeoutError):
            await batch_messages.read(reader, silence_s=1.0, body_s=0.01)

    asyncio.run(run())
