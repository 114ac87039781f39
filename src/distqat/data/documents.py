"""Rows of a data set to documents of text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from distqat.errors import DataError
from distqat.tasks.base import Sample
from distqat.tasks.text_options import TextOptions

TEXT_COLUMNS = ("text", "content", "sentence")
ARTICLE = r" = [^=]+ = \s*$"
"""A title in WikiText, whose rows are lines; its sections have ` = = Name = = `."""


def documents(rows: Iterable[Sample], options: TextOptions) -> Iterator[str]:
    """The texts of rows, or of runs of rows that `document_start` tells apart; empty ones are left out.

    Raises DataError for a row without text.
    """
    if options.document_start is None:
        texts = (text_of(row, options.text_column) for row in rows)
        yield from (text for text in texts if text)
        return
    starts = re.compile(options.document_start)
    lines: list[str] = []
    for row in rows:
        text = text_of(row, options.text_column)
        if starts.match(text) and lines:
            yield "".join(lines)
            lines.clear()
        if text:
            lines.append(text if text.endswith("\n") else f"{text}\n")
    if lines:
        yield "".join(lines)


def text_of(row: Mapping[str, Any], column: str | None = None) -> str:
    """The text of a row; DataError names the columns where there is none."""
    text = row.get(text_column(row, column))
    if not isinstance(text, str):
        raise DataError(f"a row has {type(text).__name__} where its text should be: {dict(row)!r:.200}")
    return text


def text_column(columns: Iterable[str], wanted: str | None = None) -> str:
    """The column that holds text, whatever the case of its name. Raises DataError."""
    there = list(columns)
    for name in (wanted,) if wanted else TEXT_COLUMNS:
        for column in there:
            if column.lower() == name.lower():
                return column
    expected = repr(wanted) if wanted else " or ".join(TEXT_COLUMNS)
    found = ", ".join(sorted(there)) or "none"
    raise DataError(
        f"the data has no text: expected a column {expected}, found: {found}; "
        "name it in data.options.text_column"
    )
