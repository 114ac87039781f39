"""The steps of a batch: which stages each trains, and what they add up to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from distqat.distributed.training.batch_phases import BatchTally, phase_steps
from distqat.protocol.hop import Hop, PeerAddress
from distqat.tasks import Batch, Phase, TaskSettings, get_task
from distqat.tasks.cv import ImageClassification


class TwoPhases(ImageClassification):
    """The last stage first, then those before it."""

    def phases(self, batch: Batch) -> Sequence[tuple[Phase, Batch]]:
        return [(Phase("back", "last"), batch), (Phase("front", "before_last"), batch)]


def batch(size: int, first: int = 0) -> Batch:
    return Batch({"x": torch.arange(first, first + size)}, {"y": torch.zeros(size)}, size)


def test_a_task_without_phases_takes_one_step_that_freezes_nothing() -> None:
    (step,) = phase_steps(get_task("cv", TaskSettings()), [batch(5)], stages=3, microbatches=2)
    assert (step.name, step.frozen, step.number, step.last, step.samples) == ("", frozenset(), 0, True, 5)
    assert [part.size for part in step.parts] == [3, 2]


@pytest.mark.parametrize(("stages", "frozen"), [(1, [set(), set()]), (2, [{0}, {1}]), (3, [{0, 1}, {2}])])
def test_phases_freeze_the_stages_that_they_do_not_train(stages: int, frozen: list[set[int]]) -> None:
    steps = phase_steps(TwoPhases(), [batch(4)], stages=stages, microbatches=1)
    assert [set(step.frozen) for step in steps] == frozen
    assert [step.last for step in steps] == [False, True]
    route = [Hop(f"s{i}.0.0.0", PeerAddress("peer")) for i in range(stages)]
    assert [steps[1].uids(route)] == [[f"s{i}.0.0.0" for i in sorted(frozen[1])]]


def test_samples_of_a_batch_are_told_once_and_batches_stay_in_their_order() -> None:
    steps = phase_steps(TwoPhases(), [batch(3), batch(2, first=3)], stages=2, microbatches=2)
    assert [step.samples for step in steps] == [5, 0]
    for step in steps:
        assert torch.cat([part.inputs["x"] for part in step.parts]).tolist() == [0, 1, 2, 3, 4]
    tally = BatchTally()
    for step, loss in zip(steps, (1.5, 0.25), strict=True):
        tally.add(step, loss, seconds=2.0)
    assert tally.fields() == {
        "loss": 1.75,
        "samples": 5,
        "seconds": 4.0,
        "loss_back": 1.5,
        "loss_front": 0.25,
    }
