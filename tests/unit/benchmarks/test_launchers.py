"""From steps to the figure of benchmarks/launchers.py, on steps that a person can count."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.launchers import APART, KINDS, TOGETHER, rate, ratio, threads_of


def test_samples_are_those_of_steps_committed_in_between() -> None:
    steps = [{"time": at, "samples": 32} for at in (9.0, 10.0, 10.5, 12.0, 20.0, 20.5)]
    assert rate(steps, 10.0, 20.0) == pytest.approx(3 * 32 / 10.0)


def test_the_figure_is_a_ratio_of_medians() -> None:
    blocks = {
        APART: [{"samples_per_s": rate} for rate in (18.0, 100.0, 19.0)],
        TOGETHER: [{"samples_per_s": rate} for rate in (20.0, 1.0, 21.0)],
    }
    assert ratio(blocks) == pytest.approx(19.0 / 20.0)


def test_both_kinds_have_the_same_servers() -> None:
    assert {sum(counts) for counts in KINDS.values()} == {4}
    assert [len(counts) for counts in KINDS.values()] == [4, 1]


def test_the_last_word_of_each_server_counts(tmp_path: Path) -> None:
    (tmp_path / "server_0.log").write_text("CPU threads: 2\nCPU threads: 1\n")
    (tmp_path / "server_1.log").write_text("nothing\n")
    assert threads_of(tmp_path) == [1]
