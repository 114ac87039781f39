"""The committed states of a run, from whichever members hold them."""

from __future__ import annotations

from distqat.config import Config
from distqat.distributed.coordination.round_service import RoundService
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.transfer.download import WINDOW
from distqat.distributed.transfer.snapshot_exchange import FetchedState, fetch_snapshot
from distqat.errors import StageUnavailable
from distqat.swarm.transport import Transport

ATTEMPTS = 3  # donors may be a round further by the time they are asked


async def fetch_committed(
    transport: Transport, rounds: RoundService, stage: str, *, window: int = WINDOW
) -> FetchedState:
    """The last committed round of a stage. Raises StageUnavailable when nobody gives it."""
    for attempt in range(ATTEMPTS):
        newest = rounds.round_of(stage)
        if newest is None:
            break
        donors = list(rounds.holders(stage).hops.values())
        try:
            return await fetch_snapshot(transport, donors, round=newest[0], digest=newest[1], window=window)
        except StageUnavailable:
            if attempt == ATTEMPTS - 1:
                raise
    raise StageUnavailable(f"no round of stage {stage} is committed yet")


async def collect_states(
    config: Config, transport: Transport, rounds: RoundService
) -> dict[str, CommittedState]:
    """The last committed round of every stage. Raises StageUnavailable if nobody has it any more."""
    return {stage: (await fetch_committed(transport, rounds, stage)).shared for stage in config.stages}
