"""Which peer holds which slot: granted from the commit log, freed when the peer's link ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from distqat.distributed.coordination.commit_log import CommitLog, SlotGrant
from distqat.errors import ProtocolMismatch, Refused
from distqat.protocol.hop import Hop
from distqat.topology.expert import ExpertId
from distqat.topology.slot_placement import Move, choose_move, choose_slot, gaps_since
from distqat.topology.snapshot import SwarmSnapshot

logger = logging.getLogger(__name__)

PATIENCE_S = 3.0  # how long a stage must have been missing before somebody is asked to move


GrantState = Literal["free", "held", "leaving"]
TRANSITIONS: dict[tuple[GrantState, str], GrantState] = {
    ("free", "grant"): "held",  # with an epoch, from the commit log
    ("held", "move"): "leaving",  # asked to leave for a stage that nobody serves
    ("held", "free"): "free",  # its server is gone, leaves or asks anew
    ("leaving", "free"): "free",
}


@dataclass
class SlotHolder:
    """A server that holds a slot."""

    grant: SlotGrant
    hop: Hop
    status: dict[str, Any] = field(default_factory=dict)
    state: GrantState = "free"

    def enter(self, event: str) -> None:
        """Something happened to its slot; KeyError for what cannot."""
        self.state = TRANSITIONS[self.state, event]


class SlotGrants:
    """Live grants of the run. One owner per slot, always: only this process decides, and it logs first."""

    def __init__(self, log: CommitLog, stages: tuple[str, ...], max_expert_index: int) -> None:
        self._log = log
        self._stages = stages
        self._max_expert_index = max_expert_index
        self._holders: dict[str, SlotHolder] = {}  # by peer
        self._gaps: dict[str, float] = {}

    @property
    def holders(self) -> list[SlotHolder]:
        """Everybody who holds a slot now."""
        return list(self._holders.values())

    def of_peer(self, peer: str) -> SlotHolder | None:
        """The slot that a peer holds; None if it has none."""
        return self._holders.get(peer)

    def hop_of(self, peer: str) -> Hop | None:
        """The slot that a peer holds, and where the peer is."""
        holder = self._holders.get(peer)
        return holder.hop if holder else None

    def of_stage(self, stage: str) -> list[SlotHolder]:
        """Those who hold a slot of `stage`."""
        return [h for h in self._holders.values() if ExpertId.parse(h.grant.uid).stage == stage]

    def held_before(self, peer: str, holding: str | None) -> bool:
        """Whether `holding` was last given to this peer. Raises Refused unless it is a slot of this run."""
        return holding is not None and self._log.last_peer(str(self._slot(holding))) == peer

    def grant(self, peer: str, hop: Hop, snapshot: SwarmSnapshot, holding: str | None) -> SlotHolder:
        """A slot for a server: the one that it holds if that is free, else where it is needed most.

        Raises Refused when there is none, or `holding` is not a slot of this run.
        """
        held = None if holding is None else self._slot(holding)
        self.free(peer)
        granted = self._granted()
        if held is not None and held not in granted:
            expert = held
        else:
            expert = choose_slot(self.live(snapshot), granted, self._max_expert_index)
        holder = SlotHolder(self._log.grant(str(expert), peer), replace(hop, uid=str(expert)))
        holder.enter("grant")
        self._holders[peer] = holder
        return holder

    def free(self, peer: str) -> SlotHolder | None:
        """The peer is gone, leaves or asks anew; the slot that it held."""
        holder = self._holders.pop(peer, None)
        if holder is not None:
            holder.enter("free")
        return holder

    def next_move(self, snapshot: SwarmSnapshot) -> Move | None:
        """Whom to ask to move to a stage that has nobody, if anybody can be spared."""
        now, live = time.monotonic(), self.live(snapshot)
        self._gaps = gaps_since(live, self._gaps, now)
        return choose_move(
            live,
            self._granted(),
            self._gaps,
            now,
            patience_s=PATIENCE_S,
            max_expert_index=self._max_expert_index,
        )

    def _slot(self, uid: str) -> ExpertId:
        """The slot of this run that a peer names. Raises Refused."""
        try:
            expert = ExpertId.parse(uid)
        except ValueError as error:
            raise Refused(f"no slot can be held: {error}") from error
        if expert.stage not in self._stages or expert.index >= self._max_expert_index:
            raise Refused(
                f"this run has no slot {uid[:80]}: its stages are {', '.join(self._stages)}, with an index "
                f"below {self._max_expert_index} (max_expert_index)"
            )
        return expert

    def _granted(self) -> dict[ExpertId, str]:
        return {ExpertId.parse(h.grant.uid): peer for peer, h in self._holders.items()}

    def live(self, snapshot: SwarmSnapshot) -> SwarmSnapshot:
        """Without records of servers that are gone: their links told us before their leases run out."""
        holding = {peer: h.grant.uid for peer, h in self._holders.items()}
        servers = tuple(s for s in snapshot.servers if holding.get(s.peer_id) == str(s.expert))
        return SwarmSnapshot(self._stages, servers)


def check_agreement(
    ours: Mapping[str, Mapping[str, Any]], theirs: Mapping[str, Any] | None, peer: str
) -> None:
    """Refuse a server whose settings differ where replicas must agree, naming the keys."""
    from distqat.config.agreement import differing_keys

    if theirs is None:
        raise ProtocolMismatch(f"{peer} did not say what it agrees to; update it")
    keys = set(differing_keys(ours, theirs))
    for stage in ours.keys() & theirs.keys():
        if isinstance(theirs[stage], dict):
            keys.discard(stage)
            keys |= set(differing_keys(ours[stage], theirs[stage]))
    if "quant.enabled" in keys:  # then every other key of the section differs as well
        keys = {key for key in keys if not key.startswith("quant.")} | {"quant.enabled"}
    if keys:
        advice = "use the configuration of this run"
        if any(key.startswith("quant") for key in keys):
            advice += "; quantization holds for the whole run, --disable-quant on one server cannot join it"
        if any(key.startswith("code.") for key in keys):
            advice += "; the plugin must be the same file as on the client's host"
        raise ProtocolMismatch(
            f"the server's settings differ from the run's in {', '.join(sorted(keys))}: {advice}"
        )
