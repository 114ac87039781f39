"""The arithmetic of benchmarks/failover.py."""

from __future__ import annotations

import pytest
from benchmarks.failover import QUICK, counts_of, parse
from benchmarks.failover_churn import loss_at, losses_by_samples
from benchmarks.failover_scene import Counts, Figure, Row, quantile


def step(time: float, loss: float | None, samples: int = 10, *, skipped: bool = False) -> dict[str, object]:
    return {"time": time, "loss": loss, "samples": samples, "skipped": skipped}


def test_losses_are_counted_by_samples_in_order_of_time() -> None:
    steps = [
        step(2.0, 0.5),
        step(1.0, 1.0),
        step(3.0, None),
        step(4.0, 9.0, skipped=True),
        step(5.0, 0.25, 5),
    ]
    assert losses_by_samples(steps) == [(10, 1.0), (20, 0.5), (25, 0.25)]


def test_the_loss_at_some_samples_is_that_of_the_last_fifth_before() -> None:
    losses = [(10 * n, float(n)) for n in range(1, 21)]
    assert loss_at(losses, 100) == pytest.approx(9.5)  # steps 9 and 10
    assert loss_at(losses, 200) == pytest.approx(18.5)


def test_quantiles_of_few_values_are_values() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert quantile([float(n) for n in range(100)], 0.95) == 95.0
    assert quantile([1.0], 0.5) == 1.0


def test_flags_change_counts() -> None:
    full = counts_of(parse(["--json", "x", "--churn-minutes", "5", "--kills", "7"]))
    assert (full.churn_s, full.kills, full.rounds) == (300.0, 7, Counts().rounds)
    assert counts_of(parse(["--json", "x", "--quick", "--rounds", "6"])).rounds == 6
    assert counts_of(parse(["--json", "x", "--quick"])) == QUICK


def test_the_issue_asks_for_so_much() -> None:
    counts = Counts()
    assert (counts.kills, counts.churn_s, counts.kill_every_s) == (50, 600.0, 10.0)
    assert (counts.rounds, counts.checkpoint_kills, counts.role_kills) == (300, 200, 20)


def test_a_figure_is_written_with_its_rows() -> None:
    figure = Figure(1, "recovery", [Row("p50", "<= 1 s", "0.2 s", True)], {"kills": [1]})
    written = figure.record()
    assert written["rows"] == [{"what": "p50", "goal": "<= 1 s", "measured": "0.2 s", "good": True}]
    assert (written["complete"], written["kills"]) == (False, [1])
