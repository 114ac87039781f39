"""A slot of the swarm, as the client grants it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distqat.config import Config, agreement
from distqat.distributed.assembly.model_check import Told
from distqat.distributed.network.call_fields import Hop, take
from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.distributed.network.role_peer import RolePeer
from distqat.distributed.serving.checkpoint_loop import held_on_disk
from distqat.errors import RunFinished
from distqat.process import waiting
from distqat.protocol.hop import PeerAddress
from distqat.topology.expert import ExpertId

logger = logging.getLogger(__name__)

SLOT_TIMEOUT = 30.0  # a client that has just started lets those who hold a slot ask first


@dataclass(frozen=True)
class GrantedSlot:
    """What the client granted."""

    expert: ExpertId
    epoch: int
    founder: bool
    generation: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the client decides of the run, by key."""
    batch: Told | None = None
    """Shapes of the first batch, where the servers of a run check that their model takes it."""
    counts_from: int = 0
    """The first generation of the run, as far as the client knows; states before it are another run's."""
    goes_on: bool = True
    """Whether the client goes on with a run that was there before."""


async def ask_for_slot(
    config: Config,
    peer: RolePeer,
    coordinator: CoordinatorLink,
    holding: str | None,
    live: dict[str, Any] | None = None,
) -> GrantedSlot:
    """A slot from the client, as soon as it answers; `holding` is one that this server would like to keep.

    The client hears what could be brought back from this host's disk, and from memory: the `live` state.

    Raises ProtocolMismatch naming the keys in which the settings differ from the run's; Refused when full;
    RunFinished when there is nothing to serve any more.
    """
    agreements = {stage: agreement(config, stage) for stage in config.stages}
    hop = Hop(holding or "any.0.0.0", PeerAddress(peer.identity.peer, peer.host, peer.maddrs))
    held = await asyncio.to_thread(held_on_disk, config)
    fields = {**hop.fields(), "agreements": agreements, "holding": holding, "held": held, "live": live}
    answer = await coordinator.insist("slot", fields, timeout=SLOT_TIMEOUT)
    if answer.get("wait"):  # the client held the request for a while already
        with waiting("a slot") as wait:
            while answer.get("wait"):
                wait.what = f"a slot: {answer['wait']}"
                logger.info("waiting for %s", wait.what)
                answer = await coordinator.insist("slot", fields, timeout=SLOT_TIMEOUT)
    if answer.get("finished"):
        raise RunFinished("the run is finished")
    expert = ExpertId.parse(take(answer, "uid", str))
    epoch, generation = take(answer, "epoch", int), take(answer, "generation", int)
    settings = take(answer, "settings", dict) if "settings" in answer else {}  # older clients decide nothing
    founder, batch = take(answer, "founder", bool), answer.get("batch")
    counts_from, goes_on = int(answer.get("counts_from", 0)), bool(answer.get("goes_on", True))
    return GrantedSlot(expert, epoch, founder, generation, settings, batch, counts_from, goes_on)
