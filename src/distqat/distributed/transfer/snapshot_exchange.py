"""Snapshots: how a server that joins or fell behind gets the committed state, named by its digest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.transfer.download import (
    MAX_MOMENTS,
    WINDOW,
    ChunkCache,
    Download,
    Downloaded,
    StateHolder,
    WantedState,
)
from distqat.distributed.transfer.state_chunks import CHUNK_BYTES
from distqat.errors import BadContribution, BadFrame, CheckpointError, StageUnavailable, SwarmError
from distqat.failpoints import failpoint
from distqat.protocol.calls.slot_calls import AskMembers, Mirrored, Restore
from distqat.protocol.hop import Hop
from distqat.swarm.transport import Transport

logger = logging.getLogger(__name__)

DONOR_TIMEOUT = 3600.0  # how long a stage may be without a donor before the question is put again
RETRY_S = 0.2
MIRROR_ATTEMPTS, MIRROR_RETRY_S = 5, 1.0  # there is no other source that is as new
MOST = 1e6  # an inner moment beyond this is not an honest one


class StageLost(SwarmError):
    """Nobody holds the committed state of a stage any more, and we are asked to bring it back."""

    code = "lost"

    def __init__(self, text: str, restore: Restore) -> None:
        super().__init__(text)
        self.restore = restore


@dataclass(frozen=True)
class FetchedState:
    """A verified committed state, and the donor's inner moments (they belong to the donor alone)."""

    shared: CommittedState
    inner: dict[str, Tensor]
    step: int
    givers: tuple[str, ...] = ()
    """Who sent chunks of it."""


async def fetch_newest(
    transport: Transport,
    coordinator: CoordinatorLink,
    stage: str,
    *,
    own_uid: str,
    unless: str = "",
    moments: bool = True,
) -> FetchedState | None:
    """The committed state of a stage, from whoever has it; None if its digest is `unless`, which we hold.

    Waits as long as its donors are just between two rounds; what it had from one that failed is kept. Raises
    StageLost when there will be none.
    """
    pieces = ChunkCache()
    while True:
        known = await coordinator.insist(AskMembers(stage, wait=True), timeout=DONOR_TIMEOUT)
        if isinstance(known, Restore):
            raise StageLost(f"nobody holds stage {stage} any more", known)
        wish = WantedState(known.round, known.digest)
        if wish.digest == unless:
            return None
        givers = [StateHolder(donor.uid, donor.address) for donor in known.members if donor.uid != own_uid]
        failpoint("join.before_fetch")
        try:
            return await fetch(Download(transport, givers, wish, pieces), wish.round, moments=moments)
        except StageUnavailable as error:
            logger.info("%s asks again for the state of %s: %s", own_uid, stage, error)
            await asyncio.sleep(RETRY_S)


async def fetch_committed_now(transport: Transport, coordinator: CoordinatorLink, stage: str) -> FetchedState:
    """The committed state of a stage for a guest, without inner moments; asks until its members give one.

    Raises Refused when the run has no such stage.
    """
    pieces = ChunkCache()
    while True:
        known = await coordinator.insist(AskMembers(stage))
        if isinstance(known, Restore):
            raise BadFrame(f"the client asks who cannot to restore stage {stage}")
        wish = WantedState(known.round, known.digest)
        try:
            givers = [StateHolder(donor.uid, donor.address) for donor in known.members]
            return await fetch(Download(transport, givers, wish, pieces), wish.round, moments=False)
        except StageUnavailable as error:
            logger.info("asking again for the state of %s: %s", stage, error)
            await asyncio.sleep(RETRY_S)


async def fetch_snapshot(
    transport: Transport, donors: Sequence[Hop], *, round: int, digest: str, window: int = WINDOW
) -> FetchedState:
    """The committed state of `round`, without inner moments; the digest is the commit log's.

    Raises StageUnavailable when no donor gave it: all are gone, or further already.
    """
    givers = [StateHolder(donor.uid, donor.address) for donor in donors]
    return await fetch(Download(transport, givers, WantedState(round, digest, window)), round, moments=False)


async def fetch_mirrored(
    transport: Transport, stage: str, told: Mirrored | None, newer_than: tuple[int, int]
) -> FetchedState | None:
    """The client's copy of a stage, if it is of a later (generation, round) than `newer_than`, else None.

    None, and a warning, when it cannot be had after some attempts.
    """
    if told is None or (told.generation, told.round) <= newer_than:
        return None
    givers = [StateHolder("the client's mirror", told.hop.address, stage)]
    wish, pieces = WantedState(told.round, told.digest), ChunkCache()
    for _ in range(MIRROR_ATTEMPTS):
        try:
            return await fetch(Download(transport, givers, wish, pieces), wish.round, moments=False)
        except StageUnavailable as error:
            logger.warning("the client's copy of %s did not come: %s", stage, error)
            await asyncio.sleep(MIRROR_RETRY_S)
    return None


async def fetch(download: Download, round: int, *, moments: bool) -> FetchedState:
    """What a download brings, as a committed state; StageUnavailable when it brings none.

    Inner moments that nobody gives are left out: the joiner starts with fresh ones.
    """
    got = await download.shared()
    shared = await asyncio.to_thread(_as_shared, round, got)
    inner, step = dict[str, Tensor](), got.step
    if moments:
        size = sum(tensor.nbytes for tensor in got.tensors.values())
        private = await download.moments(MAX_MOMENTS * size + CHUNK_BYTES)
        if private is not None:
            inner, step = private.tensors, private.step
    return FetchedState(shared, inner, step, tuple(got.givers))


def _as_shared(round: int, got: Downloaded) -> CommittedState:
    try:
        shared = CommittedState.from_tensors(round, got.tensors, {})
    except CheckpointError as error:
        raise BadContribution(str(error)) from error
    _ = shared.digest  # computed here, off the event loop
    return shared


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
    """Take a donor's moments if they fit, are finite and bounded; otherwise keep fresh ones and say so."""
    params = dict(replica.module.named_parameters())
    state: dict[Tensor, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, slot = key.rpartition("/")
        param = params.get(name)
        fits = param is not None and (tensor.ndim == 0 or tensor.shape == param.shape)
        if param is None or not fits or not _credible(slot, tensor):
            logger.warning("the donor's inner moments do not fit (%s); starting with fresh ones", key)
            return False
        on_device = tensor if tensor.ndim == 0 else tensor.to(param.device, copy=True)
        state.setdefault(param, {})[slot] = on_device
    for owner, slots in state.items():
        replica.optimizer.state[owner] = slots
    return bool(state)


def _credible(slot: str, tensor: Tensor) -> bool:
    """Finite and bounded, and where it is a mean of squares not negative: its root would be NaN."""
    if not torch.isfinite(tensor).all():
        return False
    if slot == "step":
        return bool((tensor >= 0).all())
    lowest = 0.0 if slot.endswith("_sq") else -MOST
    return bool((tensor >= lowest).all() and (tensor <= MOST).all())
