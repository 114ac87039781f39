"""The samples of a step are the client's word, bounded by the servers that say so."""

from __future__ import annotations

import logging

import pytest

from distqat.distributed.training.step_size import BATCH_SIZE, StepSize
from distqat.topology.snapshot import ServerRecord


def server(index: int, **metrics: float) -> ServerRecord:
    return ServerRecord("p", "front", index, 1, "serving", 0.0, 0, 0, "", "", metrics=metrics)


def test_the_smallest_bound_counts_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    size = StepSize(32)
    with caplog.at_level(logging.INFO):
        assert size.over([]) == size.over([server(0)]) == 32
        assert caplog.text == ""
        small = [server(0), server(1, **{BATCH_SIZE: 4.0})]
        assert size.over(small) == size.over(small) == 4
        assert size.over([server(0, **{BATCH_SIZE: 64.0})]) == 32  # no server makes steps larger
    assert [r.getMessage() for r in caplog.records] == [
        "steps of 4 samples: front.0.1.0 takes no more",
        "steps of 32 samples",
    ]


def test_a_step_has_one_sample_at_least() -> None:
    assert StepSize(32).over([server(0, **{BATCH_SIZE: 0.0})]) == 1
