"""The limit that benchmarks compare with: what 1F1B takes when communication is free."""

from __future__ import annotations

import pytest
from benchmarks.schedule import StageSeconds, makespan
from hypothesis import given
from hypothesis import strategies as st

seconds = st.floats(0.001, 10.0)
a_stage = st.builds(StageSeconds, seconds, seconds, seconds)


def test_one_stage_does_one_thing_after_the_other() -> None:
    assert makespan([StageSeconds(3.0, 0.0, 0.5)], microbatches=4) == pytest.approx(12.5)


def test_two_stages_worked_out_by_hand() -> None:
    """front  F0 F1 F2 B0 F3 B1 B2 B3     forward 1, backward 2
    back      .  L0 L0 L0 L1 ...          forward with loss and backward 3: the front waits for it
    """
    stages = [StageSeconds(1.0, 2.0, 0.25), StageSeconds(3.0, 0.0, 0.75)]
    assert makespan(stages, microbatches=1) == pytest.approx(1 + 3 + 2 + 0.75)
    assert makespan(stages, microbatches=4) == pytest.approx(1 + 4 * 3 + 2 + 0.75)


def test_a_stage_holds_two_graphs_more_than_there_are_stages_behind_it() -> None:
    """The fourth forward waits for the first backward, which waits for the slow stage behind."""
    stages = [StageSeconds(1.0, 1.0, 0.0), StageSeconds(10.0, 0.0, 0.0)]
    assert makespan(stages, microbatches=4) == pytest.approx(1 + 4 * 10 + 1)


@given(st.lists(a_stage, min_size=1, max_size=4), st.integers(1, 8))
def test_between_the_slowest_stage_alone_and_no_overlap_at_all(
    stages: list[StageSeconds], count: int
) -> None:
    last = stages[-1]
    stages = [*stages[:-1], StageSeconds(last.forward, 0.0, last.closing)]
    work = [count * (stage.forward + stage.backward) for stage in stages]
    closing = max(stage.closing for stage in stages)
    took = makespan(stages, count)
    assert max(work) + closing <= took + 1e-9
    assert took <= sum(work) + closing + 1e-9
