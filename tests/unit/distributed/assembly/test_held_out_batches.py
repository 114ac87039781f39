"""The held-out part is looked at before a run begins, and a broken sample costs no model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distqat.config import Config, load_config
from distqat.data.source import NoData, Source
from distqat.distributed.assembly.evaluation import EvaluationResult, NotJudged, judge, judge_or_say, show
from distqat.distributed.assembly.held_out_batches import check_heldout, heldout_batches, heldout_problem
from distqat.errors import DataError, TaskError
from distqat.tasks import Batch, Sample, Task, get_task
from distqat.tasks.base import TaskSettings

SAMPLE: Sample = {"image": torch.zeros(1, 8, 8), "label": 0}
BROKEN: Sample = {"image": {"bytes": b"\x89PNG cut short"}, "label": 0}


class HeldOut(NoData):
    """A source of these held-out samples."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = samples

    def heldout(self) -> Iterable[Sample]:
        return self._samples


def config(**changes: Any) -> Config:
    return load_config("configs/mlp_full.yaml", {"quant.enabled": False, **changes})


def images() -> Task:
    return get_task("cv", TaskSettings(num_classes=10, num_channels=1, img_size=8))


def test_a_broken_sample_is_named_by_its_number() -> None:
    samples = [SAMPLE] * 300
    samples[270] = BROKEN
    with pytest.raises(
        DataError, match=r"held-out samples 257 to 300 .*: sample 14 of .*not an image that Pillow knows"
    ):
        list(heldout_batches(images(), samples))


def test_samples_that_do_not_go_together_are_named_too() -> None:
    class Fussy(Task):
        def collate(self, samples: Sequence[Sample]) -> Batch:
            if len(samples) > 1:
                raise ValueError("one at a time")
            return Batch({}, {}, 1)

    with pytest.raises(DataError, match=r"held-out samples 1 to 3 .* make no batch .*: one at a time"):
        list(heldout_batches(Fussy(), [SAMPLE] * 3))


def test_an_empty_part_is_found_at_the_start() -> None:
    with pytest.raises(DataError, match=r"held-out part of 'digits' is empty, .* named validation or test"):
        check_heldout(config(), images(), HeldOut([]))
    text = load_config("configs/distilgpt2.yaml", {"data.sequence_length": 64})
    with pytest.raises(DataError, match=r"a sequence of data\.sequence_length 64 tokens; add text"):
        check_heldout(text, images(), HeldOut([]))


def test_what_a_source_raises_is_found_at_the_start() -> None:
    def cut() -> Iterable[Sample]:
        yield SAMPLE
        raise EOFError("cut short")

    problem = heldout_problem(config(), images(), HeldOut(cut()))
    assert isinstance(problem, DataError)
    assert "cannot be read: EOFError: cut short (" in str(problem)
    assert heldout_problem(config(), images(), HeldOut([SAMPLE])) is None


class Zeros(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 10)


def test_at_the_end_it_is_said_and_not_raised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found: Source = HeldOut([SAMPLE, BROKEN])
    monkeypatch.setattr("distqat.distributed.assembly.evaluation.open_data", lambda _: found)
    with caplog.at_level(logging.WARNING):
        judged = judge_or_say(config(), {"full": Zeros()})
    assert isinstance(judged, NotJudged)
    assert "held-out samples 1 to 2 (from 1): sample 1 of a batch (from 0): " in judged.why
    assert "the model could not be judged" in caplog.text
    found = HeldOut([SAMPLE])
    assert judge_or_say(config(), {"full": Zeros()}) == EvaluationResult("accuracy", 1.0, judge_loss(), 1)


def judge_loss() -> float:
    return float(torch.log(torch.tensor(10.0)))


def test_what_a_model_or_plugin_raises_is_one_of_ours() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise IndexError("of my own")

    with pytest.raises(
        TaskError, match=r"held-out part of 'digits' cannot be judged: IndexError: of my own \("
    ):
        judge(config(), {"full": Broken()}, HeldOut([SAMPLE]))


def test_a_metric_that_is_no_number_is_no_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = EvaluationResult("perplexity", float("inf"), float("inf"), 3)
    monkeypatch.setattr("distqat.distributed.assembly.evaluation.judge", lambda *_: lost)
    assert judge_or_say(config(), {}) == NotJudged("the perplexity on held-out data is inf")
    lost = EvaluationResult("accuracy", 0.1, float("nan"), 3)
    assert judge_or_say(config(), {}) == NotJudged(
        "the loss on held-out data is nan (accuracy 0.1000 on 3 held-out samples)"
    )
    acting = load_config("configs/dcgan.yaml")  # it has a distance, and no loss
    assert judge_or_say(acting, {}) == EvaluationResult("accuracy", 0.1, lost.loss, 3)


def test_what_is_shown_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shows(Task):
        def show(self, forward: Any) -> Mapping[str, bytes]:
            raise KeyError("x")

    monkeypatch.setattr("distqat.distributed.assembly.evaluation.build_task", lambda _: Shows())
    with pytest.raises(TaskError, match="what the task shows cannot be made: KeyError"):
        show(config(), {"full": Zeros()})
