"""Text: tokens, packing, and the embedded documents with their positions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.data.open_source import open_source
from distqat.data.options import DataOptions
from distqat.data.source import Source
from distqat.data.text.open_tokenizer import open_tokenizer
from distqat.data.text.packing import Packing
from distqat.data.text.python_text import documents
from distqat.data.text.tokenizer import ByteTokenizer
from distqat.errors import DataError, HubUnavailable
from distqat.tasks import TaskSettings, get_task

BYTES = ByteTokenizer()


@given(st.lists(st.text(max_size=20), max_size=8), st.integers(1, 9))
def test_every_token_is_predicted_once(texts: list[str], length: int) -> None:
    stream = [i for text in texts if text for i in [*BYTES.encode(text), BYTES.end]]
    rows = [row["tokens"].tolist() for row in Packing(BYTES, length)({"text": text} for text in texts)]
    assert all(len(row) == length + 1 for row in rows)
    count = max(0, (len(stream) - 1) // length)
    assert len(rows) == count
    assert [i for row in rows for i in row[1:]] == stream[1 : 1 + count * length]
    assert [i for row in rows for i in row[:-1]] == stream[: count * length]


@given(st.text())
def test_bytes_come_back(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert BYTES.decode(BYTES.encode(text)) == text


def open_text(seed: int = 0, **options: object) -> Source:
    given = {"dataset_name": "python_docs", "task_type": "llm", "sequence_length": 64, **options}
    return open_source(DataOptions.model_validate(given), seed=seed)


def test_positions_and_a_fixed_held_out_part() -> None:
    one, other = open_text(seed=1), open_text(seed=2)
    held = [row["tokens"].tolist() for row in one.heldout()]
    assert held == [row["tokens"].tolist() for row in other.heldout()]
    first, again = one.take(100), other.take(100)
    assert [i.sample["tokens"].tolist() for i in first] != [i.sample["tokens"].tolist() for i in again]
    state = one.state()
    expected = [i.sample["tokens"].tolist() for i in one.take(20)]
    restored = open_text(seed=1)
    restored.restore(state)
    assert [i.sample["tokens"].tolist() for i in restored.take(20)] == expected
    assert one.order == restored.order
    assert one.order != open_text(seed=1, sequence_length=32).order


def test_held_out_documents_are_not_trained_on() -> None:
    texts = documents()
    assert len(texts) == len(set(texts))
    assert sum(map(len, texts)) > 300_000
    source = open_text()
    train = {bytes(b % 256 for b in i.sample["tokens"]) for i in source.take(10**6)}
    held = [bytes(b % 256 for b in row["tokens"]) for row in source.heldout()]
    assert len(held) > 100
    assert len(train.intersection(held)) < 0.02 * len(held)  # rulers and the like


def test_it_fits_the_task() -> None:
    batch = get_task("llm", TaskSettings(vocab_size=BYTES.size, sequence_length=64)).collate(
        [item.sample for item in open_text().take(3)]
    )
    assert batch.inputs["x"].shape == batch.labels["y"].shape == (3, 64)


def test_what_cannot_be_read() -> None:
    with pytest.raises(DataError, match="one split"):
        open_text(dataset_split="test")
    with pytest.raises(DataError, match=r"shorter data\.sequence_length"):
        open_text(sequence_length=1_000_000)
    with pytest.raises((DataError, HubUnavailable), match=r"'bytes'|no tokenizer"):
        open_tokenizer("acme/nothing-here")
    with pytest.raises(DataError, match="found: label"):
        list(Packing(BYTES, 4)([{"label": 1}]))
