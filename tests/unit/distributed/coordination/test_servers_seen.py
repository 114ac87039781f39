"""While no pipeline is complete the client says for which servers it waits."""

from __future__ import annotations

import asyncio
import logging
import sys

import pytest

from distqat.distributed.coordination.servers_seen import ServersSeen
from distqat.process import told_wait, waiting
from distqat.topology.snapshot import ServerRecord, SwarmSnapshot

STAGES = ("front", "back")


def server(stage: str) -> ServerRecord:
    return ServerRecord(stage, stage, 0, 1, "serving", 0.0, 0, 0, "", "")


async def test_who_is_missing_is_told_until_a_pipeline_is_complete(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys.modules[waiting.__module__], "SAY_AFTER_S", 0.0)
    caplog.set_level(logging.INFO)
    seen = ServersSeen()
    seen.tell(SwarmSnapshot(STAGES))
    seen.tell(SwarmSnapshot(STAGES, (server("front"),)))
    while told_wait() is None:  # noqa: ASYNC110  a turn of the event loop, not time
        await asyncio.sleep(0)
    assert "waiting for servers: nobody serves back, since 0 s" in caplog.text
    seen.tell(SwarmSnapshot(STAGES, (server("front"), server("back"))))
    assert told_wait() is None
    assert "Complete pipelines: 1 - [0]" in caplog.text
    seen.tell(SwarmSnapshot(STAGES, (server("back"),)))
    seen.close()
    await asyncio.sleep(0)
    assert told_wait() is None
