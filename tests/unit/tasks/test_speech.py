"""Speech: batches, the CTC loss against a sum over all alignments, and the error rate."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.data.serving.batch_memory import batch_nbytes
from distqat.errors import TaskError
from distqat.tasks import TaskSettings, get_task
from distqat.tasks.ctc_alphabet import collapse
from distqat.tasks.speech import SpeechRecognition

RATE = 1_000


def task(**options: Any) -> SpeechRecognition:
    given = {"sampling_rate": RATE, "max_seconds": 2.0, "pad_seconds": 0.1, "alphabet": "|AB", **options}
    made = get_task("speech", TaskSettings(options=given))
    assert isinstance(made, SpeechRecognition)
    return made


def sample(length: int, text: str, seed: int = 0) -> dict[str, Any]:
    sound = np.random.RandomState(seed).normal(0.3, 0.1, length).astype(np.float32)
    return {"audio": {"array": sound, "sampling_rate": RATE}, "text": text}


TASK = task()


def outputs(*frames: int, seed: int = 0, classes: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {"x": torch.randn(len(frames), max(frames), classes), "lengths": torch.tensor(frames)}


def test_a_batch_is_normalised_padded_and_longest_first() -> None:
    batch = TASK.collate([sample(210, "a"), sample(350, "ab b")])
    x, lengths = batch.inputs["x"], batch.inputs["lengths"]
    assert lengths.tolist() == [350, 210]
    assert x.shape == (2, 400)
    for row, length in zip(x, lengths, strict=True):
        assert torch.isclose(row[:length].mean(), torch.tensor(0.0), atol=1e-5)
        assert torch.isclose(row[:length].var(correction=0), torch.tensor(1.0), atol=1e-4)
        assert not row[length:].any()
    assert batch.labels["y"].tolist() == [[5, 6, 4, 6], [5, 0, 0, 0]]
    assert batch.labels["y_lengths"].tolist() == [4, 1]
    assert {t.dtype for t in (lengths, *batch.labels.values())} == {torch.int64}


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=6))
@settings(max_examples=20)
def test_no_batch_is_larger_than_announced(lengths: list[int]) -> None:
    assert TASK.heldout_batch
    longest_text = "a" * 60  # 2 s of 30 characters
    batch = TASK.collate([sample(length, longest_text) for length in lengths])
    assert batch_nbytes(batch) <= TASK.batch_bytes(len(lengths))


def test_the_loss_is_the_sum_over_all_alignments() -> None:
    batch = TASK.collate([sample(200, "ab"), sample(190, "bb"), sample(180, "a")])
    out = outputs(4, 3, 2)
    probabilities = out["x"].softmax(dim=2)
    expected = []
    for row, frames in enumerate([4, 3, 2]):
        said = batch.labels["y"][row, : batch.labels["y_lengths"][row]].tolist()
        total = sum(
            math.prod(float(probabilities[row, t, c]) for t, c in enumerate(path))
            for path in itertools.product(range(7), repeat=frames)
            if collapse(path) == said
        )
        expected.append(-math.log(total) / len(said))
    assert float(TASK.loss(out, batch.labels)) == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_microbatches_add_up() -> None:
    batch = TASK.collate([sample(100 + i, "ab b"[: 1 + i % 4]) for i in range(5)])
    out = outputs(9, 8, 7, 8, 9)
    parts = zip(batch.microbatches(2), out["x"].split([3, 2]), out["lengths"].split([3, 2]), strict=True)
    shares, totals = [], dict[str, float]()
    for part, x, lengths in parts:
        own = {"x": x, "lengths": lengths}
        shares.append(float(TASK.loss(own, part.labels)) * part.size / 5)
        for name, value in TASK.score(own, part.labels).items():
            totals[name] = totals.get(name, 0.0) + value
    assert sum(shares) == pytest.approx(float(TASK.loss(out, batch.labels)), rel=1e-6)
    assert totals == TASK.score(out, batch.labels)


def test_frames_behind_the_length_count_for_nothing() -> None:
    batch, out = TASK.collate([sample(100, "ab")]), outputs(6)
    out["lengths"] = torch.tensor([4])
    out["x"].requires_grad_()
    TASK.loss(out, batch.labels).backward()
    assert out["x"].grad is not None
    assert out["x"].grad[:, :4].any()
    assert not out["x"].grad[:, 4:].any()
    short = {"x": out["x"][:, :4], "lengths": out["lengths"]}
    assert torch.equal(TASK.loss(short, batch.labels), TASK.loss(out, batch.labels))
    assert TASK.score(short, batch.labels) == TASK.score(out, batch.labels)


def test_a_text_that_does_not_fit_is_counted_and_harms_nobody() -> None:
    batch, out = TASK.collate([sample(100, "bb"), sample(90, "a")]), outputs(2, 2)
    out["x"].requires_grad_()
    loss = TASK.loss(out, batch.labels)
    loss.backward()
    assert out["x"].grad is not None
    assert torch.isfinite(loss)
    assert not out["x"].grad[0].any()
    assert torch.isfinite(out["x"].grad[1]).all()
    assert out["x"].grad[1].any()
    assert TASK.score(out, batch.labels)["unaligned"] == 1.0


def test_error_rate_and_text() -> None:
    batch = TASK.collate([sample(100, "ab a")])
    heard = torch.tensor([[5, 5, 0, 5, 4, 6, 6, 0]])  # A A | B
    out = {"x": torch.nn.functional.one_hot(heard, 7).float(), "lengths": torch.tensor([8])}
    assert TASK.texts(out) == ["AA B"]
    score = TASK.score(out, batch.labels)
    assert score == {"edits": 2.0, "characters": 4.0, "unaligned": 0.0, "count": 1.0}
    assert TASK.summarize(score) == 0.5
    with pytest.raises(TaskError, match="held-out part is empty"):
        TASK.summarize({})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"text": "ab"}, "no recording: expected a column audio or speech, found: text"),
        ({"audio": sample(9, "")["audio"]}, "no text"),
        (sample(2100, "a"), "raise data.options.max_seconds"),
        (sample(100, "cd"), "no character"),
        (sample(100, "a" * 61), "cannot be said"),
    ],
)
def test_what_is_no_sample(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        TASK.collate([wrong])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"options": {"sample_rate": 8000}}, "did you mean 'sampling_rate'"),
        ({"options": {"max_seconds": -1}}, r"data\.options\.max_seconds of task speech"),
        ({"options": {}, "vocab_size": 31}, "31 classes, the alphabet needs 32"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        get_task("speech", TaskSettings(**settings))


def test_outputs_that_do_not_fit() -> None:
    batch = TASK.collate([sample(100, "a")])
    for out in ({"x": torch.zeros(1, 4, 7)}, {"x": torch.zeros(1, 7), "lengths": torch.tensor([4])}):
        with pytest.raises(TaskError, match="speech needs logits"):
            TASK.loss(out, batch.labels)
