from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.process.launcher_notices import LastWords
from distqat.process.restart_policy import (
    CrashHistory,
    Decision,
    GiveUp,
    RestartAfter,
    RestartPolicy,
    RoleFinished,
    after_exit,
)

POLICY = RestartPolicy(
    first_delay_s=1.0, factor=2.0, max_delay_s=5.0, crashes=4, window_s=100.0, healthy_s=50.0, in_a_row=6
)


def crash(history: CrashHistory, now: float, ran_s: float = 0.0) -> tuple[Decision, CrashHistory]:
    return after_exit(history, POLICY, code=-9, ran_s=ran_s, now=now)


def test_delays_double_up_to_the_bound_and_then_it_is_a_crash_loop() -> None:
    history, delays = CrashHistory(), []
    for now in range(4):
        decision, history = crash(history, float(now))
        assert isinstance(decision, RestartAfter)
        delays.append(decision.delay_s)
    assert delays == [1.0, 2.0, 4.0, 5.0]
    decision, _ = crash(history, 4.0)
    assert decision == GiveUp("it crashed 5 times within 100 s")


def test_crashes_out_of_the_window_are_forgotten() -> None:
    history = CrashHistory()
    for number in range(50):
        decision, history = crash(history, number * 60.0, ran_s=55.0)
        assert isinstance(decision, RestartAfter)
    assert len(history.crashes) == 2


def test_a_loop_so_slow_that_few_crashes_fit_into_the_window_ends_too() -> None:
    """A server whose swarm is gone: it takes a while to find nobody, and the delays grow."""
    history, decisions = CrashHistory(), []
    for number in range(7):
        decision, history = crash(history, number * 40.0, ran_s=35.0)
        decisions.append(decision)
    assert all(isinstance(decision, RestartAfter) for decision in decisions[:6])
    assert decisions[6] == GiveUp("it crashed 7 times in a row and never ran for 50 s")


def test_a_healthy_run_resets_the_delay() -> None:
    _, history = crash(CrashHistory(), 0.0)
    _, history = crash(history, 1.0)
    decision, _ = crash(history, 60.0, ran_s=59.0)
    assert decision == RestartAfter(1.0)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(0, RoleFinished), (2, GiveUp), (1, RestartAfter), (-15, RestartAfter), (130, RestartAfter)],
)
def test_codes(code: int, kind: type) -> None:
    decision, _ = after_exit(CrashHistory(), POLICY, code=code, ran_s=0.0, now=0.0)
    assert isinstance(decision, kind)


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(-15, 130)), max_size=40))
def test_delays_are_bounded_and_no_more_than_crashes_fit_into_a_window(runs: list[tuple[float, int]]) -> None:
    history, now = CrashHistory(), 0.0
    for ran_s, code in runs:
        now += ran_s
        decision, history = after_exit(history, POLICY, code=code, ran_s=ran_s, now=now)
        if not isinstance(decision, RestartAfter):
            break
        assert 1.0 <= decision.delay_s <= 5.0
        assert sum(now - at < POLICY.window_s for at in history.crashes) <= POLICY.crashes
        now += decision.delay_s


def test_a_fault_that_repeats_with_the_same_sentence_is_given_up() -> None:
    history, decisions = CrashHistory(), []
    for sentence in ("a", "b", "b", "b"):
        words = LastWords(sentence, "fault")
        decision, history = after_exit(history, RestartPolicy(), code=1, ran_s=0.0, now=0.0, words=words)
        decisions.append(decision)
    assert all(isinstance(decision, RestartAfter) for decision in decisions[:3])
    assert decisions[3] == GiveUp("it ended 3 times in a row with the same error")


def test_what_comes_from_outside_may_repeat() -> None:
    history = CrashHistory()
    for _ in range(5):
        words = LastWords("port 50000 is in use", "circumstance")
        decision, history = after_exit(history, RestartPolicy(), code=1, ran_s=0.0, now=0.0, words=words)
        assert isinstance(decision, RestartAfter)


def test_a_final_end_is_not_tried_again() -> None:
    words = LastWords("the loss is not finite", "final")
    decision, _ = after_exit(CrashHistory(), RestartPolicy(), code=1, ran_s=0.0, now=0.0, words=words)
    assert decision == GiveUp("starting it again cannot help")
