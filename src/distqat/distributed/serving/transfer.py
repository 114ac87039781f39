"""Snapshots: how a server that joins or fell behind gets the committed state, named by its digest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distqat.distributed.coordinator_link import Coordinator
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.serving.shared import Shared
from distqat.distributed.wire import Hop, take
from distqat.errors import BadContribution, CheckpointError, StageUnavailable, SwarmError
from distqat.failpoints import failpoint
from distqat.swarm.frame import Message
from distqat.swarm.transport import Transport

logger = logging.getLogger(__name__)

FETCH_TIMEOUT = 120.0
DONOR_TIMEOUT = 3600.0  # how long a stage may be without a donor before the question is put again
RETRY_S = 0.2
INNER = "inner/"


class StageLost(SwarmError):
    """Nobody holds the committed state of a stage any more, and we are asked to bring it back."""

    code = "lost"

    def __init__(self, text: str, oldest: int = 0) -> None:
        super().__init__(text)
        self.oldest = oldest  # checkpoints of older generations belong to other runs


@dataclass(frozen=True)
class Fetched:
    """A verified committed state, and the donor's inner moments (they belong to the donor alone)."""

    shared: Shared
    inner: dict[str, Tensor]
    step: int


def snapshot_message(shared: Shared, replica: StageReplica) -> Message:
    """What a donor answers; runs on the compute thread, between two jobs."""
    tensors = dict(shared.tensors())
    tensors.update({f"{INNER}{name}": tensor for name, tensor in inner_state(replica).items()})
    return Message({"round": shared.round, "digest": shared.digest, "step": replica.step}, tensors)


async def fetch_newest(
    transport: Transport, coordinator: Coordinator, stage: str, *, own_uid: str, newer_than: int = -1
) -> Fetched | None:
    """The committed state of a stage, from whoever has it; None if it is not newer than `newer_than`.

    Waits as long as its donors are just between two rounds. Raises StageLost when there will be none.
    """
    while True:
        known = await coordinator.insist("members", {"stage": stage, "wait": True}, timeout=DONOR_TIMEOUT)
        if known.get("restore"):
            raise StageLost(f"nobody holds stage {stage} any more", take(known, "oldest", int))
        round, digest = take(known, "round", int), take(known, "digest", str)
        if round <= newer_than:
            return None
        donors = [Hop.parse(fields) for fields in take(known, "members", list)]
        failpoint("join.before_fetch")
        try:
            return await fetch_snapshot(transport, donors, round=round, digest=digest, own_uid=own_uid)
        except StageUnavailable as error:
            logger.info("%s asks again for the state of %s: %s", own_uid, stage, error)
            await asyncio.sleep(RETRY_S)


async def fetch_snapshot(
    transport: Transport, donors: Sequence[Hop], *, round: int, digest: str, own_uid: str
) -> Fetched:
    """The state of `round` from the first donor that has it; the digest is the commit log's.

    Raises StageUnavailable when no donor gave it: all are gone, or further already.
    """
    last: SwarmError | None = None
    for donor in donors:
        if donor.uid == own_uid:
            continue
        try:
            link = await transport.link(donor.address)
            reply = await link.call("snapshot", Message({"round": round}), timeout=FETCH_TIMEOUT)
            return _verified(reply, round, digest)
        except (SwarmError, CheckpointError) as error:
            logger.info("no snapshot of round %d from %s: %s", round, donor.uid, error)
            last = error if isinstance(error, SwarmError) else BadContribution(str(error))
    raise StageUnavailable(
        f"no replica gave the state of round {round}: {last or 'there is no other replica'}"
    )


def _verified(reply: Message, round: int, digest: str) -> Fetched:
    fields: dict[str, Any] = dict(reply.fields)
    if take(fields, "round", int) != round:
        raise BadContribution(f"the donor holds round {fields['round']}, asked for was {round}")
    inner = {n.removeprefix(INNER): t for n, t in reply.tensors.items() if n.startswith(INNER)}
    shared = Shared.from_tensors(
        round, {n: t for n, t in reply.tensors.items() if not n.startswith(INNER)}, {}
    )
    if shared.digest != digest:
        raise BadContribution(
            f"its bytes have digest {shared.digest[:12]}, the commit log says {digest[:12]}"
        )
    return Fetched(shared, inner, take(fields, "step", int))


def inner_state(replica: StageReplica) -> dict[str, Tensor]:
    """The inner optimizer's moments as `{parameter}/{key}`."""
    names = {id(param): name for name, param in replica.module.named_parameters()}
    return {
        f"{names[id(param)]}/{key}": value.detach().to("cpu", copy=True)
        for param, state in replica.optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


@torch.no_grad()
def load_inner_state(replica: StageReplica, tensors: dict[str, Tensor]) -> bool:
    """Take a donor's moments if they fit and are finite; otherwise keep fresh ones and say so."""
    params = dict(replica.module.named_parameters())
    state: dict[Tensor, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, slot = key.rpartition("/")
        param = params.get(name)
        fits = param is not None and (tensor.ndim == 0 or tensor.shape == param.shape)
        if param is None or not fits or not torch.isfinite(tensor).all():
            logger.warning("the donor's inner moments do not fit (%s); starting with fresh ones", key)
            return False
        on_device = tensor if tensor.ndim == 0 else tensor.to(param.device, copy=True)
        state.setdefault(param, {})[slot] = on_device
    for owner, slots in state.items():
        replica.optimizer.state[owner] = slots
    return bool(state)
