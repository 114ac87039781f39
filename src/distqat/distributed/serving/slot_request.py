"""A slot of the swarm, as the client grants it."""

from __future__ import annotations

import asyncio
import logging

from distqat.config import Config, agreement
from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.distributed.network.role_peer import RolePeer
from distqat.distributed.serving.checkpoint_loop import held_on_disk
from distqat.errors import RunFinished
from distqat.process import waiting
from distqat.protocol.calls.slot_calls import GrantedSlot, LiveState, RequestSlot, RunOver, SlotWait
from distqat.protocol.hop import Hop, PeerAddress

logger = logging.getLogger(__name__)

SLOT_TIMEOUT = 30.0  # a client that has just started lets those who hold a slot ask first


async def ask_for_slot(
    config: Config,
    peer: RolePeer,
    coordinator: CoordinatorLink,
    holding: str | None,
    live: LiveState | None = None,
) -> GrantedSlot:
    """A slot from the client, as soon as it answers; `holding` is one that this server would like to keep.

    The client hears what could be brought back from this host's disk, and from memory: the `live` state.

    Raises ProtocolMismatch naming the keys in which the settings differ from the run's; Refused when full;
    RunFinished when there is nothing to serve any more.
    """
    agreements = {stage: agreement(config, stage) for stage in config.stages}
    hop = Hop(holding or "any.0.0.0", PeerAddress(peer.identity.peer, peer.host, peer.maddrs))
    held = await asyncio.to_thread(held_on_disk, config)
    request = RequestSlot(hop, agreements, holding, held, live)
    answer = await coordinator.insist(request, timeout=SLOT_TIMEOUT)
    if isinstance(answer, SlotWait):  # the client held the request for a while already
        with waiting("a slot") as wait:
            while isinstance(answer, SlotWait):
                wait.what = f"a slot: {answer.wait}"
                logger.info("waiting for %s", wait.what)
                answer = await coordinator.insist(request, timeout=SLOT_TIMEOUT)
    if isinstance(answer, RunOver):
        raise RunFinished("the run is finished")
    return answer
