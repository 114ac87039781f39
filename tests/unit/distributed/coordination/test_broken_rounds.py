"""A decision about a round that cannot be carried out ends the client, with the cause."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from distqat.diloco.options import DilocoOptions
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.round_service import RoundService
from distqat.distributed.network.call_fields import Hop
from distqat.errors import RoleError
from distqat.protocol.hop import PeerAddress


async def test_a_log_that_cannot_be_written_breaks_the_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "commit_log.jsonl"
    log = CommitLog(path, "run")
    rounds = RoundService(["front"], DilocoOptions(), log, lambda record: None)
    rounds.zero("front", "0" * 64)
    hop = Hop("front.0.0.0", PeerAddress("peer"))
    rounds.join("front", hop, 0)
    opened = await asyncio.wait_for(rounds.ready("front", hop.uid, 0), 5)
    told = {"round": opened["round"], "attempt": opened["attempt"]}
    offer = {"digest": "1" * 64, "samples": 8, "nbytes": 100}
    await asyncio.wait_for(rounds.contribute("front", hop.uid, {**told, **offer}), 5)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RoleError, match="No space left on device"):
        await asyncio.wait_for(rounds.vote("front", hop.uid, {**told, "digest": "1" * 64}), 5)
    with pytest.raises(RoleError, match=str(path)):
        await asyncio.wait_for(rounds.broken, 5)
    rounds.close()
    log.close()
