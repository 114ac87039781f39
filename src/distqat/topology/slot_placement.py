"""Which slot a server takes, and which server moves to a stage that lost its last replica.

Both read a snapshot and the grants of the commit log; times are handed in. If the look-up failed there is no
snapshot to decide on and the last plan stands.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from distqat.errors import Refused
from distqat.topology.expert import ExpertId
from distqat.topology.snapshot import ServerRecord, SwarmSnapshot


@dataclass(frozen=True)
class Move:
    """`server` gives up its slot, where its stage has a spare, for `target`, whose stage has nobody."""

    server: ServerRecord
    target: ExpertId


def choose_slot(snapshot: SwarmSnapshot, granted: Collection[ExpertId], max_expert_index: int) -> ExpertId:
    """The slot for one more server: lowest free index below `max_expert_index` of the stage in most need.

    A stage without a replica comes first, then the least summed throughput, then the fewest replicas, then
    pipeline order. `granted` are live grants of the log: those whose server has not declared itself yet
    count as replicas, so that servers which ask together spread. Refused when every slot is taken.
    """
    for stage in _by_need(snapshot, granted):
        index = _free_index(snapshot, granted, stage, max_expert_index)
        if index is not None:
            return ExpertId(stage, index)
    raise Refused(
        f"all {max_expert_index} slots of every stage ({', '.join(snapshot.stages)}) are taken; "
        "raise max_expert_index to let more servers in"
    )


def gaps_since(snapshot: SwarmSnapshot, since: Mapping[str, float], now: float) -> dict[str, float]:
    """For each missing stage the time at which it was first seen missing; feed the answer back next time."""
    return {stage: since.get(stage, now) for stage in snapshot.missing()}


def choose_move(
    snapshot: SwarmSnapshot,
    granted: Mapping[ExpertId, str],
    since: Mapping[str, float],
    now: float,
    *,
    patience_s: float,
    max_expert_index: int,
) -> Move | None:
    """The move that fills the first gap, or None.

    `granted` maps the log's live grants to peer ids; a server whose peer holds a grant elsewhere is on its
    way out. A gap counts once it has lasted `patience_s` and no joiner or grant is on its way to it. The
    server comes from the stage with the most throughput among those with two or more serving replicas, and
    is the one that this stage misses least: no move ever empties a stage.
    """
    for stage in snapshot.missing():
        if now - since.get(stage, now) < patience_s or _on_the_way(snapshot, granted, stage):
            continue
        index = _free_index(snapshot, granted, stage, max_expert_index)
        server = _spare(snapshot, granted)
        if index is not None and server is not None:
            return Move(server, ExpertId(stage, index))
    return None


def _by_need(snapshot: SwarmSnapshot, granted: Collection[ExpertId]) -> list[str]:
    """Stages, the neediest first. A replica that has not been measured counts as an average one."""
    measured = [_rate(s) for stage in snapshot.stages for s in snapshot.replicas(stage) if _rate(s) > 0]
    average = math.fsum(measured) / len(measured) if measured else 1.0

    def need(stage: str) -> tuple[bool, float, int]:
        staying = [s for s in snapshot.replicas(stage) if s.state != "draining"]
        declared = {s.expert for s in snapshot.replicas(stage)}
        coming = sum(1 for expert in granted if expert.stage == stage and expert not in declared)
        rates = [_rate(s) or average for s in staying] + [average] * coming
        return bool(rates), math.fsum(rates), len(rates)

    return sorted(snapshot.stages, key=need)  # stable: pipeline order breaks ties


def _free_index(
    snapshot: SwarmSnapshot, granted: Collection[ExpertId], stage: str, max_expert_index: int
) -> int | None:
    taken = {server.index for server in snapshot.replicas(stage)}
    taken |= {expert.index for expert in granted if expert.stage == stage}
    return next((index for index in range(max_expert_index) if index not in taken), None)


def _on_the_way(snapshot: SwarmSnapshot, granted: Mapping[ExpertId, str], stage: str) -> bool:
    joining = any(server.state == "joining" for server in snapshot.replicas(stage))
    declared = {server.expert for server in snapshot.replicas(stage)}
    return joining or any(expert.stage == stage and expert not in declared for expert in granted)


def _spare(snapshot: SwarmSnapshot, granted: Mapping[ExpertId, str]) -> ServerRecord | None:
    """The server that is missed least where most throughput is, if that stage keeps another."""
    best: tuple[float, ServerRecord] | None = None
    for stage in snapshot.stages:
        staying = [
            server
            for server in snapshot.replicas(stage)
            if server.state == "serving" and not _leaving(server, granted)
        ]
        if len(staying) < 2:
            continue
        total = math.fsum(_rate(server) for server in staying)
        if best is None or total > best[0]:
            best = total, min(staying, key=lambda server: (_rate(server), -server.index))
    return best[1] if best else None


def _leaving(server: ServerRecord, granted: Mapping[ExpertId, str]) -> bool:
    return any(peer == server.peer_id and expert != server.expert for expert, peer in granted.items())


def _rate(server: ServerRecord) -> float:
    """Announced throughput; anything but a positive finite number counts as not measured."""
    return server.throughput if math.isfinite(server.throughput) and server.throughput > 0 else 0.0
