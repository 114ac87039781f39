from __future__ import annotations

import pytest

from distqat.distributed.coordination.discarded_rounds import DiscardedRounds


def test_rounds_that_are_discarded_in_a_row_are_told_with_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rounds = DiscardedRounds()
    for number in range(9):
        rounds.ended({"stage": "back", "committed": False, "reason": f"no majority, {number}"})
        rounds.ended({"stage": "front", "committed": number % 2 == 0, "reason": "one member"})
    said = "the last 3 rounds of stage back were discarded: no majority, 2; inner steps go on"
    assert [record.getMessage() for record in caplog.records] == [said]
