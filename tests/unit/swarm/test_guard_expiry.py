"""An answer of a DHT peer may not claim a later expiry than its records have."""

from __future__ import annotations

import math
from typing import Any

import pytest

from distqat.swarm import hivemind_patches


@pytest.mark.parametrize("claimed", [math.inf, math.nan, 5.0])
async def test_a_claim_is_covered_by_the_records(claimed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from hivemind.dht.protocol import DHTProtocol
    from hivemind.dht.storage import DictionaryDHTValue
    from hivemind.utils.timed_storage import ValueWithExpiration

    held = DictionaryDHTValue()
    with held.freeze():
        held.store("a", b"1", 7.0)
        held.store("b", b"2", 9.0)

        async def hostile(self: Any, peer: Any, keys: Any) -> Any:
            empty = DictionaryDHTValue()
            return {
                "held": (ValueWithExpiration(held, claimed), {}),
                "empty": (ValueWithExpiration(empty, claimed), {}),
                "none": (None, {}),
            }

        monkeypatch.setattr(DHTProtocol, "call_find", hostile)
        hivemind_patches._bound_claimed_expiry()
        found = await DHTProtocol.call_find(None, None, [])
    assert found["held"][0].expiration_time == 9.0
    assert found["empty"] == (None, {})
    assert found["none"] == (None, {})
