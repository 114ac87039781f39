"""Next tokens: batches, loss and perplexity against plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from distqat.errors import TaskError
from distqat.tasks import TaskSettings, get_task

TASK = get_task("nlp", TaskSettings(vocab_size=7, sequence_length=4))


def test_labels_are_the_next_tokens() -> None:
    batch = TASK.collate([{"tokens": [1, 2, 3, 4, 5]}, {"input_ids": torch.tensor([6, 0, 6])}])
    assert batch.inputs["x"].tolist() == [[1, 2, 3, 4], [6, 0, 0, 0]]
    assert batch.labels["y"].tolist() == [[2, 3, 4, 5], [0, 6, -100, -100]]
    assert batch.size == 2


def test_loss_is_cross_entropy_and_microbatches_add_up() -> None:
    batch = TASK.collate([{"tokens": torch.randint(0, 7, (5,))} for _ in range(5)])
    logits = torch.randn(5, 4, 7)
    whole = TASK.loss({"x": logits}, batch.labels)
    assert torch.allclose(whole, F.cross_entropy(logits.flatten(0, 1), batch.labels["y"].flatten()))
    parts = zip(batch.microbatches(2), logits.split([3, 2]), strict=True)
    shares = [TASK.loss({"x": x}, part.labels) * part.size / 5 for part, x in parts]
    assert torch.allclose(sum(shares), whole)  # type: ignore[arg-type]


def test_places_without_a_label_count_for_nothing() -> None:
    short, logits = TASK.collate([{"tokens": [1, 2, 3]}]), torch.randn(1, 4, 7, requires_grad=True)
    TASK.loss({"x": logits}, short.labels).backward()
    assert logits.grad is not None
    assert not logits.grad[:, 2:].any()
    assert TASK.score({"x": logits}, short.labels)["tokens"] == 2


def test_scores_add_up_to_perplexity() -> None:
    batch = TASK.collate([{"tokens": [1, 2, 3, 4, 5]}] * 3)
    totals = TASK.score({"x": torch.zeros(3, 4, 7)}, batch.labels)
    assert (totals["count"], totals["tokens"]) == (3.0, 12.0)
    assert TASK.summarize(totals) == pytest.approx(7.0, rel=1e-6)
    assert TASK.summarize({"nll": 1e9, "tokens": 1.0}) == math.inf
    with pytest.raises(TaskError, match="no tokens"):
        TASK.summarize({})


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"text": "words"}, "found: text"),
        ({"tokens": [1, 7]}, "outside the vocabulary of 7"),
        ({"tokens": [-1, 2]}, "token -1"),
        ({"tokens": [1]}, "at least two"),
    ],
)
def test_what_is_no_sequence(sample: dict[str, object], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        TASK.collate([sample])


def test_outputs_that_do_not_fit() -> None:
    batch = TASK.collate([{"tokens": [1, 2, 3, 4, 5]}])
    for outputs in ({"y": torch.zeros(1, 4, 7)}, {"x": torch.zeros(1, 7)}):
        with pytest.raises(TaskError, match="llm needs"):
            TASK.loss(outputs, batch.labels)
