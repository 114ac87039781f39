"""Packed text of the hub, from a stand-in: every token once, exact positions, what is held out."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.integration.hub_stand_in import hub, run

__all__ = ["hub"]  # a fixture

LENGTH, END = 8, 256
ARTICLES = {name: [f" = {name} = \n", "", f" {name} begins . \n", " = = Life = = \n", f" {name} ends . \n"]
            for name in ("Ada", "Bob", "Cyd", "Dee")}  # fmt: skip

WIKITEXT_CARD = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - {split: train, path: wikitext-2-raw-v1/train-*}
  - {split: validation, path: wikitext-2-raw-v1/validation-*}
---
"""


def parquet(rows: list[str], column: str = "text") -> bytes:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = datasets.Features({column: datasets.Value("string")}).arrow_schema
    buffer = io.BytesIO()
    pq.write_table(pa.table({column: rows}, schema=schema), buffer)
    return buffer.getvalue()


def documents(first: int, count: int) -> list[str]:
    return [f"document {i}: " + "x" * (i % 7) for i in range(first, first + count)]


@pytest.fixture(scope="module")
def repositories() -> dict[str, dict[str, bytes]]:
    lines = {name: [row for article in names for row in ARTICLES[article]] for name, names in
             (("train", ("Ada", "Bob", "Cyd")), ("validation", ("Dee",)))}  # fmt: skip
    return {
        "acme/text": {
            **{f"data/train-{i:05}-of-00002.parquet": parquet(documents(20 * i, 20)) for i in range(2)},
            "data/validation-00000-of-00001.parquet": parquet(documents(40, 8)),
        },
        "Salesforce/wikitext": {
            "README.md": WIKITEXT_CARD.encode(),
            **{
                f"wikitext-2-raw-v1/{name}-00000-of-00001.parquet": parquet(rows)
                for name, rows in lines.items()
            },
        },
        "Trelis/tiny-shakespeare": {"data/train-00000-of-00001.parquet": parquet(documents(0, 1200), "Text")},
        "acme/odd": {"data/train-00000-of-00001.parquet": parquet(documents(0, 9), "label")},
    }


READING = """
def packed(**kw):
    return options(task_type="nlp", sequence_length=LENGTH, tokenizer="bytes", **kw)
def rows(items):
    return [(i.epoch, i.index, i.sample["tokens"].tolist()) for i in items]
def epoch(source):
    items = [i for i in drain(source, 1000)]
    return [i.sample["tokens"].tolist() for i in items if i.epoch == 0]
""".replace("LENGTH", str(LENGTH))


def told(sequences: list[list[int]]) -> list[int]:
    """The stream of tokens that sequences in file order are cut from, but for its first."""
    return [token for row in sequences for token in row[1:]]


def texts(stream: list[int]) -> list[str]:
    """Whole documents of a stream of tokens: what lies between two ends."""
    pieces, current = [], list[int]()
    for token in stream:
        if token == END:
            pieces.append(bytes(current).decode())
            current = []
        else:
            current.append(token)
    return pieces[1:]


def test_packed_sequences_are_complete_and_positions_exact(hub: Any, tmp_path: Path) -> None:
    code = (
        READING
        + """
a, b = (open_source(packed(dataset_name="acme/text"), seed=1) for _ in range(2))
first = rows(drain(a, 150))
state = a.state()
later = rows(drain(a, 20))
found = []
for at in ({"epoch": 0, "index": 0}, {"epoch": 0, "index": 45}, state):
    b.restore(at)
    found.append(rows(drain(b, 20)))
unmixed = open_source(packed(dataset_name="acme/text", shuffle_buffer=1), seed=1)
held = [s["tokens"].tolist() for s in a.heldout()]
print(json.dumps([first, later, found, state, a.order, epoch(unmixed), held]))
"""
    )
    first, later, found, state, order, unmixed, held = run(code, hub.address, tmp_path)
    assert found[:2] == [first[:20], first[45:65]]
    assert found[2] == later
    assert state["epoch"] == 1  # an epoch is about 95 sequences
    assert order.endswith(f"seed=1 buffer=7 tokenizer=bytes sequence_length={LENGTH}")
    one_epoch = [row for epoch, _, row in first if epoch == 0]
    assert sorted(one_epoch) == sorted(unmixed)
    assert all(row[-1] == following[0] for row, following in pairwise(unmixed))
    whole = texts(told(unmixed))
    assert len(whole) >= 38  # the first is cut off at its beginning, what is left over at the end is dropped
    assert set(whole) <= set(documents(0, 40))
    assert len(set(whole)) == len(whole)
    assert set(texts(told(held))) <= set(documents(40, 8))


def test_the_bare_name_of_wikitext_and_its_articles(hub: Any, tmp_path: Path) -> None:
    code = (
        READING
        + """
source = packed(dataset_name="wikitext", dataset_config="wikitext-2-raw-v1", shuffle_buffer=1)
source = open_source(source, seed=1)
rowwise = packed(dataset_name="wikitext", shuffle_buffer=1, options={"document_start": "."})
rowwise = open_source(rowwise, seed=1)
print(json.dumps([epoch(source), source.order, epoch(rowwise), rowwise.order]))
"""
    )
    sequences, order, rowwise, other = run(code, hub.address, tmp_path)
    assert order.startswith("Salesforce/wikitext/wikitext-2-raw-v1/train@")
    assert texts([END, sequences[0][0], *told(sequences)]) == [
        "".join(ARTICLES[name]) for name in ("Ada", "Bob")
    ]
    assert len(texts(told(rowwise))) > 2
    assert order != other


def test_a_column_of_another_name_and_none(hub: Any, tmp_path: Path) -> None:
    code = (
        READING
        + """
from distqat.errors import DataError, TaskError
source = open_source(packed(dataset_name="tiny-shakespeare"), seed=1)
said = []
for kw in ({}, {"options": {"text_colum": "label"}}):
    try:
        open_source(packed(dataset_name="acme/odd", **kw), seed=1)
    except (DataError, TaskError) as error:
        said.append(str(error))
named = open_source(packed(dataset_name="Trelis/tiny-shakespeare", options={"text_column": "text"}), seed=1)
print(json.dumps([rows(drain(source, 1))[0][2] == rows(drain(named, 1))[0][2], said]))
"""
    )
    same, said = run(code, hub.address, tmp_path)
    assert same
    assert "text or content or sentence, found: label; name it in data.options.text_column" in said[0]
    assert "did you mean 'text_column'" in said[1]
