"""Every call of a member has its right answer in every phase, also one that comes again."""

from __future__ import annotations

from distqat.protocol.convener_actions import (
    CommitRound,
    ContributionOffer,
    DiscardRound,
    ExchangeContributions,
    OpenRound,
    TellBehind,
)
from distqat.protocol.round_answers import RoundAnswers, RoundCommitted, RoundDiscarded, RoundMissed
from distqat.protocol.round_convener import RoundConvener
from distqat.protocol.round_grace import RoundGrace

A, B, C = "full.0.0.0", "full.0.1.0", "full.0.2.0"
OFFER = ContributionOffer("delta", 10, 100)


def opened(*members: str) -> tuple[RoundAnswers, dict[int, str]]:
    """A table at which round 1 is open for all of them."""
    log = {0: "zero"}
    table = RoundAnswers(RoundConvener(0, "zero", RoundGrace(3.0), 5.0), log.get)
    for uid in members:
        table.joined(uid, 0, 0.0)
    for uid in members:
        table.ready(uid, 0, 1.0)
    assert table.convener.phase == "collecting"
    return table, log


def test_who_did_not_hear_of_the_opening_hears_it_again() -> None:
    table, _ = opened(A, B)
    assert table.ready(A, 0, 2.0) == (OpenRound(1, 0, (A, B)), [])
    assert table.ready(A, 1, 2.0) == (RoundMissed(), [])
    assert table.ready(C, 0, 2.0) == (RoundMissed(), [])


def test_who_contributed_and_is_ready_again_has_left_the_attempt() -> None:
    table, _ = opened(A, B, C)
    for uid in (A, B):
        table.contributed(uid, OFFER, 1, 0, 2.0)
    assert table.ready(A, 0, 3.0) == (None, [])
    reply, actions = table.contributed(C, OFFER, 1, 0, 4.0)
    assert reply is None
    assert actions == [ExchangeContributions(1, 0, (A, B, C), {B: OFFER, C: OFFER})]
    assert table.contributed(A, OFFER, 1, 0, 4.0) == (RoundDiscarded(f"{A} has left this attempt"), [])
    table.voted(B, "x", 1, 0, 5.0)
    _, actions = table.voted(C, "x", 1, 0, 5.0)
    assert [type(action) for action in actions] == [CommitRound, TellBehind]
    assert actions[1] == TellBehind(1, (A,))


def test_who_dropped_a_discarded_attempt_is_ready_for_the_next() -> None:
    table, _ = opened(A, B)
    table.contributed(A, OFFER, 1, 0, 2.0)
    table.ready(A, 0, 3.0)
    _, actions = table.contributed(B, OFFER, 1, 0, 4.0)
    assert [type(action) for action in actions] == [DiscardRound]
    assert table.ready(B, 0, 5.0) == (None, [OpenRound(1, 1, (A, B))])


def test_a_contribution_that_is_late_for_the_set_is_answered_with_it() -> None:
    table, log = opened(A, B, C)
    for uid in (A, B):
        table.contributed(uid, OFFER, 1, 0, 2.0)
    (exchange,) = table.tick(7.0)
    assert table.contributed(C, OFFER, 1, 0, 7.0) == (exchange, [])
    table.voted(A, "x", 1, 0, 8.0)
    _, actions = table.voted(B, "x", 1, 0, 8.0)
    assert [type(action) for action in actions] == [CommitRound]  # C holds the set, and the result soon
    log[1] = "x"
    assert table.voted(C, "x", 1, 0, 9.0) == (RoundCommitted("x"), [])
    assert table.contributed(C, OFFER, 1, 0, 9.0) == (RoundCommitted("x"), [])


def test_a_vote_on_an_attempt_that_is_over_hears_so() -> None:
    table, _ = opened(A)
    assert table.voted(A, "x", 1, 0, 2.0) == (RoundDiscarded("there is no set to vote on yet"), [])
    table.contributed(A, OFFER, 1, 0, 2.0)
    table.voted(A, None, 1, 0, 2.0)
    assert table.voted(A, "x", 1, 0, 3.0) == (RoundDiscarded("this attempt is over"), [])


def test_after_a_restart_nothing_opens_before_the_members_are_back() -> None:
    table = RoundAnswers(RoundConvener(4, "four", RoundGrace(3.0), 5.0, settled_at=103.0), {4: "four"}.get)
    table.joined(A, 4, 100.5)
    assert table.ready(A, 4, 101.0) == (None, [])
    assert table.convener.next_deadline is not None
    assert table.convener.next_deadline >= 103.0
    table.joined(B, 4, 102.0)  # in step, though another was ready before it came
    assert table.tick(102.9) == []
    assert table.tick(103.0) == []
    assert table.ready(B, 4, 103.5) == (None, [OpenRound(5, 0, (A, B))])
