"""Slots and moves: what is needed most, never two in one slot, never an emptied stage."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import Refused
from distqat.topology.expert import ExpertId
from distqat.topology.slot_placement import Move, choose_move, choose_slot, gaps_since
from distqat.topology.snapshot import ServerRecord, SwarmSnapshot

from .swarms import STAGES, server, swarm

F0, F1, F2 = (ExpertId("front", i) for i in range(3))
B0, B1, B2 = (ExpertId("back", i) for i in range(3))


@pytest.mark.parametrize(
    ("servers", "granted", "slot"),
    [
        ([], [], F0),
        ([server("front", 0)], [], B0),
        ([], [F0], B0),
        ([server("front", 0), server("back", 0)], [], F1),
        ([server("front", 0, 30.0), server("back", 0, 20.0)], [], B1),
        ([server("front", 0, 30.0), server("back", 0, 20.0)], [B1], F1),
        ([server("front", 1), server("back", 0)], [], F0),
        ([server("front", 0, 10.0), server("front", 1, 10.0), server("back", 0, 20.0)], [], B1),
        ([server("front", 0, 30.0), server("back", 0, 10.0), server("back", 1, 10.0)], [], B2),
        ([server("front", 0, state="draining"), server("back", 0)], [], F1),
        ([server("front", 0, state="joining"), server("back", 0)], [], F1),
        ([server("front", 0, math.nan), server("back", 0, math.inf)], [], F1),
        ([server("front", 0, 0.0), server("front", 1, 0.0), server("back", 0, 5.0)], [], B1),
    ],
)
def test_the_slot_in_most_need(servers: list[ServerRecord], granted: list[ExpertId], slot: ExpertId) -> None:
    assert choose_slot(swarm(*servers), granted, max_expert_index=128) == slot


def test_a_full_stage_gives_way_and_a_full_swarm_refuses() -> None:
    snapshot = swarm(server("front", 0, 1.0), server("back", 0, 100.0), server("back", 1, 100.0))
    assert choose_slot(snapshot, [F1], max_expert_index=3) == F2
    assert choose_slot(snapshot, [F1, F2], max_expert_index=3) == B2
    with pytest.raises(Refused, match=r"all 3 slots .* raise max_expert_index"):
        choose_slot(snapshot, [F1, F2, B2], max_expert_index=3)


@given(st.integers(1, 40), st.integers(1, 5))
def test_servers_that_ask_together_spread_evenly_and_never_share_a_slot(count: int, stages: int) -> None:
    snapshot = SwarmSnapshot(tuple(f"s{i}" for i in range(stages)))
    granted: list[ExpertId] = []
    for _ in range(count):
        granted.append(choose_slot(snapshot, granted, max_expert_index=128))
    assert len(set(granted)) == count
    per_stage = [sum(expert.stage == stage for expert in granted) for stage in snapshot.stages]
    assert max(per_stage) - min(per_stage) <= 1


records = st.builds(
    server,
    st.sampled_from(STAGES),
    st.integers(0, 4),
    st.one_of(st.floats(0, 100), st.just(math.nan)),
    state=st.sampled_from(["joining", "calibrating", "serving", "draining"]),
)
swarms = st.lists(records, max_size=8, unique_by=lambda s: s.expert).map(lambda servers: swarm(*servers))
experts = st.builds(ExpertId, st.sampled_from(STAGES), st.integers(0, 4))


@given(swarms, st.sets(experts))
def test_a_slot_is_free_and_lowest(snapshot: SwarmSnapshot, granted: set[ExpertId]) -> None:
    slot = choose_slot(snapshot, granted, max_expert_index=16)
    taken = {s.expert for s in snapshot.servers} | granted
    assert slot not in taken
    assert all(ExpertId(slot.stage, lower) in taken for lower in range(slot.index))


def move(
    snapshot: SwarmSnapshot, granted: dict[ExpertId, str] | None = None, now: float = 10.0
) -> Move | None:
    gaps = dict.fromkeys(STAGES, 0.0)
    return choose_move(snapshot, granted or {}, gaps, now, patience_s=5.0, max_expert_index=8)


def test_the_spare_that_is_missed_least_moves_to_the_gap() -> None:
    spare = server("front", 1, 3.0)
    assert move(swarm(server("front", 0, 9.0), spare)) == Move(spare, B0)


@pytest.mark.parametrize(
    ("servers", "granted"),
    [
        ([server("front", 0)], {}),  # would empty the front
        ([server("front", 0), server("back", 0)], {}),  # no gap
        ([server("front", 0), server("front", 1), server("back", 3, state="joining")], {}),
        ([server("front", 0), server("front", 1)], {B0: "somebody"}),  # a grant is on its way
        ([server("front", 0), server("front", 1, state="calibrating")], {}),
        ([server("front", 0), server("front", 1)], {ExpertId("other", 0): "peer-front-1"}),  # leaving already
        ([], {}),
    ],
)
def test_reasons_not_to_move(servers: list[ServerRecord], granted: dict[ExpertId, str]) -> None:
    assert move(swarm(*servers), granted) is None


def test_grants_of_servers_that_sit_in_their_slots_change_nothing() -> None:
    snapshot = swarm(server("front", 0), server("front", 1, 3.0))
    assert move(snapshot, {F0: "peer-front-0", F1: "peer-front-1"}) == Move(snapshot.servers[1], B0)


def test_a_draining_replica_leaves_a_gap_but_keeps_its_index() -> None:
    found = move(swarm(server("front", 0), server("front", 1, 3.0), server("back", 0, state="draining")))
    assert found is not None
    assert found.target == B1


def test_a_gap_must_last() -> None:
    snapshot = swarm(server("front", 0), server("front", 1))
    since = gaps_since(snapshot, {}, now=100.0)
    assert since == {"back": 100.0}
    since = gaps_since(snapshot, since, now=104.0)
    for now, moves in ((104.9, False), (105.0, True)):
        found = choose_move(snapshot, {}, since, now, patience_s=5.0, max_expert_index=8)
        assert (found is not None) is moves
    assert gaps_since(swarm(server("front", 0), server("back", 0)), since, now=106.0) == {}


@given(swarms, st.dictionaries(experts, st.sampled_from(["peer-front-0", "peer-front-1", "peer-x"])))
def test_no_move_empties_a_stage(snapshot: SwarmSnapshot, granted: dict[ExpertId, str]) -> None:
    found = move(snapshot, granted)
    if found is not None:
        assert found.target.stage in snapshot.missing()
        assert found.target not in granted
        assert snapshot.find(found.target) is None
        left = [s for s in snapshot.serving(found.server.stage) if s != found.server and s.state == "serving"]
        assert left
