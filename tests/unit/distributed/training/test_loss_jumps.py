"""A loss that jumps where a phase of the run begins is told of; noise is not."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from distqat.distributed.training.loss_jumps import ENOUGH, SETTLED, LossWatch, PhaseChange, phase_of, tell
from distqat.protocol.calls.step_calls import StageStanding
from distqat.quant.quant_schedule import PHASES

FLOAT, TRAINING, FROZEN, MEASURING = PHASES


def follow(before: list[float], after: list[float], phase: str = FROZEN) -> list[PhaseChange]:
    watch, found = LossWatch(), []
    for step, loss in enumerate([*before, *after], start=1):
        found.append(watch.add(loss, TRAINING if step <= len(before) else phase, step))
    return [change for change in found if change is not None]


def test_the_jump_of_the_documented_example() -> None:
    """docs/extending.md with constants for BatchNorm, as it was: losses of steps 81 to 93."""
    before = [0.0043, 0.0027, 0.0033, 0.0053, 0.0036, 0.0023, 0.0032, 0.0025, 0.004, 0.0018]
    (change,) = follow(before, [0.0662, 1.7016, 0.1661])
    assert change.jumped
    assert (change.step, change.phase) == (11, FROZEN)
    assert (change.before, change.after) == (pytest.approx(0.0033, rel=0.02), pytest.approx(0.645, rel=0.01))
    assert "the loss rose from 0.0033 to 0.645 at step 11" in change.sentence()


@pytest.mark.parametrize(
    "after", [[0.9, 1.1, 1.0, 1.2, 0.8], [1.9, 1.0, 1.1, 0.9, 1.2], [0.1] * 5, [1.5] * 5]
)
def test_noise_is_no_jump(after: list[float]) -> None:
    (change,) = follow([1.0, 0.7, 1.3, 0.9, 1.2, 1.1], after)
    assert not change.jumped
    assert change.record()["loss_after"] == pytest.approx(sum(after) / len(after))


def quantized(after: list[float]) -> list[PhaseChange]:
    watch, found = LossWatch(), []
    learning = [2.0, 1.5, 1.0, *[0.1] * 12]
    for step, loss in enumerate([*learning, *after], start=1):
        found.append(watch.add(loss, FLOAT if step <= len(learning) else TRAINING, step))
    return [change for change in found if change is not None]


def test_a_loss_that_is_trained_down_again_after_quantization_is_no_jump() -> None:
    (change,) = quantized([1.5, 0.9, 0.6, 0.5, 0.4, *[0.3] * 30])
    assert not change.jumped
    assert (change.step, change.phase) == (16, TRAINING)
    assert change.record()["loss_after"] == pytest.approx(0.3)
    assert quantized([1.5] * (SETTLED - 1)) == [], "too early to say"


def test_a_loss_that_stays_up_after_quantization_is_told() -> None:
    (change,) = quantized([1.5] * 30)
    assert change.jumped
    assert "rose from 0.1 to 1.5 when the model was quantized, at step 16" in change.sentence()
    assert "quant.warmup.float_share" in change.sentence()


def test_losses_below_zero_and_around_it_can_jump_too() -> None:
    noisy = [-0.2, 0.3, -0.1, 0.1, -0.3, 0.2]
    assert not follow(noisy, [0.4, 0.1, 0.2, -0.1, 0.3])[0].jumped
    assert follow(noisy, [5.0, 6.0, 7.0])[0].jumped
    assert follow([-5.0, -5.1, -4.9], [3.0, 3.0, 3.0])[0].jumped


def test_each_change_is_told_once_and_phases_do_not_go_back() -> None:
    watch = LossWatch()
    phases = [TRAINING] * 5 + [FROZEN] * 3 + [TRAINING] * 4 + [MEASURING] * 7
    found = [watch.add(1.0, phase, step) for step, phase in enumerate(phases, start=1)]
    told = [change for change in found if change is not None]
    assert [(change.phase, change.step) for change in told] == [(FROZEN, 6), (MEASURING, 13)]
    assert [found.index(change) + 1 for change in told] == [6 + ENOUGH - 1, 13 + ENOUGH - 1]


def test_nothing_is_said_without_a_before_and_of_losses_that_are_not_finite() -> None:
    assert follow([1.0, 1.0], [9.0] * 10) == []
    (change,) = follow([1.0, 1.0, float("nan"), 1.0], [float("nan"), 1.0, 1.0, 1.0, 1.0, 1.0])
    assert (change.before, change.after) == (1.0, 1.0)


def test_the_phase_is_that_of_the_stage_that_is_furthest() -> None:
    assert (
        phase_of([StageStanding(1, phase=TRAINING), StageStanding(1, phase=FROZEN), StageStanding(1)])
        == FROZEN
    )
    assert phase_of([]) == phase_of([StageStanding(1, phase="of another version")]) == FLOAT


def test_a_jump_is_told_to_the_person_and_every_change_to_the_metrics(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Kept:
        records: list[Any] = []  # noqa: RUF012

        def write(self, record: Any) -> None:
            self.records.append(record)

        def close(self) -> None:
            return

    with caplog.at_level(logging.WARNING):
        for jumped in (False, True):
            tell(PhaseChange(FROZEN, 7, 1.0, 2.5, jumped), Kept(), 3)
        tell(None, Kept(), 3)
    assert [(each["event"], each["jumped"], each["pipeline"]) for each in Kept.records] == [
        ("phase", False, 3),
        ("phase", True, 3),
    ]
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "the loss rose from 1 to 2.5 at step 7, where the run's next phase begins: steps are frozen"
    ]
