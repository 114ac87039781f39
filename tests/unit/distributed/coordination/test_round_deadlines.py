"""A round goes on at its deadline, without a call that would remind it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.fakes.direct_calls import from_peer, hop_of

from distqat.diloco.options import DilocoOptions
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.round_service import RoundService
from distqat.protocol.calls.round_calls import FoundStage, JoinStage, ReadyForRound
from distqat.protocol.convener_actions import OpenRound

UID = "front.0.0.0"


async def test_a_member_that_falls_silent_costs_one_exchange(tmp_path: Path) -> None:
    log = CommitLog(tmp_path / "log.jsonl", "run")
    ended: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    rounds = RoundService(["front"], DilocoOptions(averaging_timeout=0.05), log, ended.put_nowait, hop_of)
    call = from_peer(UID)
    await rounds.found(FoundStage("front", UID, "0" * 64), call)
    await rounds.join(JoinStage("front", hop_of(UID), 0), call)
    opened = await asyncio.wait_for(rounds.ready(ReadyForRound("front", UID, 0), call), 5)
    assert opened == OpenRound(1, 0, (UID,))
    record = await asyncio.wait_for(ended.get(), 5)  # it never contributes
    assert (record["committed"], record["reason"]) == (False, "0 of 1 members contributed")
    rounds.close()
    log.close()
