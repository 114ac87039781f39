"""What a record of the directory may be."""

from __future__ import annotations

import math

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.swarm.record_validator import CLOCK_TOLERANCE_S, MAX_RECORD_BYTES, MAX_TTL_S, record_is_bounded

NOW = 1_000_000.0
SUBKEY = b"front.0.0.0[owner:ssh-rsa AAAA]"
SIGNATURE = b"[signature:c2lnbmF0dXJl]"
VALUE = msgpack.packb(b"{}") + SIGNATURE


def test_an_honest_record() -> None:
    assert record_is_bounded(SUBKEY, VALUE, NOW + 8, NOW)
    assert record_is_bounded(SUBKEY, msgpack.packb(bytes(MAX_RECORD_BYTES)) + SIGNATURE, NOW + 8, NOW)


@pytest.mark.parametrize(
    "expires_at",
    [math.inf, -math.inf, math.nan, NOW + MAX_TTL_S + CLOCK_TOLERANCE_S + 1, 1e300],
)
def test_an_expiry_that_is_not_finite_and_near(expires_at: float) -> None:
    assert not record_is_bounded(SUBKEY, VALUE, expires_at, NOW)


@pytest.mark.parametrize(
    "subkey",
    [
        None,
        b"",
        b"front.0.0.0",
        b"[owner:]",
        SUBKEY + b"[owner:ssh-rsa BBBB]",
        b"x" * 2000 + SUBKEY,
    ],
)
def test_a_record_without_one_owner(subkey: bytes | None) -> None:
    assert not record_is_bounded(subkey, VALUE, NOW + 8, NOW)


def nested_extension(depth: int) -> bytes:
    value = msgpack.packb(None)
    for _ in range(depth):
        value = msgpack.packb(msgpack.ExtType(0x40, value))
    return value


@pytest.mark.parametrize(
    "value",
    [
        b"",
        SIGNATURE,
        msgpack.packb("text") + SIGNATURE,
        msgpack.packb({"a": 1}) + SIGNATURE,
        msgpack.packb([b"x"]) + SIGNATURE,
        msgpack.packb(b"{}") + b"more" + SIGNATURE,
        msgpack.packb(b"{}")[:-1] + SIGNATURE,
        b"\xc5\x00" + SIGNATURE,
        nested_extension(400) + SIGNATURE,
        msgpack.packb(nested_extension(2)) + b"\xc0" + SIGNATURE,
        msgpack.packb(bytes(MAX_RECORD_BYTES + 2000)) + SIGNATURE,
    ],
)
def test_a_value_that_is_no_small_byte_string(value: bytes) -> None:
    assert not record_is_bounded(SUBKEY, value, NOW + 8, NOW)


@given(st.binary(max_size=64), st.binary(max_size=64), st.floats(), st.floats(allow_nan=False))
def test_any_bytes_get_an_answer(subkey: bytes, value: bytes, expires_at: float, now: float) -> None:
    assert record_is_bounded(subkey, value, expires_at, now) in (True, False)
