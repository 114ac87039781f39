"""What a record of the directory may be, whoever stored it: owned, sized, plain, soon over."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

MAX_RECORD_BYTES = 8 * 1024
MAX_TTL_S = 120.0
CLOCK_TOLERANCE_S = 3.0
MAX_SUBKEY_BYTES = 1024
MAX_SIGNATURE_BYTES = 1024
OWNER = re.compile(rb"\[owner:(.+?)\]")
_SIGNATURE = re.compile(rb"\[signature:(.+?)\]")


@dataclass(frozen=True)
class SignedRecord:
    """One signed record: who signed it, what it says, when it ends (DHT time)."""

    owner: str
    value: bytes
    expires_at: float


def record_is_bounded(subkey: bytes | None, value: bytes, expires_at: float, now: float) -> bool:
    """Whether a record, signature and all, keeps to ownership, size, plainness and expiry.

    The value must be one msgpack byte string: hivemind decodes it in the middle of a look-up, where anything
    that does not decode, though its owner signed it, leaves every reader waiting.
    """
    if subkey is None or len(subkey) > MAX_SUBKEY_BYTES or len(OWNER.findall(subkey)) != 1:
        return False
    if len(value) > MAX_RECORD_BYTES + MAX_SIGNATURE_BYTES or not _is_byte_string(_SIGNATURE.sub(b"", value)):
        return False
    return math.isfinite(expires_at) and expires_at <= now + MAX_TTL_S + CLOCK_TOLERANCE_S


def _is_byte_string(packed: bytes) -> bool:
    """Whether `packed` is msgpack's bin 8, bin 16 or bin 32, and nothing behind it."""
    size_bytes = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(packed[0]) if packed else None
    if size_bytes is None or len(packed) < 1 + size_bytes:
        return False
    return int.from_bytes(packed[1 : 1 + size_bytes], "big") == len(packed) - 1 - size_bytes
