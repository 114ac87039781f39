"""The rounds of a stage as a table of events and what follows. docs/protocol.md."""

from __future__ import annotations

from typing import Any

import pytest

from distqat.protocol.round_convener import (
    Action,
    CommitRound,
    ContributionOffer,
    DiscardRound,
    ExchangeContributions,
    OpenRound,
    RoundConvener,
    TellBehind,
)
from distqat.protocol.round_grace import RoundGrace

A, B, C = "back.0.0.0", "back.0.1.0", "back.0.2.0"
EXCHANGE_S = 10.0


def offer(uid: str) -> ContributionOffer:
    return ContributionOffer(f"delta of {uid}", 100, 1000)


class Table:
    """Events by name; each call gives what they led to, in short."""

    def __init__(self, *members: str) -> None:
        self.now = 0.0
        self.convener = RoundConvener(0, "d0", RoundGrace(3.0), EXCHANGE_S)
        for uid in members:
            assert self.do("joined", uid) == []

    def do(self, event: str, *arguments: Any, at: float | None = None) -> list[Any]:
        self.now = at if at is not None else self.now
        return [short(action) for action in getattr(self.convener, event)(*arguments, self.now)]

    def run(self, events: list[tuple[Any, ...]]) -> list[Any]:
        """All events, each `(name, uid, ...)`; what the last one led to."""
        led_to: list[Any] = []
        for name, *arguments in events:
            if name == "contributed":
                arguments.append(offer(arguments[0]))
            led_to = self.do(name, *arguments)
        return led_to


def short(action: Action) -> tuple[Any, ...]:
    if isinstance(action, OpenRound):
        return "open", action.round, action.attempt, action.members
    if isinstance(action, ExchangeContributions):
        return "exchange", action.round, tuple(action.offers)
    if isinstance(action, CommitRound):
        return "commit", action.round, action.digest, action.contributors
    if isinstance(action, TellBehind):
        return "behind", action.round, action.members
    return "discard", action.round, action.attempt


READY_AB = [("ready", A), ("ready", B)]
READY_ABC = [*READY_AB, ("ready", C)]
SENT_AB = [*READY_AB, ("contributed", A), ("contributed", B)]
SENT_ABC = [*READY_ABC, ("contributed", A), ("contributed", B), ("contributed", C)]


@pytest.mark.parametrize(
    ("members", "events", "led_to"),
    [
        # gathering
        ([A, B], [("ready", A)], []),
        ([A, B], READY_AB, [("open", 1, 0, (A, B))]),
        ([B, A], [("ready", B), ("ready", A)], [("open", 1, 0, (A, B))]),
        ([A, B], [("ready", A), ("ready", A)], []),
        ([A, B], [("ready", A), ("left", B)], [("open", 1, 0, (A,))]),
        ([A, B], [("ready", A), ("left", A)], []),
        ([A], [("ready", A)], [("open", 1, 0, (A,))]),
        ([], [("tick",)], []),
        # collecting
        ([A, B], [*READY_AB, ("contributed", A)], []),
        ([A, B], SENT_AB, [("exchange", 1, (A, B))]),
        ([A, B], [*READY_AB, ("contributed", B), ("contributed", A)], [("exchange", 1, (A, B))]),
        ([A, B], [*READY_AB, ("contributed", A), ("contributed", A)], []),
        ([A, B], [*READY_AB, ("contributed", A), ("left", B)], [("discard", 1, 0)]),
        (
            [A, B, C],
            [*READY_ABC, ("left", C), ("contributed", A), ("contributed", B)],
            [("exchange", 1, (A, B))],
        ),
        ([A, B, C], [*READY_ABC, ("contributed", C), ("left", C), ("contributed", A)], []),
        ([A, B, C], [*READY_ABC, ("left", B), ("left", C)], []),
        ([A, B], [*READY_AB, ("left", A), ("left", B)], [("discard", 1, 0)]),
        # voting
        ([A, B], [*SENT_AB, ("voted", A, "x")], []),
        ([A, B], [*SENT_AB, ("voted", A, "x"), ("voted", B, "x")], [("commit", 1, "x", (A, B))]),
        ([A, B], [*SENT_AB, ("voted", A, "x"), ("voted", A, "x")], []),
        ([A, B], [*SENT_AB, ("voted", A, "x"), ("voted", B, "y")], [("discard", 1, 0)]),
        ([A, B], [*SENT_AB, ("voted", A, None), ("voted", B, None)], [("discard", 1, 0)]),
        ([A, B], [*SENT_AB, ("voted", A, "x"), ("left", B)], [("discard", 1, 0)]),
        ([A, B, C], [*SENT_ABC, ("voted", A, "x"), ("voted", B, "x")], [("commit", 1, "x", (A, B, C))]),
        (
            [A, B, C],
            [*SENT_ABC, ("left", C), ("voted", A, "x"), ("voted", B, "x")],
            [("commit", 1, "x", (A, B, C))],
        ),
        ([A, B, C], [*SENT_ABC, ("voted", A, "x"), ("left", B), ("left", C)], [("discard", 1, 0)]),
        (
            [A, B, C],
            [*SENT_ABC, ("voted", C, "y"), ("voted", A, "x"), ("voted", B, "x")],
            [("commit", 1, "x", (A, B, C)), ("behind", 1, (C,))],
        ),
        (
            [A, B, C],
            [*SENT_ABC, ("voted", C, None), ("voted", A, "x"), ("voted", B, "x")],
            [("commit", 1, "x", (A, B, C)), ("behind", 1, (C,))],
        ),
        ([A], [("ready", A), ("contributed", A), ("voted", A, "x")], [("commit", 1, "x", (A,))]),
        ([A], [("ready", A), ("contributed", A), ("voted", A, None)], [("discard", 1, 0)]),
    ],
)
def test_transitions(members: list[str], events: list[tuple[Any, ...]], led_to: list[Any]) -> None:
    assert Table(*members).run(events) == led_to


@pytest.mark.parametrize(
    ("before", "event", "words"),
    [
        ([], ("ready", C), f"ready of {C}, which is not a member in round 1 (gathering)"),
        ([], ("contributed", A), f"contribution of {A} in round 1 while gathering"),
        (READY_AB, ("voted", A, "x"), f"vote of {A} in round 1 while collecting"),
        (SENT_AB, ("contributed", A), f"contribution of {A} in round 1 while voting"),
        (READY_AB, ("contributed", C), f"contribution of {C} in round 1 while collecting"),
        (SENT_AB, ("voted", C, "x"), f"vote of {C} in round 1 while voting"),
    ],
)
def test_what_cannot_happen_names_state_and_event(
    before: list[Any], event: tuple[Any, ...], words: str
) -> None:
    table = Table(A, B)
    table.run(before)
    with pytest.raises(RuntimeError) as caught:
        table.run([event])
    assert words in str(caught.value)


def test_after_a_commit_the_next_round_opens_and_after_a_discard_the_next_attempt() -> None:
    table = Table(A, B)
    table.run([*SENT_AB, ("voted", A, "x"), ("voted", B, "y")])
    assert (table.convener.round, table.convener.digest, table.convener.attempt) == (0, "d0", 1)
    assert table.run(READY_AB) == [("open", 1, 1, (A, B))]
    led_to = table.run([("contributed", A), ("contributed", B), ("voted", A, "x"), ("voted", B, "x")])
    assert led_to == [("commit", 1, "x", (A, B))]
    assert (table.convener.round, table.convener.digest, table.convener.attempt) == (1, "x", 0)
    assert table.run(READY_AB) == [("open", 2, 0, (A, B))]


def test_a_lone_survivor_goes_on_in_the_next_attempt() -> None:
    table = Table(A, B)
    assert table.run([*SENT_AB, ("voted", A, "x"), ("left", B)]) == [("discard", 1, 0)]
    led_to = table.run([("ready", A), ("contributed", A), ("voted", A, "y")])
    assert led_to == [("commit", 1, "y", (A,))]


def test_the_grace_period_ends_the_gathering_and_nobody_else_does() -> None:
    table = Table(A, B)
    assert table.do("ready", A, at=30.0) == []
    assert table.convener.next_deadline == 60.0  # as long again as the first one took
    assert table.do("tick", at=59.9) == []
    assert table.do("tick", at=60.0) == [("open", 1, 0, (A,))]


@pytest.mark.parametrize("before", [READY_AB, [*READY_AB, ("contributed", A)]])
def test_collecting_ends_with_its_time(before: list[Any]) -> None:
    table = Table(A, B)
    table.run(before)
    assert table.convener.next_deadline == EXCHANGE_S
    assert table.do("tick", at=EXCHANGE_S - 0.1) == []
    assert table.do("tick", at=EXCHANGE_S) == [("discard", 1, 0)]


def test_voting_has_a_time_of_its_own() -> None:
    table = Table(A, B)
    table.now = 8.0
    table.run([*SENT_AB, ("voted", A, "x")])
    assert table.do("tick", at=17.9) == []
    assert table.do("tick", at=18.0) == [("discard", 1, 0)]


def test_a_joiner_delays_none() -> None:
    table = Table(A, B)
    table.run([*SENT_AB, ("voted", A, "x"), ("voted", B, "x")])
    assert table.do("joined", C) == []
    assert table.run(READY_AB) == [("open", 2, 0, (A, B))]


def test_a_joiner_that_is_ready_first_waits_for_those_in_step() -> None:
    table = Table(A, B)
    table.run([*SENT_AB, ("voted", A, "x"), ("voted", B, "x")])
    table.run([("joined", C), ("ready", C)])
    assert table.run(READY_AB) == [("open", 2, 0, (A, B, C))]


def test_a_joiner_that_missed_a_round_is_behind_and_in_the_next_one_when_it_has_caught_up() -> None:
    table = Table(A)
    first = [("ready", A), ("contributed", A), ("joined", B), ("ready", B), ("voted", A, "x")]
    assert table.run(first) == [("commit", 1, "x", (A,)), ("behind", 1, (B,))]
    with pytest.raises(RuntimeError, match="is not a member"):
        table.do("ready", B)
    assert table.run([("joined", B), ("ready", B)]) == []  # at once, and opens nothing by itself
    assert table.do("tick", at=1000.0) == []
    assert table.do("ready", A) == [("open", 2, 0, (A, B))]


def test_who_was_waited_for_in_vain_is_not_waited_for_again_until_it_was_in_time() -> None:
    table = Table(A, B)
    table.do("ready", A, at=10.0)
    assert table.do("tick", at=20.0) == [("open", 1, 0, (A,))]
    assert table.run([("contributed", A), ("voted", A, "x")])[1] == ("behind", 1, (B,))
    table.do("joined", B)
    assert table.do("ready", A, at=30.0) == [("open", 2, 0, (A,))]
    table.run([("contributed", A), ("voted", A, "y"), ("joined", B), ("ready", B)])
    assert table.do("ready", A) == [("open", 3, 0, (A, B))]
    table.run([("contributed", A), ("contributed", B), ("voted", A, "z"), ("voted", B, "z")])
    assert table.do("ready", A) == []  # in step again


def test_who_is_ready_while_a_round_is_open_without_it_is_in_the_next_attempt() -> None:
    table = Table(A)
    table.run([("ready", A), ("joined", B), ("ready", B)])
    assert table.do("left", A) == [("discard", 1, 0)]
    assert table.do("tick") == [("open", 1, 1, (B,))]


def test_a_member_that_died_and_came_back_has_no_say_in_the_round_it_left() -> None:
    table = Table(A, B, C)
    table.run([*SENT_ABC, ("left", C), ("joined", C), ("voted", C, "x"), ("ready", C)])
    assert table.do("voted", A, "x") == []
    led_to = table.do("voted", B, "x")
    assert led_to == [("commit", 1, "x", (A, B, C)), ("behind", 1, (C,))]


def test_what_was_meant_for_another_attempt_is_ignored() -> None:
    table = Table(A, B)
    table.run([*SENT_AB, ("voted", A, "x"), ("voted", B, "y"), *READY_AB])
    convener, now = table.convener, table.now
    assert convener.contributed(A, offer(A), now, attempt=0) == []
    convener.contributed(A, offer(A), now, attempt=1)
    assert convener.phase == "collecting"
    convener.contributed(B, offer(B), now, attempt=1)
    assert convener.voted(A, "x", now, attempt=0) == []
    assert convener.voted(B, "x", now, attempt=0) == []
    assert convener.round == 0
    assert [short(action) for action in convener.voted(A, "z", now, attempt=1)] == []
    assert convener.voted(B, "z", now, attempt=1)[0] == CommitRound(1, "z", (A, B), (A, B), 0.0, 2000)


def test_a_record_of_a_round_tells_how_long_it_took_and_what_travelled() -> None:
    table = Table(A, B)
    table.do("ready", A, at=5.0)
    table.do("ready", B, at=6.0)
    table.run([("contributed", A), ("contributed", B)])
    table.convener.voted(A, "x", 9.0)
    (commit,) = table.convener.voted(B, "x", 9.5)
    assert isinstance(commit, CommitRound)
    assert (commit.duration_s, commit.nbytes) == (4.5, 2000)
    table.run(READY_AB)
    (discard,) = table.convener.tick(100.0)
    assert isinstance(discard, DiscardRound)
    assert discard.reason == "0 of 2 members contributed"


def test_who_was_late_once_is_in_step_again_two_rounds_later() -> None:
    """It catches up, reports ready at once, and is in the next opening: its offset does not stay for ever."""
    table = Table(A, B)
    table.do("ready", A, at=10.0)
    assert table.do("tick", at=table.convener.next_deadline) == [("open", 1, 0, (A,))]
    began = table.now
    table.do("contributed", A, offer(A))
    assert table.do("voted", A, "d1") == [("commit", 1, "d1", (A,)), ("behind", 1, (B,))]
    assert table.do("joined", B, at=began + 1) == []
    assert table.do("ready", B, at=began + 1) == []  # early: with what it has done by then
    assert table.convener.next_deadline is None  # and it starts no grace period against A
    assert table.do("tick", at=began + 9) == []
    assert table.do("ready", A, at=began + 10) == [("open", 2, 0, (A, B))]
    table.run([("contributed", A), ("contributed", B), ("voted", A, "d2"), ("voted", B, "d2")])
    assert table.do("ready", A, at=began + 20) == []  # from here on they wait for each other
    assert table.do("ready", B, at=began + 20.05) == [("open", 3, 0, (A, B))]


def test_an_opening_waits_for_those_who_began_together_and_for_no_joiner() -> None:
    convener = RoundConvener(0, "d0", RoundGrace(3.0), EXCHANGE_S)
    for uid in ("a", "b"):
        convener.joined(uid, 0.0)
        assert convener.awaits(uid)
    convener.ready("a", 1.0)
    convener.joined("c", 1.0)
    assert not convener.awaits("c")
    assert convener.ready("c", 1.1) == []
    opened = convener.ready("b", 1.2)
    assert [short(action) for action in opened] == [short(OpenRound(1, 0, ("a", "b", "c")))]
    assert convener.awaits("c")
