"""Objects of a JSON file: one per line, an array of them, or one object with such an array below a key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distqat.data.rows import Row
from distqat.errors import DataError

KEYS = ("data", "rows", "examples", "samples", "records", "items", "instances")
"""Below these of a file's only object its rows may be."""


def json_rows(path: Path, encoding: str) -> Iterator[Row]:
    """Rows of a file in `encoding`; strings in place of objects are texts. Raises DataError."""
    try:
        with path.open(encoding=encoding) as file:
            first = next((line for line in file if line.strip()), "")
        rows = _lines(path, encoding) if _is_object(first) else _values(path, encoding)
        one, two = next(rows, None), next(rows, None)
        if one is not None and two is None:
            yield from _below(one, path)
        elif one is not None and two is not None:
            yield one
            yield two
            yield from rows
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8, as JSON is ({error.reason}): convert it") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _is_object(line: str) -> bool:
    """Whether a line alone is an object: JSON Lines."""
    try:
        return all(isinstance(value, dict) for value in _decoded(line))
    except ValueError:
        return False


def _lines(path: Path, encoding: str) -> Iterator[Row]:
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    for value in _decoded(line):  # two where files without a last newline were joined
                        yield _row(value, path, f"line {number}")
                except ValueError as error:
                    raise DataError(f"{path}, line {number} is not JSON: {error}; {_cut(line)}") from error


def _values(path: Path, encoding: str) -> Iterator[Row]:
    """Values of several lines each: mostly one array."""
    number = 0
    try:
        for value in _decoded(path.read_text(encoding=encoding)):
            for one in value if isinstance(value, list) else [value]:
                yield _row(one, path, f"row {number} (from 0)")
                number += 1
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def _decoded(text: str) -> Iterator[Any]:
    """The values in a text, one behind the other. Raises ValueError."""
    decoder, text = json.JSONDecoder(), text.strip()
    at = 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        yield value
        while at < len(text) and text[at].isspace():
            at += 1


def _below(row: Row, path: Path) -> Iterator[Row]:
    """The rows of a file whose only object holds them below a key; else the object is the row."""
    found = [
        key for key in KEYS if isinstance(row.get(key), list) and all(isinstance(o, dict) for o in row[key])
    ]
    if len(found) != 1 or not row[found[0]]:
        yield row
        return
    for number, fields in enumerate(row[found[0]]):
        yield Row(fields, f"{path}, {found[0]}[{number}]")


def _row(value: Any, path: Path, place: str) -> Row:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise DataError(
            f"{path}, {place} holds {type(value).__name__} where a row is an object with its columns"
        )
    return Row(value, f"{path}, {place}")


def _cut(line: str) -> str:
    return "it ends in mid-line: cut short?" if not line.endswith("\n") else f"it reads {line[:60].strip()!r}"
