"""Names of attempts, and what is over."""

from __future__ import annotations

import pytest

from distqat.protocol.step_attempts import StepId, TrainerLife


@pytest.mark.parametrize(
    ("new", "old", "ends"),
    [
        (StepId("a", 0, 3, 1), StepId("a", 0, 3, 0), True),
        (StepId("a", 0, 3, 0), StepId("a", 0, 3, 1), False),
        (StepId("a", 0, 4, 1), StepId("a", 0, 3, 0), False),
        (StepId("a", 1, 0, 0), StepId("a", 0, 3, 9), True),
        (StepId("b", 1, 3, 1), StepId("a", 0, 3, 0), False),
        (StepId("a", 0, 3, 0), StepId("a", 0, 3, 0), False),
    ],
)
def test_what_supersedes_what(new: StepId, old: StepId, ends: bool) -> None:
    assert new.supersedes(old) is ends


def test_closed_attempts_and_committed_steps_are_over() -> None:
    life = TrainerLife(life=2)
    life.close(5, 1)
    life.close(5, 0)
    assert life.is_over(StepId("a", 2, 5, 1))
    assert not life.is_over(StepId("a", 2, 5, 2))
    life.commit(5, 2)
    assert life.is_over(StepId("a", 2, 5, 3))
    assert life.is_over(StepId("a", 2, 4, 0))
    assert not life.is_over(StepId("a", 2, 6, 0))
    assert life.is_over(StepId("a", 1, 9, 0))
    assert not life.is_over(StepId("a", 3, 0, 0))


def test_memory_is_bounded_and_what_is_forgotten_stays_over() -> None:
    life = TrainerLife(life=0)
    for step in range(1000):
        life.close(step, 0)
    assert len(life.closed) <= 16
    assert all(life.is_over(StepId("a", 0, step, 0)) for step in range(1000))
    assert not life.is_over(StepId("a", 0, 999, 1))


def test_an_attempt_explains_itself() -> None:
    assert str(StepId("t0", 1, 7, 2)) == "step 7 attempt 2 of trainer t0 (life 1)"
