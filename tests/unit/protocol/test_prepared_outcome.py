"""Whose word ends a prepared step: of the first stage of the route that answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.protocol.prepared_outcome import TRIES, Conclusion, PreparedOutcome
from distqat.protocol.step_attempts import Verdict

C, A, U, N = "committed", "aborted", "undecided", "unknown"
VERDICTS: list[Verdict] = ["committed", "aborted", "undecided", "unknown"]


@pytest.mark.parametrize(
    ("position", "told", "answers", "conclusion"),
    [
        (0, False, [N, U, U], "abort"),  # the first stage asks nobody
        (1, False, [C, N, U], "commit"),
        (1, False, [A, N, U], "abort"),
        (1, False, [U, N, U], "wait"),
        (1, True, [A, N], "abort"),  # the trainer could not hear it, we can
        (1, True, [U, N], "wait"),
        (1, True, [N, N, U], "commit"),  # the first stage is dead for all
        (2, False, [N, U, N], "wait"),  # the second has taken its place
        (2, False, [N, C, N], "commit"),
        (1, False, [N, N, C], "commit"),
        (1, False, [N, N, A], "abort"),
    ],
)
def test_the_first_that_answers_decides(
    position: int, told: bool, answers: list[Verdict], conclusion: Conclusion
) -> None:
    assert PreparedOutcome(position, told).conclude(answers) == conclusion


def test_who_hears_nobody_asks_again_before_it_gives_up() -> None:
    resolution = PreparedOutcome(1)
    silence: list[Verdict] = ["unknown", "unknown"]
    assert [resolution.conclude(silence) for _ in range(TRIES)] == ["wait"] * (TRIES - 1) + ["abort"]


@given(st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=5), st.data())
def test_nobody_contradicts_an_ending(answers: list[Verdict], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(answers) - 1))
    conclusion = PreparedOutcome(position, data.draw(st.booleans())).conclude(answers)
    others = [answer for i, answer in enumerate(answers) if i != position]
    if "committed" in others:
        assert conclusion == "commit"
    elif "aborted" in others:
        assert conclusion == "abort"
