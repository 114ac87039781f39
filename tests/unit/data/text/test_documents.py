"""Rows to documents, and the BPE that is trained here."""

from __future__ import annotations

import pytest

from distqat.data.text.bpe import LEAST, size_of, trained
from distqat.data.text.documents import ARTICLE, documents, text_column
from distqat.data.text.open_tokenizer import known_size, open_tokenizer
from distqat.data.text.packing import Packing
from distqat.data.text.python_text import split_documents
from distqat.errors import DataError, TaskError
from distqat.tasks.options import parse_options
from distqat.tasks.text_options import TextOptions


def test_a_row_is_a_document_or_begins_one() -> None:
    rows = [
        {"text": text} for text in ("", " = A = \n", " line\n", " = = B = = \n", "", " = C = \n", " more")
    ]
    whole = list(documents(rows, TextOptions()))
    assert whole == [row["text"] for row in rows if row["text"]]
    articles = list(documents(rows, TextOptions(document_start=ARTICLE)))
    assert articles == [" = A = \n line\n = = B = = \n", " = C = \n more\n"]


def test_the_column_with_the_text() -> None:
    assert text_column(["id", "Text"]) == "Text"
    assert text_column(["text", "body"], "body") == "body"
    with pytest.raises(DataError, match="found: label, x"):
        text_column(["x", "label"])
    with pytest.raises(DataError, match="a column 'body', found: text"):
        text_column(["text"], "body")
    with pytest.raises(DataError, match="has int where"):
        list(documents([{"text": 3}], TextOptions()))


def test_options_of_text() -> None:
    with pytest.raises(TaskError, match="did you mean 'text_column'"):
        parse_options(TextOptions, {"text_columns": "x"}, "llm")
    with pytest.raises(TaskError, match="not a regular expression"):
        parse_options(TextOptions, {"document_start": "("}, "llm")


def test_a_bpe_trained_here_is_repeatable_and_loses_nothing() -> None:
    tokenizer = open_tokenizer("bpe:400")
    assert (tokenizer.size, known_size("bpe:400")) == (400, 400)
    again = trained.__wrapped__(400)
    text = split_documents()[1][0] + " naïve 漢字\n\n\tdef f():"
    ids = tokenizer.encode(text)
    assert (again.name, again.encode(text)) == (tokenizer.name, ids)
    assert again.decode(ids) == text
    assert max(ids) < 400
    assert tokenizer.end not in ids
    assert len(ids) < 0.7 * len(text.encode())
    rows = list(Packing(tokenizer, 16)([{"text": text}, {"text": text}]))
    stream = [*ids, tokenizer.end, *ids, tokenizer.end]
    assert [i for row in rows for i in row["tokens"][:-1].tolist()] == stream[: 16 * len(rows)]


@pytest.mark.parametrize("name", ["bpe:", "bpe:12", "bpe:many", "bpe:99999"])
def test_sizes_that_cannot_be(name: str) -> None:
    assert size_of("bytes") is None
    with pytest.raises(DataError, match=f"from {LEAST} to"):
        open_tokenizer(name)
