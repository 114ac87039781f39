"""`data.options` of language models: where the text of a sample is, and what a document is."""

from __future__ import annotations

import re

from pydantic import field_validator

from distqat.options import Options


class TextOptions(Options):
    """How rows of a data set become documents."""

    text_column: str | None = None
    """Column with the text; null: `text`, `content` or `sentence`, whichever there is."""
    document_start: str | None = None
    """Regular expression; a row that matches begins a document, to which the next rows belong, line by line.
    null: every row is a document. WikiText's articles are told apart by their titles without being asked."""
    end_token: str | None = None
    """Token that ends a document; null: the end of sequence that the tokenizer's own files name, or one of
    the usual names, `<|endoftext|>` and `</s>` among them."""

    @field_validator("document_start")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern
