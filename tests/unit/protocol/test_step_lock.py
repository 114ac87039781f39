"""Step windows: one holder, first come first served, nobody starves; by fake times."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.errors import Busy, Refused, StaleAttempt
from distqat.protocol.step_attempts import StepId
from distqat.protocol.step_lock import (
    TRANSITIONS,
    Action,
    LockExpired,
    LockGrant,
    LockQuiet,
    LockRefused,
    ResolvePrepared,
    StepLock,
)


def step(trainer: str, number: int = 0, attempt: int = 0, life: int = 0) -> StepId:
    return StepId(trainer, life, number, attempt)


A0, B0, C0 = step("a"), step("b"), step("c")


def held_by_a() -> StepLock:
    windows = StepLock(lease_s=10.0)
    assert windows.request(A0, 0.0) == [LockGrant(A0, 10.0)]
    return windows


def test_first_come_first_served() -> None:
    windows = held_by_a()
    assert windows.request(B0, 1.0) == []
    assert windows.request(C0, 2.0) == []
    assert windows.waiting == (B0, C0)
    windows.prepare(A0, 3.0)
    assert windows.commit(A0, 4.0) == [LockGrant(B0, 14.0)]
    assert windows.abort(B0, 5.0) == [LockGrant(C0, 15.0)]
    windows.prepare(C0, 6.0)
    assert windows.commit(C0, 6.0) == []
    assert windows.holder is None
    assert windows.next_deadline is None


def test_repeated_requests_change_nothing_but_the_lease() -> None:
    windows = held_by_a()
    windows.request(B0, 1.0)
    assert windows.request(B0, 2.0) == []
    assert windows.request(A0, 5.0) == [LockGrant(A0, 15.0)]
    assert windows.waiting == (B0,)
    assert windows.next_deadline == 15.0


def test_the_next_step_of_the_holder_waits_its_turn() -> None:
    windows = held_by_a()
    windows.request(B0, 0.0)
    assert windows.request(step("a", 1), 0.0) == []
    windows.prepare(A0, 0.0)
    assert windows.commit(A0, 0.0) == [LockGrant(B0, 10.0)]
    assert windows.abort(B0, 0.0) == [LockGrant(step("a", 1), 10.0)]


def test_repeated_commit_and_abort_do_nothing() -> None:
    windows = held_by_a()
    windows.request(B0, 0.0)
    windows.prepare(A0, 1.0)
    windows.prepare(A0, 1.0)
    windows.commit(A0, 1.0)
    assert windows.commit(A0, 1.0) == []
    windows.abort(B0, 1.0)
    assert windows.abort(B0, 1.0) == []


def test_a_step_that_is_over_is_refused() -> None:
    windows = held_by_a()
    windows.prepare(A0, 0.0)
    windows.commit(A0, 0.0)
    with pytest.raises(StaleAttempt):
        windows.request(A0, 1.0)
    with pytest.raises(StaleAttempt, match="committed here"):
        windows.abort(A0, 1.0)
    with pytest.raises(StaleAttempt):
        windows.request(step("a", 0, attempt=3), 1.0)


def test_a_commit_ends_what_still_waits_of_earlier_steps() -> None:
    windows, later = StepLock(lease_s=10.0), step("a", 3)
    windows.request(later, 0.0)
    windows.request(step("a", 2), 0.0)
    windows.request(B0, 0.0)
    windows.prepare(later, 1.0)
    assert windows.commit(later, 1.0) == [
        LockRefused(step("a", 2), f"{later} is committed"),
        LockGrant(B0, 11.0),
    ]


def test_an_abort_that_overtakes_its_request_wins() -> None:
    windows = StepLock(lease_s=1.0)
    assert windows.abort(A0, 0.0) == []
    with pytest.raises(StaleAttempt):
        windows.request(A0, 0.0)
    assert windows.request(step("a", 0, attempt=1), 0.0) == [LockGrant(step("a", 0, 1), 1.0)]


def test_a_newer_attempt_ends_the_older_holder_and_queues_behind() -> None:
    windows = held_by_a()
    windows.request(B0, 0.0)
    newer = step("a", 0, attempt=1)
    assert windows.request(newer, 1.0) == [LockExpired(A0, f"{newer} came"), LockGrant(B0, 11.0)]
    assert windows.waiting == (newer,)
    with pytest.raises(StaleAttempt):
        windows.request(A0, 2.0)
    with pytest.raises(StaleAttempt):
        windows.commit(A0, 2.0)


def test_a_newer_attempt_ends_an_older_waiter() -> None:
    windows = held_by_a()
    windows.request(B0, 0.0)
    newer = step("b", 0, attempt=2)
    assert windows.request(newer, 0.0) == [LockRefused(B0, f"{newer} came")]
    for attempt in (0, 1):
        with pytest.raises(StaleAttempt):
            windows.request(step("b", 0, attempt), 0.0)


def test_a_failed_step_is_tried_again_although_the_next_one_was_aborted_too() -> None:
    windows = held_by_a()
    windows.request(step("a", 1), 0.0)
    windows.abort(step("a", 1), 1.0)
    windows.abort(A0, 1.0)
    assert windows.request(step("a", 0, attempt=1), 2.0) == [LockGrant(step("a", 0, 1), 12.0)]


def test_a_silent_holder_expires_and_a_touched_one_does_not() -> None:
    windows = held_by_a()
    windows.request(B0, 0.0)
    windows.touch(A0, 6.0)
    assert windows.tick(15.9) == []
    assert windows.tick(16.0) == [LockExpired(A0, "silent for 10 s"), LockGrant(B0, 26.0)]
    with pytest.raises(StaleAttempt):
        windows.prepare(A0, 17.0)


def test_a_prepared_step_is_resolved_never_expired() -> None:
    windows = held_by_a()
    windows.request(B0, 0.0)
    windows.prepare(A0, 0.0)
    assert windows.tick(10.0) == [ResolvePrepared(A0)]
    assert windows.tick(19.9) == []
    assert windows.tick(20.0) == [ResolvePrepared(A0)]
    assert windows.commit(A0, 21.0) == [LockGrant(B0, 31.0)]


def test_a_new_life_of_the_trainer_ends_the_old_one() -> None:
    windows = held_by_a()
    windows.request(step("a", 1), 0.0)
    reborn = step("a", 0, life=1)
    assert windows.request(reborn, 1.0) == [
        LockRefused(step("a", 1), f"{reborn} came"),
        LockExpired(A0, f"{reborn} came"),
        LockGrant(reborn, 11.0),
    ]
    with pytest.raises(StaleAttempt):
        windows.request(step("a", 5), 1.0)


def test_a_new_life_waits_while_a_prepared_step_of_the_old_one_is_resolved() -> None:
    windows = held_by_a()
    windows.prepare(A0, 0.0)
    reborn = step("a", 0, life=1)
    assert windows.request(reborn, 1.0) == [ResolvePrepared(A0)]
    assert windows.commit(A0, 2.0) == [LockGrant(reborn, 12.0)]


def test_a_trainer_that_is_gone_leaves_queue_and_window() -> None:
    windows = held_by_a()
    windows.request(B0, 0.0)
    windows.request(C0, 0.0)
    assert windows.gone("b", 1.0) == [LockRefused(B0, "its trainer is gone")]
    assert windows.gone("a", 1.0) == [LockExpired(A0, "its trainer is gone"), LockGrant(C0, 11.0)]
    windows.prepare(C0, 2.0)
    assert windows.gone("c", 2.0) == [ResolvePrepared(C0)]
    assert windows.gone("nobody", 2.0) == []


def test_a_pause_lets_the_holder_finish_and_then_is_quiet() -> None:
    windows = held_by_a()
    windows.request(B0, 0.0)
    assert windows.pause(1.0) == []
    windows.prepare(A0, 2.0)
    assert windows.commit(A0, 2.0) == [LockQuiet()]
    assert windows.request(C0, 2.0) == []
    assert windows.abort(C0, 2.0) == []
    assert windows.resume(3.0) == [LockGrant(B0, 13.0)]


def test_an_idle_pause_is_quiet_at_once_and_impossible_events_name_the_state() -> None:
    windows = StepLock(lease_s=1.0)
    assert windows.pause(0.0) == [LockQuiet()]
    with pytest.raises(RuntimeError, match="pause in state idle, paused"):
        windows.pause(0.0)
    assert windows.resume(0.0) == []
    with pytest.raises(RuntimeError, match="resume in state idle"):
        windows.resume(0.0)
    with pytest.raises(ValueError, match="lease_s"):
        StepLock(lease_s=0.0)


def test_what_a_peer_does_wrong_is_refused_and_changes_nothing() -> None:
    windows = held_by_a()
    windows.request(B0, 0.0)
    for event in (windows.touch, windows.prepare, windows.commit):
        with pytest.raises(Refused, match="in state held by step 0 attempt 0 of trainer a"):
            event(B0, 1.0)
    with pytest.raises(Refused, match="never prepared"):
        windows.commit(A0, 1.0)
    assert (windows.holder, windows.waiting) == (A0, (B0,))


def test_a_full_queue_answers_busy_and_keeps_what_it_has() -> None:
    windows = StepLock(lease_s=1.0, max_waiting=1)
    windows.request(A0, 0.0)
    windows.request(B0, 0.0)
    with pytest.raises(Busy, match="take another"):
        windows.request(C0, 0.0)
    assert windows.request(step("b", 0, attempt=1), 0.0) == [LockRefused(B0, f"{step('b', 0, 1)} came")]


EVENTS = st.tuples(
    st.sampled_from(["request", "touch", "prepare", "commit", "abort", "gone", "tick", "pause"]),
    st.sampled_from("abcd"),
    st.integers(0, 3),  # step
    st.integers(0, 2),  # attempt
    st.integers(0, 1),  # life
    st.floats(0.0, 4.0),  # seconds since the last event
)


class Watched:
    """The machine beside the plainest model of it: the order of requests and the actions seen."""

    def __init__(self) -> None:
        self.windows, self.now, self.paused = StepLock(lease_s=5.0), 0.0, False
        self.open: StepId | None = None
        self.order: list[StepId] = []

    def feed(self, kind: str, id: StepId) -> None:
        if kind == "pause":
            actions = self.windows.resume(self.now) if self.paused else self.windows.pause(self.now)
            self.paused = not self.paused
        elif kind == "tick":
            actions = self.windows.tick(self.now)
        elif kind == "gone":
            actions = self.windows.gone(id.trainer, self.now)
        else:
            actions = self.ask(kind, id)
        self.follow(actions)

    def ask(self, kind: str, id: StepId) -> list[Action]:
        before = self.windows.holder, self.windows.waiting
        try:
            actions: list[Action] | None = getattr(self.windows, kind)(id, self.now)
        except (Refused, StaleAttempt, Busy):
            assert (self.windows.holder, self.windows.waiting) == before
            return []
        if kind in ("commit", "abort"):
            self.open = None if self.open == id else self.open
            self.order = [other for other in self.order if other != id]
        elif kind == "request" and id != self.open and id not in self.order:
            self.order.append(id)
        return actions or []

    def follow(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, LockGrant) and action.id != self.open:
                assert self.open is None, "two holders"
                assert action.id == self.order[0], "out of order"
                assert not self.paused
                self.open = self.order.pop(0)
            elif isinstance(action, LockExpired):
                assert self.open == action.id
                self.open = None
            elif isinstance(action, LockRefused):
                self.order.remove(action.id)
            elif isinstance(action, LockQuiet):
                assert self.paused
                assert self.open is None
        assert self.open == self.windows.holder
        assert tuple(self.order) == self.windows.waiting
        assert self.paused or self.open or not self.order, "idle while somebody waits"

    def drain(self) -> None:
        """Nobody starves: without new requests every waiter is granted in turn."""
        if self.paused:
            self.feed("pause", A0)
        for _ in range(2 * len(self.order) + 2):
            if self.open is None:
                break
            self.windows.prepare(self.open, self.now)
            self.feed("commit", self.open)
        assert self.open is None
        assert not self.order


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=60))
def test_any_sequence_keeps_one_holder_in_order_and_starves_nobody(
    events: list[tuple[str, str, int, int, int, float]],
) -> None:
    watched = Watched()
    for kind, trainer, number, attempt, life, seconds in events:
        watched.now += seconds
        watched.feed(kind, StepId(trainer, life, number, attempt))
    watched.drain()


@settings(max_examples=200)
@given(st.lists(EVENTS, max_size=60))
def test_no_attempt_is_granted_again_after_it_was_over(
    events: list[tuple[str, str, int, int, int, float]],
) -> None:
    watched, committed = Watched(), set()
    for kind, trainer, number, attempt, life, seconds in events:
        watched.now += seconds
        id = StepId(trainer, life, number, attempt)
        held = watched.windows.holder
        if kind == "commit" and held is not None:
            id = held
            watched.windows.prepare(id, watched.now)
            assert (id.trainer, id.life, id.step) not in committed
            committed.add((id.trainer, id.life, id.step))
        watched.feed(kind, id)


def test_a_decided_step_is_neither_undone_nor_resolved() -> None:
    windows = held_by_a()
    with pytest.raises(Refused, match="never prepared"):
        windows.decide(A0, 1.0)
    windows.prepare(A0, 1.0)
    assert windows.verdict(A0) == "undecided"
    windows.decide(A0, 2.0)
    windows.decide(A0, 2.0)
    assert windows.verdict(A0) == "committed"
    with pytest.raises(StaleAttempt, match="committed here"):
        windows.abort(A0, 3.0)
    assert windows.gone("a", 3.0) == []
    assert windows.tick(50.0) == []
    assert windows.request(step("a", 1, life=1), 50.0) == []
    assert windows.holder == A0
    assert windows.commit(A0, 51.0) == [LockGrant(step("a", 1, life=1), 61.0)]
    assert windows.verdict(A0) == "committed"


def test_what_a_verdict_says_of_an_abort_binds() -> None:
    windows = held_by_a()
    assert windows.verdict(B0) == "unknown"
    windows.request(B0, 0.0)
    windows.prepare(A0, 0.0)
    windows.abort(A0, 1.0)
    assert windows.verdict(A0) == "aborted"
    for refused in (windows.decide, windows.commit, windows.prepare):
        with pytest.raises(StaleAttempt):
            refused(A0, 2.0)
    windows.gone("b", 3.0)
    assert windows.verdict(B0) == "aborted"
    windows.abort(C0, 4.0)  # before it was ever seen
    assert windows.verdict(C0) == "aborted"


def test_a_repeated_commit_of_an_older_step_releases_nobody() -> None:
    windows = held_by_a()
    windows.request(B0, 0.0)
    windows.prepare(A0, 0.0)
    windows.commit(A0, 1.0)
    windows.abort(B0, 1.0)
    later = step("a", 1)
    windows.request(later, 2.0)
    windows.prepare(later, 2.0)
    windows.commit(later, 2.0)
    windows.request(C0, 3.0)
    with pytest.raises(StaleAttempt):
        windows.commit(A0, 4.0)
    assert windows.holder == C0


def test_every_entry_of_the_table_happens_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[str, str]] = set()
    enter = StepLock._enter

    def watched(self: StepLock, event: str) -> None:
        seen.add((self.state, event))
        enter(self, event)

    monkeypatch.setattr(StepLock, "_enter", watched)
    for end in ("abort", "newer", "newer life", "gone"):
        for begun in ("held", "prepared", "decided"):
            windows = held_by_a()
            if begun != "held":
                windows.prepare(A0, 1.0)
                windows.prepare(A0, 1.0)
            if begun == "decided":
                windows.decide(A0, 1.0)
                windows.prepare(A0, 1.0)
            if end == "abort" and begun != "decided":
                windows.abort(A0, 2.0)
            elif end == "newer":
                windows.request(step("a", attempt=1), 2.0)
            elif end == "newer life":
                windows.request(step("a", life=1), 2.0)
            elif end == "gone":
                windows.gone("a", 2.0)
            if begun == "decided":
                windows.commit(A0, 3.0)
    assert seen | {("decided", "decide")} == TRANSITIONS.keys()
    idle = StepLock(lease_s=10.0)
    with pytest.raises(RuntimeError, match="decide in state idle"):
        idle._enter("decide")
