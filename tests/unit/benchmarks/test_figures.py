"""From blocks to figures, on blocks that a person can check."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks import figures


def block(step: float, *, forward: float = 0.4) -> dict[str, Any]:
    """Two steps of two microbatches; the front's link carries 105 bytes each way per step."""
    front = {"forward": forward, "backward": 0.8, "optimizer": 0.2, "control": 0.1}
    back = {"forward": 1.2, "optimizer": 0.1}
    return {
        "steps": [{"step": step, "open": 0.001}, {"step": step, "open": 0.001}],
        "loop_cpu_s": 0.02,
        "links": [[420, 20], [64, 0]],
        "stages": [
            {"compute_cpu_s": front, "loop_cpu_s": 0.04, "link": [210, 210]},
            {"compute_cpu_s": back, "loop_cpu_s": 0.04, "link": [0, 0]},
        ],
        "process_cpu_s": {name: {"python": 1.0, "p2pd": 0.006} for name in ("front", "back", "trainer")},
    }


def test_jobs_are_per_microbatch_and_closings_per_step() -> None:
    front, back = figures.stage_seconds(block(1.0), microbatches=2)
    assert (front.forward, front.backward, front.closing) == pytest.approx((0.1, 0.2, 0.1))
    assert (back.forward, back.backward, back.closing) == pytest.approx((0.3, 0.0, 0.05))
    with_control = figures.stage_seconds(block(1.0), microbatches=2, control=True)
    assert with_control[0].closing == pytest.approx(0.15)


def test_the_share_is_the_limit_over_the_step() -> None:
    limit = 0.1 + 2 * 0.3 + 0.2 + 0.1
    assert figures.limit_seconds(block(2.0), 2) == pytest.approx(limit)
    assert figures.share_of_limit([block(2.0), block(1.25), block(1.25)], 2) == pytest.approx(limit / 1.25)


def test_samples_per_second_come_from_the_median_block() -> None:
    assert figures.samples_per_s([block(1.0), block(2.0), block(9.0)], samples=32) == pytest.approx(16)


def test_bytes_are_per_step_and_against_the_tensors_of_that_link() -> None:
    sizes = {"inputs": 200, "activations": 100, "gradients": 100, "labels": 16}
    links = figures.link_figures([block(1.0), block(1.0)], sizes)
    assert links["front <-> back"] == pytest.approx({"out": 105, "in": 105, "tensors": 200, "ratio": 1.05})
    assert links["trainer -> front"]["ratio"] == pytest.approx(1.1)
    assert links["trainer -> back"]["ratio"] == pytest.approx(2.0)


def test_cpu_has_a_place() -> None:
    found = figures.cpu_ms_per_step([block(1.0)], ["front", "back"])
    assert found["front"]["forward"] == pytest.approx(200)
    assert found["trainer"] == pytest.approx({"loop": 10, "p2pd": 3})
