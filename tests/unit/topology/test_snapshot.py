"""What a snapshot says about stages and pipelines."""

from __future__ import annotations

import pytest

from distqat.topology.expert import ExpertId
from distqat.topology.snapshot import ServerRecord, SwarmSnapshot

from .swarms import server, swarm


def test_serving_and_calibrating_replicas_take_steps_in_index_order() -> None:
    snapshot = swarm(
        server("front", 3), server("front", 0, state="joining"), server("front", 1, state="calibrating"),
        server("front", 2, state="draining"), server("elsewhere", 0),
    )  # fmt: skip
    assert [s.index for s in snapshot.serving("front")] == [1, 3]
    assert [s.index for s in snapshot.replicas("front")] == [0, 1, 2, 3]
    assert snapshot.missing() == ("back",)


@pytest.mark.parametrize(
    ("fronts", "backs", "pipelines"),
    [(0, 0, []), (2, 0, []), (1, 1, [0]), (2, 2, [0, 1]), (2, 3, [0, 1]), (5, 1, [0])],
)
def test_complete_pipelines_count_the_rarest_stage(fronts: int, backs: int, pipelines: list[int]) -> None:
    servers = [server("front", 2 * i) for i in range(fronts)] + [server("back", 7 + i) for i in range(backs)]
    assert swarm(*servers).complete_pipelines() == pipelines
    assert SwarmSnapshot(stages=()).complete_pipelines() == []


def test_of_two_records_for_one_slot_the_newer_tenancy_counts_whatever_the_order() -> None:
    old, new = server("front", 0, epoch=1, expires_at=9.0), server("front", 0, epoch=2, expires_at=5.0)
    fresh = server("front", 0, epoch=2, expires_at=6.0)
    for servers in ([old, new, fresh], [fresh, new, old], [new, fresh, old]):
        assert swarm(*servers).serving("front") == (fresh,)


def test_a_slot_is_found_in_any_state() -> None:
    joining: ServerRecord = server("back", 4, state="joining")
    assert swarm(joining).find(ExpertId("back", 4)) is joining
    assert swarm(joining).find(ExpertId("back", 0)) is None
    assert joining.expert.uid == "back.0.4.0"
