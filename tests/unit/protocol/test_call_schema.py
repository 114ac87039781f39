"""Every call and answer travels and comes back; what a peer may not send is refused by the field's name."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import BadFrame
from distqat.protocol.call_schema import FLAT, OTHERS, Bounds, fields_of, parse
from distqat.protocol.calls import CALLS
from distqat.protocol.calls.round_calls import JoinStage, ReadyForRound, VoteOnResult
from distqat.protocol.calls.slot_calls import (
    Beat,
    GrantedSlot,
    ReportStep,
    ReportUnreached,
    Restore,
    RunOver,
    StageMembers,
)
from distqat.protocol.calls.step_calls import (
    AttemptOutcome,
    CommitTerms,
    DecideStep,
    OpenStep,
    TrainMicrobatch,
)
from distqat.protocol.convener_actions import OpenRound
from distqat.protocol.hop import Hop, PeerAddress
from distqat.protocol.round_answers import RoundMissed
from distqat.protocol.step_attempts import StepId

ID = StepId("trainer", 7, 3, 0)
HOP = Hop("front.0.0.0", PeerAddress("peer", "host", ("/ip4/1.2.3.4/tcp/5",)))
TRAIN = TrainMicrobatch(ID, 2, 0.5, 1.0, 30.0)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """What may stand in a field of this type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner, note = args[0], args[1]
        if note == FLAT:
            return instances(inner)
        if note == OTHERS:
            return st.dictionaries(st.just("figure"), st.integers(0, 9))
        assert isinstance(note, Bounds)
        if inner is str:
            return st.text(max_size=8)
        least, most = note.least, min(note.most, 1e9)
        return st.integers(int(least), int(most)) if inner is int else st.floats(least, most)
    if origin in (Union, types.UnionType):
        return st.one_of(*(values(arg) for arg in args))
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        if args[-1] is ...:
            return st.lists(values(args[0]), max_size=3).map(tuple)
        return st.tuples(*map(values, args))
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=5), values(args[1]), max_size=3)
    if dataclasses.is_dataclass(hint):
        return instances(hint)
    simple = {
        int: st.integers(-(2**31), 2**31),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=8),
        bool: st.booleans(),
        type(None): st.none(),
        Any: st.none() | st.integers(0, 9),
    }
    return simple[hint]


def instances(kind: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind, include_extras=True)
    fields = {f.name: values(hints[f.name]) for f in dataclasses.fields(kind)}
    if kind in (Hop, GrantedSlot):
        fields["uid"] = st.sampled_from(["front.0.0.0", "back.0.12.0"])
    if kind is AttemptOutcome:
        committed = st.builds(AttemptOutcome, st.just("committed"), instances(CommitTerms))
        return committed | st.sampled_from(["aborted", "undecided", "unknown"]).map(AttemptOutcome)
    return st.builds(kind, **fields)


@given(st.data())
def test_every_call_and_answer_comes_back_as_it_was(data: st.DataObject) -> None:
    for call in CALLS.values():
        for kind in (call, *call.answers):
            sent = data.draw(instances(kind))
            wire = msgpack.unpackb(msgpack.packb(fields_of(sent)))
            assert parse(kind, wire) == sent
            if kind is not call:
                request = object.__new__(call)
                assert request.answer(wire) == sent, "another answer of the call was taken for it"


def test_the_fields_of_a_step_stand_beside_those_of_the_call() -> None:
    assert fields_of(TRAIN) == {
        "trainer": "trainer",
        "life": 7,
        "step": 3,
        "attempt": 0,
        "microbatch": 2,
        "share": 0.5,
        "scale": 1.0,
        "budget": 30.0,
    }
    terms = CommitTerms(8, False, 1.0)
    assert {"samples": 8, "skip": False, "factor": 1.0}.items() <= fields_of(DecideStep(ID, terms)).items()
    assert fields_of(HOP)["maddrs"] == ["/ip4/1.2.3.4/tcp/5"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", -1),
        ("step", True),
        ("step", 1.0),
        ("life", 2**63),
        ("trainer", "t" * 101),
        ("trainer", b"trainer"),
        ("microbatch", "2"),
        ("share", None),
        ("scale", math.nan),
        ("scale", math.inf),
        ("budget", -1.0),
        ("stands", 1),
    ],
)
def test_what_may_not_stand_in_a_field_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(BadFrame, match=field):
        parse(TrainMicrobatch, {**fields_of(TRAIN), field: value})


def test_a_field_that_is_missing_is_named_and_one_with_a_default_may_be() -> None:
    fields = fields_of(TRAIN)
    del fields["share"]
    with pytest.raises(BadFrame, match="'share' of TrainMicrobatch is missing"):
        parse(TrainMicrobatch, fields)
    assert not parse(TrainMicrobatch, fields_of(TRAIN)).stands
    with pytest.raises(BadFrame, match="must be a map"):
        parse(TrainMicrobatch, [])


def test_an_unknown_field_is_ignored_and_an_int_serves_for_a_float() -> None:
    assert parse(TrainMicrobatch, {**fields_of(TRAIN), "scale": 1, "of_a_later_release": {}}) == TRAIN


def test_a_fault_inside_a_list_is_named_with_the_way_to_it() -> None:
    sent = fields_of(OpenStep(ID, (HOP,), 4, True))
    sent["route"][0]["host"] = 5
    with pytest.raises(BadFrame, match="field 'route' field 'host' must"):
        parse(OpenStep, sent)
    sent["route"][0] = {**fields_of(HOP), "uid": "nobody"}
    with pytest.raises(BadFrame, match="nobody"):
        parse(OpenStep, sent)
    for name, long in (("uid", "f" * 513), ("peer", "p" * 513), ("host", "h" * 513), ("maddrs", ["m" * 513])):
        sent["route"][0] = {**fields_of(HOP), name: long}
        with pytest.raises(BadFrame, match=f"field 'route' field '{name}' must have a length"):
            parse(OpenStep, sent)
    sent["route"] = "front"
    with pytest.raises(BadFrame, match="route"):
        parse(OpenStep, sent)


def test_which_of_its_answers_a_call_got_is_seen_by_the_fields() -> None:
    ready = ReadyForRound("front", "front.0.0.0", 3)
    assert ready.answer({"behind": True, "round": 4}) == RoundMissed()
    assert ready.answer({"round": 4, "attempt": 0, "members": ["front.0.0.0"]}) == OpenRound(
        4, 0, ("front.0.0.0",)
    )
    with pytest.raises(BadFrame, match="attempt"):
        ready.answer({"round": 4})
    members = CALLS["members"]
    assert members.answers == (Restore, StageMembers)
    assert fields_of(Restore(0))["restore"] is True
    assert fields_of(RunOver()) == {"finished": True}
    with pytest.raises(BadFrame, match="finished"):
        parse(RunOver, {"finished": False})


def test_figures_for_people_pass_unnamed() -> None:
    beat = parse(Beat, {"uid": "front.0.0.0", "state": "serving", "round": 3, "queue": 2, "device": "cpu"})
    assert beat.figures == {"queue": 2, "device": "cpu"}
    assert fields_of(beat)["queue"] == 2


def test_nothing_is_said_of_a_vote_without_a_result() -> None:
    vote = VoteOnResult("front", "front.0.0.0", 1, 0)
    assert "digest" not in fields_of(vote)
    assert parse(VoteOnResult, {**fields_of(vote), "digest": None}) == vote
    assert fields_of(JoinStage("front", HOP, 2))["uid"] == "front.0.0.0"


def test_a_commit_comes_with_its_terms_and_nothing_else_does() -> None:
    terms = fields_of(CommitTerms(8, False, 1.0))
    assert parse(AttemptOutcome, {"verdict": "committed", "commit": terms}).commit is not None
    for broken in ({"verdict": "committed"}, {"verdict": "aborted", "commit": terms}):
        with pytest.raises(BadFrame, match="has commit"):
            parse(AttemptOutcome, broken)


@pytest.mark.parametrize(
    "peers", [{"peer": "w" * 8193}, {"p" * 513: "why"}], ids=["a text in a map", "a key of a map"]
)
def test_texts_have_a_bound_wherever_they_stand(peers: dict[str, str]) -> None:
    with pytest.raises(BadFrame, match="field 'peers' must have a length"):
        parse(ReportUnreached, {"host": "", "peers": peers})


STEP = {"pipeline": 0, "step": 1, "loss": math.nan, "samples": 8, "sps": 1.0}


@pytest.mark.parametrize(
    ("named", "fields"),
    [
        ("position", {"position": {"a": b"x"}}),
        ("progress", {"progress": {"a": [b"x"]}}),
        ("account", {"account": {"line": "x" * 20000}}),
        ("lost", {"lost": b"x"}),
        ("route", {"route": ["front.0.0.0"] * 2000}),
        ("event", {"event": "round"}),
        ("time", {"time": 0.0}),
        ("tokens_per_s", {"tokens_per_s": "abc"}),
        ("bytes_out", {"bytes_out": "abc"}),
        ("seconds", {"seconds": math.inf}),
        ("figures", {f"figure{number}": 1 for number in range(33)}),
        ("figures", {"f" * 129: 1}),
    ],
)
def test_a_report_is_small_and_can_be_kept_as_json(named: str, fields: dict[str, Any]) -> None:
    with pytest.raises(BadFrame, match=named):
        parse(ReportStep, {**STEP, **fields})


def test_a_report_of_a_step_that_diverged_is_taken() -> None:
    figures = {"loss_policy": math.inf, "skipped": True, "lost": [], "route": ["front.0.0.0"], "retries": 2}
    report = parse(ReportStep, {**STEP, **figures, "tokens_per_s": 3})
    assert report.figures == figures
    assert report.tokens_per_s == 3.0
