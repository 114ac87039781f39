"""How long a stage that nobody holds waits for its holders before it is restored from disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.fakes.direct_calls import from_peer, hop_of

from distqat.diloco.options import DilocoOptions
from distqat.distributed.coordination import stage_holders as module
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.round_service import RoundService
from distqat.distributed.coordination.stage_holders import DEAD_S, LOST_S
from distqat.protocol.calls.round_calls import FoundStage, JoinStage

STAGE, HOLDER, OTHER = "front", "front.0.0.0", "front.0.1.0"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
async def service(tmp_path: Path, clock: Clock) -> AsyncIterator[RoundService]:
    log = CommitLog(tmp_path / "log.jsonl", "run")
    made = RoundService([STAGE], DilocoOptions(), log, lambda record: None, hop_of)
    await made.found(FoundStage(STAGE, HOLDER, "digest"), from_peer(HOLDER))
    await made.join(JoinStage(STAGE, hop_of(HOLDER), 0), from_peer(HOLDER))
    yield made
    made.close()
    log.close()


async def restored_after(service: RoundService, clock: Clock, seconds: float) -> bool:
    """Whether a server that waits for a donor is asked to restore, so long after the last holder left."""
    clock.now += seconds
    waiting = asyncio.ensure_future(service.holders(STAGE).wait_for_donor(OTHER))
    await asyncio.sleep(0)
    done = waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    return done


@pytest.mark.parametrize(("for_good", "patience_s"), [(True, DEAD_S), (False, LOST_S)])
async def test_the_dead_are_waited_for_shortly_the_silent_longer(
    service: RoundService, clock: Clock, for_good: bool, patience_s: float
) -> None:
    service.left(STAGE, HOLDER, for_good=for_good)
    assert not await restored_after(service, clock, patience_s - 0.1)
    assert await restored_after(service, clock, 0.2)


async def test_after_a_start_of_the_client_the_holders_have_time(tmp_path: Path, clock: Clock) -> None:
    log = CommitLog(tmp_path / "log.jsonl", "run")
    log.commit_round(STAGE, 0, "digest")
    service = RoundService([STAGE], DilocoOptions(), log, lambda record: None, hop_of)
    assert not await restored_after(service, clock, LOST_S - 0.1)
    assert await restored_after(service, clock, 0.2)
    service.close()
    log.close()


async def test_another_member_that_holds_the_state_is_enough(service: RoundService, clock: Clock) -> None:
    await service.join(JoinStage(STAGE, hop_of(OTHER), 0), from_peer(OTHER))
    service.left(STAGE, HOLDER, for_good=True)
    clock.now += 2 * LOST_S
    assert await service.holders(STAGE).wait_for_donor("front.0.2.0")


async def test_who_waits_for_a_founder_is_not_asked_to_restore_what_it_has_just_published(
    tmp_path: Path, clock: Clock
) -> None:
    log = CommitLog(tmp_path / "log.jsonl", "run")
    service = RoundService([STAGE], DilocoOptions(), log, lambda record: None, hop_of)
    waiting = asyncio.ensure_future(service.holders(STAGE).wait_for_donor(OTHER))
    await asyncio.sleep(0)
    clock.now += 10 * LOST_S  # the founder's quantizers calibrate
    await service.found(FoundStage(STAGE, HOLDER, "digest"), from_peer(HOLDER))
    await asyncio.sleep(0)
    await service.join(JoinStage(STAGE, hop_of(HOLDER), 0), from_peer(HOLDER))
    assert await asyncio.wait_for(waiting, 1)
    service.close()
    log.close()
