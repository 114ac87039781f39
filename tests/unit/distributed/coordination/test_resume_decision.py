"""Where a run goes on: decided from what servers hold, whatever they say and in whatever order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.direct_calls import hop_of

from distqat.distributed.coordination.resume_decision import HeldState, HeldStates, ResumeQuestion, decide
from distqat.errors import BadFrame
from distqat.protocol.call_schema import fields_of, parse
from distqat.protocol.calls.slot_calls import RequestSlot

STAGES = ("front", "back")


def held(round: int, *, generation: int = 5, mark: str = "", step: int = 0) -> HeldState:
    return HeldState(generation, round, f"digest {generation} {round}", step, mark)


def offer(stage: str, *rounds: int, marks: tuple[HeldState, ...] = ()) -> HeldStates:
    return HeldStates(stage, tuple(held(r) for r in sorted(rounds, reverse=True)), marks)


def test_nothing_is_decided_before_every_stage_has_a_server() -> None:
    assert decide(STAGES, {"front.0.0.0": offer("front", 3)}, []) is None


def test_one_replica_per_stage_goes_on_from_the_newest_mark_that_all_have() -> None:
    marks = [held(3, mark=f"0-1-{n}", step=n) for n in (40, 30, 20)]
    offers = {
        "front.0.0.0": offer("front", 3, 2, marks=tuple(marks)),
        "back.0.0.0": offer("back", 3, 2, marks=tuple(marks[1:])),  # it died before it wrote the last one
    }
    decision = decide(STAGES, offers, ["0-1-40", "0-1-30", "0-1-20"])
    assert decision is not None
    assert decision.mark == "0-1-30"
    assert {state.step for state in decision.states.values() if state} == {30}
    without = decide(STAGES, offers, ["0-1-20"])  # the trainer's parts of the others are broken
    assert without is not None
    assert without.mark == "0-1-20"


def test_with_replicas_each_stage_goes_on_from_its_newest_round() -> None:
    mark = (held(3, mark="0-1-30", step=30),)
    offers = {
        "front.0.0.0": offer("front", 2, marks=mark),
        "front.0.1.0": offer("front", 4, 3, marks=mark),
        "back.0.0.0": offer("back", marks=()),
    }
    decision = decide(STAGES, offers, ["0-1-30"])
    assert decision is not None
    assert decision.mark == ""
    assert decision.restorers == {"front": "front.0.1.0", "back": "back.0.0.0"}
    assert decision.states["front"] == held(4)
    assert decision.states["back"] is None  # it begins anew


@given(
    st.dictionaries(
        st.sampled_from([f"{stage}.0.{n}.0" for stage in STAGES for n in range(3)]),
        st.lists(st.integers(0, 9), max_size=4),
    )
)
def test_the_restorer_of_a_stage_holds_its_newest_round(said: dict[str, list[int]]) -> None:
    offers = {uid: offer(uid.partition(".")[0], *set(rounds)) for uid, rounds in said.items()}
    decision = decide(STAGES, offers, [])
    if decision is None:
        assert {o.stage for o in offers.values()} != set(STAGES)
        return
    for stage in STAGES:
        rounds = [r for o in offers.values() if o.stage == stage for r in o.rounds]
        best = max((r.round for r in rounds), default=None)
        state = decision.states[stage]
        assert (state.round if state else None) == best
        assert decision.restorers[stage].startswith(stage)


def request(**changes: Any) -> RequestSlot:
    rounds = [[7, 4, "d"], [5, 3, "d"]]
    stages = {"front": {"rounds": rounds, "marks": [["0-1-9", 7, 4, "d", 9]]}}
    held = {"stages": stages, "finished": changes.pop("finished", -1)}
    return parse(RequestSlot, {**fields_of(hop_of("any.0.0.0")), "held": held, "live": None, **changes})


def test_states_of_other_runs_do_not_count() -> None:
    whole = HeldStates.of("front", request(), oldest=0, finished=False)
    assert [state.generation for state in whole.rounds] == [7, 5]
    assert [state.mark for state in whole.marks] == ["0-1-9"]
    assert [s.generation for s in HeldStates.of("front", request(), oldest=6, finished=False).rounds] == [7]
    over = request(finished=7)
    assert HeldStates.of("front", over, oldest=0, finished=False) == HeldStates("front", (), ())
    assert len(HeldStates.of("front", over, oldest=0, finished=True).rounds) == 2
    assert HeldStates.of("back", request(), oldest=0, finished=False) == HeldStates("back", (), ())


def test_what_is_in_memory_comes_before_what_is_on_disk() -> None:
    live = {"generation": 7, "round": 6, "digest": "m"}
    assert HeldStates.of("front", request(live=live), oldest=0, finished=False).rounds == (
        HeldState(7, 6, "m"),
    )


@pytest.mark.parametrize(
    "broken",
    [
        {"held": 3},
        {"held": {"stages": [], "finished": -1}},
        {"held": {"stages": {"front": {"rounds": [[1]]}}, "finished": -1}},
        {"held": {"stages": {"front": {"marks": [["m", "x", 1, "d", 2]]}}, "finished": -1}},
        {"live": {"generation": "7", "round": 6, "digest": "m"}},
    ],
)
def test_nonsense_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(BadFrame):
        HeldStates.of("front", request(**broken), oldest=0, finished=False)


async def test_it_is_decided_once_all_that_are_expected_are_there() -> None:
    resumption = ResumeQuestion(STAGES, [], expected=2, waiting=True)
    deciding = asyncio.ensure_future(resumption.decided())
    resumption.offer("front.0.0.0", offer("front", 2), founded=False)
    await asyncio.sleep(0)
    assert not deciding.done()
    resumption.offer("back.0.0.0", offer("back", 2), founded=False)
    decision = await asyncio.wait_for(deciding, 5)
    assert decision is not None
    assert not resumption.waiting
    assert await resumption.decided() is decision


async def test_a_proof_opens_the_question_again_unless_the_run_began_anew() -> None:
    fresh = ResumeQuestion(STAGES, [], expected=2, waiting=False)
    assert await fresh.decided() is None
    fresh.offer("front.0.0.0", offer("front"), founded=False)
    assert not fresh.waiting
    fresh.offer("front.0.0.0", offer("front", 2), founded=True)
    assert not fresh.waiting
    fresh.offer("front.0.0.0", offer("front", 2), founded=False)
    assert fresh.waiting
    fresh.cancel()
    assert await fresh.decided() is None
