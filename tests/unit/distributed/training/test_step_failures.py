"""When a trainer's failures will not go away, and what it then says."""

from __future__ import annotations

import logging
import math

import pytest

from distqat.distributed.training.step_driver import StepResult
from distqat.distributed.training.step_failures import SHORTAGES, SKIPS_END, BatchFailures, StepFailures
from distqat.errors import BadFrame, CallTimeout, DataError, PeerGone, RemoteFault, RunFailed, SwarmError


def fault(
    at: str, place: str = "distqat/models/mlp.py:9", said: str = "ValueError: no (mlp.py:9)"
) -> SwarmError:
    error = RemoteFault(f"peer: {said}")
    error.kind, error.place, error.said, error.at = said.partition(":")[0], place, said, at
    return error


def result(loss: float = 1.0, skipped: bool = False, **given: object) -> StepResult:
    return StepResult(loss, {}, 4, skipped, **given)  # type: ignore[arg-type]


def test_an_exception_that_repeats_on_other_replicas_ends_the_run() -> None:
    failures = StepFailures()
    failures.failed(fault("back.0.0.0"), 1)
    failures.failed(fault("back.0.1.0"), 1)
    with pytest.raises(RunFailed, match=r"step 1 fails at stage back .* ValueError: no \(mlp.py:9\)"):
        failures.failed(fault("back.0.0.0"), 1)


def test_a_step_between_them_forgets_the_failures() -> None:
    failures = StepFailures()
    for step in range(10):
        failures.failed(fault("back.0.0.0"), step)
        failures.failed(fault("back.0.0.0"), step)
        failures.committed(result(), step)


def test_different_places_and_stages_are_different_failures() -> None:
    failures = StepFailures()
    for number in range(10):
        failures.failed(fault("back.0.0.0", f"a.py:{number}"), 1)
    for stage in ("a", "b", "c"):
        failures.failed(fault(f"{stage}.0.0.0"), 1)


def test_peers_that_die_or_are_slow_never_end_a_run() -> None:
    failures = StepFailures()
    for kind in (PeerGone, CallTimeout) * 50:
        failures.failed(kind("front.0.0.0 is gone"), 1)


def test_a_message_that_does_not_fit_is_a_failure_whatever_numbers_it_names() -> None:
    failures = StepFailures()
    errors = [BadFrame(f"microbatch {number}: labels are missing") for number in range(3)]
    for error in errors:
        error.at = "back.0.0.0"
    failures.failed(errors[0], 1)
    failures.failed(errors[1], 1)
    with pytest.raises(RunFailed, match="labels"):
        failures.failed(errors[2], 1)


def test_memory_that_is_short_gets_more_time() -> None:
    failures = StepFailures()
    short = fault("back.0.0.0", said="OutOfMemoryError: CUDA out of memory")
    for _ in range(SHORTAGES - 1):
        failures.failed(short, 1)
        failures.failed(fault("back.0.0.0", "a.py:1", "RuntimeError: can't allocate memory"), 1)
    with pytest.raises(RunFailed, match="CUDA out of memory"):
        failures.failed(short, 1)


def test_a_commit_that_cannot_be_applied_counts_though_the_step_stands() -> None:
    failures = StepFailures()
    lost = result(lost=("back.0.0.0",), faults=(fault("back.0.0.0"),))
    failures.committed(lost, 1)
    failures.committed(lost, 2)
    with pytest.raises(RunFailed, match="stage back"):
        failures.committed(lost, 3)


def test_steps_that_are_skipped_are_told_and_then_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    failures, skipped = StepFailures(), result(math.nan, True, not_finite=("front", "back"))
    with caplog.at_level(logging.WARNING):
        for step in range(1, SKIPS_END):
            failures.committed(skipped, step)
    with pytest.raises(RunFailed) as raised:
        failures.committed(skipped, SKIPS_END)
    assert len(caplog.records) == 1
    assert "the last 10 steps, up to step 10, changed nothing: the loss is not finite" in caplog.text
    assert f"the last {SKIPS_END} steps" in str(raised.value)
    assert "at stage front, back" in str(raised.value)
    assert "lower the learning rate" in str(raised.value)


def test_one_good_step_ends_a_streak_of_skipped_ones() -> None:
    failures = StepFailures()
    for step in range(4 * SKIPS_END):
        failures.committed(result() if step % 20 == 19 else result(math.inf, True), step)


def test_other_replicas_are_tried_in_a_streak() -> None:
    failures, seen = StepFailures(), []
    for step in range(11):
        failures.committed(result(1.0, True), step)
        seen.append(failures.look_elsewhere)
    assert [step for step, elsewhere in enumerate(seen, 1) if elsewhere] == [5, 10]


def test_data_that_fail_alike_three_times_end_the_run() -> None:
    failures = BatchFailures()
    failures.failed(DataError("row 3: broken"))
    failures.failed(DataError("row 4: broken"))
    failures.failed(DataError("row 3: broken"))
    with pytest.raises(RunFailed, match="row 3: broken"):
        failures.failed(DataError("row 3: broken"))
    failures.succeeded()
    failures.failed(DataError("row 3: broken"))
