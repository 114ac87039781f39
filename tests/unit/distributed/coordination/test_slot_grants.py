"""Which slots a server may say that it holds, and who is believed to have held one before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.direct_calls import hop_of

from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.slot_grants import SlotGrants
from distqat.errors import Refused
from distqat.topology.snapshot import SwarmSnapshot

STAGES = ("front", "back")
NOTHING = SwarmSnapshot(STAGES)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[CommitLog]:
    made = CommitLog(tmp_path / "commit_log.jsonl", "run")
    yield made
    made.close()


@pytest.mark.parametrize("holding", ["nope.0.5.0", "front.0.8.0", "front.0.999999.0", "garbage"])
def test_what_is_no_slot_of_the_run_is_refused_and_not_logged(
    log: CommitLog, tmp_path: Path, holding: str
) -> None:
    slots = SlotGrants(log, STAGES, 8)
    kept = slots.grant("server", hop_of("any.0.0.0"), NOTHING, None)
    before = (tmp_path / "commit_log.jsonl").read_text()
    with pytest.raises(Refused, match="slot"):
        slots.held_before("server", holding)
    with pytest.raises(Refused, match="slot"):
        slots.grant("server", hop_of("any.0.0.0"), NOTHING, holding)
    assert (tmp_path / "commit_log.jsonl").read_text() == before
    assert slots.of_peer("server") is kept


def test_a_slot_was_held_before_by_whom_the_log_gave_it_to_last(log: CommitLog, tmp_path: Path) -> None:
    slots = SlotGrants(log, STAGES, 8)
    assert not slots.held_before("server", "front.0.7.0")
    assert slots.grant("server", hop_of("any.0.0.0"), NOTHING, "front.0.7.0").grant.uid == "front.0.7.0"
    again = CommitLog(tmp_path / "commit_log.jsonl", "run")  # as the client's next start reads it
    slots = SlotGrants(again, STAGES, 8)
    assert slots.held_before("server", "front.0.7.0")
    assert not slots.held_before("server", None)
    assert not slots.held_before("another", "front.0.7.0")
    slots.grant("another", hop_of("any.0.0.0"), NOTHING, "front.0.7.0")
    assert not slots.held_before("server", "front.0.7.0")
    again.close()
