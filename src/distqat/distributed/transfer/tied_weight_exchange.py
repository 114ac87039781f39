"""A weight of which two stages hold a copy: giving ours, fetching theirs. docs/decisions/0019-tied-weights.md

A copy travels as named tensors whose digest the convener has named; a holder keeps those of its last rounds,
since the other stage may be a round behind.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from distqat.diloco.tensor_digest import state_digest
from distqat.distributed.serving.committed_state import CommittedState
from distqat.errors import BadContribution, StageUnavailable, SwarmError
from distqat.protocol.calls.round_calls import CopyHolders, FetchTiedWeight
from distqat.swarm.call_messages import exchange
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import Transport

Named = dict[str, Tensor]
KEPT = 3  # rounds: the two that the convener names, and the next, which may commit meanwhile


class TiedWeightExchange:
    """`names`: what both stages call a weight, to its name in this stage."""

    def __init__(self, names: Mapping[str, str], transport: Transport, timeout_s: float) -> None:
        self._names = dict(names)
        self._transport = transport
        self.timeout_s = timeout_s
        self._kept: dict[int, Named] = {}

    def keep(self, shared: CommittedState) -> None:
        """This is committed, and may be asked for."""
        self._kept[shared.round] = self._of(shared)
        for round in sorted(self._kept)[:-KEPT]:
            del self._kept[round]

    def digest(self, shared: CommittedState) -> str:
        """Of the copy in a committed state."""
        return state_digest(self._of(shared))

    def give(self, round: int) -> Message:
        """Our copy after `round`. Raises StageUnavailable."""
        if round not in self._kept:
            raise StageUnavailable(f"the tied weight of round {round} is not held here")
        return Message({}, self._kept[round])

    async def fetch(self, told: CopyHolders) -> Named:
        """The other stage's copy, by our names for it. Raises StageUnavailable when no holder gives it."""
        round, digest = told.round, told.digest
        reasons: list[str] = []
        for holder in told.members:
            try:
                link = await self._transport.link(holder.address)
                _, reply = await exchange(link, FetchTiedWeight(round), timeout=self.timeout_s)
            except SwarmError as error:
                reasons.append(f"{holder.uid}: {error}")
                continue
            copies = dict(reply.tensors)
            if state_digest(copies) == digest and copies.keys() == self._names.keys():
                return {self._names[name]: tensor for name, tensor in copies.items()}
            reasons.append(f"{holder.uid}: not what it announced")
        raise StageUnavailable(
            f"nobody gives the tied weight of round {round}: {'; '.join(reasons) or 'no holder'}"
        )

    def _of(self, shared: CommittedState) -> Named:
        return {name: shared.anchor[own] for name, own in self._names.items()}


def moved_towards(copies: Mapping[str, Tensor], before: Named, after: Named) -> Named:
    """Half the way from the old anchor to the other copy, on top of what the round moved."""
    moved: Named = {}
    for name, copy in copies.items():
        if name not in before or copy.shape != before[name].shape or copy.dtype != before[name].dtype:
            raise BadContribution(f"the other stage's copy of {name!r} is of another shape or type")
        if not bool(torch.isfinite(copy).all()):
            raise BadContribution(f"the other stage's copy of {name!r} is not finite")
        moved[name] = after[name] + (copy - before[name]) * 0.5
    return moved
