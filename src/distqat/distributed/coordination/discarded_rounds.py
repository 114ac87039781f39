"""Rounds of a stage that are discarded again and again are told of, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from distqat.process import notice

IN_A_ROW = (3, 10, 30, 100)


class DiscardedRounds:
    """Counts, by stage, the rounds discarded since the last committed one."""

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()

    def ended(self, record: Mapping[str, Any]) -> None:
        """A round has ended, as the client's sink is told of it."""
        stage = str(record.get("stage"))
        if record.get("committed"):
            self._in_a_row[stage] = 0
            return
        self._in_a_row[stage] += 1
        count = self._in_a_row[stage]
        if count in IN_A_ROW:
            reason = record.get("reason") or "no reason given"
            notice(f"the last {count} rounds of stage {stage} were discarded: {reason}; inner steps go on")
