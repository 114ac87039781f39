"""Routes by fake times: new first, stay unless clearly better, set aside after a failure."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import StageUnavailable
from distqat.topology.expert import ExpertId
from distqat.topology.routing import Router
from distqat.topology.snapshot import SwarmSnapshot

from .swarms import server, swarm

TWO = swarm(server("front", 0), server("front", 1), server("back", 0), stages=("front", "back"))
F0, F1, B0 = ExpertId("front", 0), ExpertId("front", 1), ExpertId("back", 0)


def front(router: Router, snapshot: SwarmSnapshot, now: float = 0.0, preferred: int = 0) -> int:
    return router.choose(snapshot, preferred, now)["front"].index


def measured(rate_0: float, rate_1: float) -> Router:
    """A router whose front 0 is current, with both fronts measured."""
    router = Router()
    for expert, rate in ((F0, rate_0), (F1, rate_1)):
        assert ExpertId("front", front(router, TWO)) == expert
        router.succeeded(expert, rate, 0.0)
    return router


def test_a_route_has_one_replica_per_stage_in_pipeline_order() -> None:
    route = Router().choose(TWO, 1, 0.0)
    assert route.experts == (F1, B0)
    assert route["back"].peer_id == "peer-back-0"
    with pytest.raises(KeyError):
        route["middle"]


def test_trainers_start_on_different_replicas() -> None:
    assert [front(Router(), TWO, preferred=index) for index in range(4)] == [0, 1, 0, 1]


def test_new_servers_are_tried_first_and_the_choice_returns() -> None:
    router = measured(10.0, 10.0)
    assert front(router, TWO) == 0
    newcomer = swarm(*TWO.servers, server("front", 2), stages=TWO.stages)
    assert front(router, newcomer) == 2
    router.succeeded(ExpertId("front", 2), 10.0, 0.0)
    assert front(router, newcomer) == 0


@pytest.mark.parametrize(("rate", "index"), [(5.0, 0), (10.0, 0), (12.0, 0), (12.1, 1), (100.0, 1)])
def test_hysteresis_of_20_percent(rate: float, index: int) -> None:
    assert front(measured(10.0, rate), TWO) == index


def test_the_average_moves_and_noise_does_not_switch() -> None:
    router = measured(10.0, 10.5)
    for rate in (9.0, 11.0, 9.5, 10.0, 8.8):
        assert front(router, TWO) == 0
        router.succeeded(F0, rate, 0.0)
    router = measured(10.0, 10.0)
    for _ in range(10):
        router.succeeded(F0, 1.0, 0.0)
    assert router.samples_per_s(F0) == pytest.approx(1.0 + 9.0 * 0.7**10)
    assert front(router, TWO) == 1


def test_a_failed_replica_is_left_at_once() -> None:
    router = measured(10.0, 10.0)
    router.failed(F0, 1.0)
    assert front(router, TWO, 1.0) == 1
    assert front(router, TWO, 1e6) == 1  # a stale record never comes back by itself


def renewed(expires_at: float, **changes: object) -> SwarmSnapshot:
    return swarm(
        server("front", 0, expires_at=expires_at, **changes), server("back", 0), stages=("front", "back")
    )


def test_it_comes_back_when_renewed_and_its_back_off_is_over_which_doubles() -> None:
    router, now, expiry = Router(backoff_s=1.0, max_backoff_s=8.0), 0.0, 100.0
    for pause in (1.0, 2.0, 4.0, 8.0, 8.0):
        assert front(router, renewed(expiry), now) == 0
        router.failed(F0, now)
        with pytest.raises(StageUnavailable):  # back-off over, but not declared again
            router.choose(renewed(expiry), 0, now + pause)
        expiry += 2.0
        with pytest.raises(StageUnavailable):  # declared again, but back-off not over
            router.choose(renewed(expiry), 0, now + pause * 0.99)
        now += pause
    assert front(router, renewed(expiry), now) == 0
    router.succeeded(F0, 5.0, now)
    router.failed(F0, now)
    assert front(router, renewed(expiry + 2.0), now + 1.0) == 0  # success resets the back-off


@pytest.mark.parametrize("changes", [{"epoch": 2}, {"peer_id": "another"}])
def test_a_new_tenancy_starts_afresh(changes: dict[str, object]) -> None:
    router = Router()
    router.choose(renewed(100.0), 0, 0.0)
    router.succeeded(F0, 5.0, 0.0)
    router.failed(F0, 0.0)
    assert front(router, renewed(100.0, **changes)) == 0
    assert router.samples_per_s(F0) is None


def test_every_missing_stage_is_named() -> None:
    with pytest.raises(StageUnavailable, match="'front', 'back'"):
        Router().choose(swarm(server("front", 0, state="draining")), 0, 0.0)
    router = Router()
    router.choose(TWO, 0, 0.0)
    router.failed(B0, 0.0)
    with pytest.raises(StageUnavailable, match=r"'back' \(1 set aside"):
        router.choose(TWO, 0, 0.0)


def test_a_server_that_is_there_and_failed_is_no_reason_to_start_another() -> None:
    router = Router()
    router.choose(TWO, 0, 0.0)
    router.failed(B0, 0.0, "it cannot be connected to")
    with pytest.raises(StageUnavailable) as failed:
        router.choose(TWO, 0, 0.0)
    assert str(failed.value) == (
        "no replica for stage 'back' (1 set aside after failures: back.0.0.0: it cannot be connected to); "
        "the step waits until one declares itself again"
    )
    with pytest.raises(StageUnavailable, match=r"'front'; the step waits .* itself: start a server"):
        Router().choose(swarm(server("back", 0), stages=("front", "back")), 0, 0.0)


def test_news_of_servers_that_have_left_is_ignored() -> None:
    router = Router()
    router.succeeded(F0, 1.0, 0.0)
    router.failed(F0, 0.0)
    assert router.samples_per_s(F0) is None
    assert front(router, TWO) == 0


def test_smoothing_is_checked() -> None:
    with pytest.raises(ValueError, match="smoothing"):
        Router(smoothing=0.0)


@given(st.lists(st.tuples(st.sampled_from(["ok", "fail", "renew"]), st.integers(0, 3), st.floats(0.1, 100))))
def test_whatever_happens_a_route_is_not_over_a_record_that_failed(
    events: list[tuple[str, int, float]],
) -> None:
    router, now = Router(), 0.0
    servers = [server(stage, index) for stage in ("front", "back") for index in (0, 1)]
    failed_at: dict[ExpertId, float] = {}
    router.choose(swarm(*servers), 0, now)
    for kind, which, value in events:
        now += 0.5
        expert = servers[which].expert
        if kind == "ok":
            router.succeeded(expert, value, now)
            failed_at.pop(expert, None)
        elif kind == "fail":
            router.failed(expert, now)
            failed_at[expert] = servers[which].expires_at
        else:
            servers[which] = dataclasses.replace(servers[which], expires_at=servers[which].expires_at + 1.0)
        try:
            route = router.choose(swarm(*servers), 0, now)
        except StageUnavailable:
            assert failed_at
            continue
        for chosen in route.servers:
            assert chosen.expires_at > failed_at.get(chosen.expert, -1.0)
