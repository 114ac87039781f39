"""A decision about a round that cannot be carried out ends the client, with the cause."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
from tests.fakes.direct_calls import from_peer, hop_of

from distqat.diloco.options import DilocoOptions
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.round_service import RoundService
from distqat.errors import RoleError
from distqat.protocol.calls.round_calls import Contribute, FoundStage, JoinStage, ReadyForRound, VoteOnResult
from distqat.protocol.convener_actions import OpenRound


async def test_a_log_that_cannot_be_written_breaks_the_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "commit_log.jsonl"
    log = CommitLog(path, "run")
    uid, digest = "front.0.0.0", "1" * 64
    rounds, call = RoundService(["front"], DilocoOptions(), log, lambda record: None, hop_of), from_peer(uid)
    await rounds.found(FoundStage("front", uid, "0" * 64), call)
    await rounds.join(JoinStage("front", hop_of(uid), 0), call)
    opened = await asyncio.wait_for(rounds.ready(ReadyForRound("front", uid, 0), call), 5)
    assert opened == OpenRound(1, 0, (uid,))
    await asyncio.wait_for(rounds.contribute(Contribute("front", uid, 1, 0, digest, 8, 100), call), 5)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RoleError, match="No space left on device"):
        await asyncio.wait_for(rounds.vote(VoteOnResult("front", uid, 1, 0, digest), call), 5)
    with pytest.raises(RoleError, match=str(path)):
        await asyncio.wait_for(rounds.broken, 5)
    rounds.close()
    log.close()
