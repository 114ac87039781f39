"""Text and JSON as people have them: every encoding that can be told, every layout, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distqat.data.sources.file_readers import READERS, object_rows, text_rows
from distqat.errors import DataError

TEXTS = [f"Paragraph {i}: naïve 漢字.\nSecond line of {i}." for i in range(9)]
WHOLE = "\n\n".join(TEXTS)


def texts(path: Path) -> list[str]:
    return [row["text"] for row in text_rows(path)]


@pytest.mark.parametrize(
    "data",
    [
        WHOLE.encode(),
        b"\xef\xbb\xbf" + WHOLE.encode(),
        WHOLE.replace("\n", "\r\n").encode(),
        WHOLE.replace("\n", "\r").encode(),
        WHOLE.replace("\n\n", "\n \t\n\n").encode() + b"\n\n",
        b"\n\n" + WHOLE.encode(),
        WHOLE.encode("utf-16"),
        b"\xfe\xff" + WHOLE.encode("utf-16-be"),
    ],
    ids=["plain", "mark", "CRLF", "CR", "blanks", "leading", "UTF-16", "UTF-16 big endian"],
)
def test_documents_between_empty_lines(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(data)
    assert texts(path) == TEXTS


def test_places_in_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n\ntwo\nlines\n\nlast")
    assert [row.origin for row in text_rows(tmp_path / "a.txt")] == [
        f"{tmp_path}/a.txt, line {n}" for n in (1, 4, 7)
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("Café\n\n".encode("latin-1"), r"a\.txt is not in UTF-8 \(line 1, byte 0xe9\): convert it"),
        (b"fine\n" * 9 + b"\xff", r"line 10, byte 0xff"),
        ("two words".encode("utf-16-le"), "zero bytes .line 1.: it is not text, or UTF-16 without its mark"),
    ],
)
def test_what_is_no_text(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=said):
        texts(tmp_path / "a.txt")


ROWS: list[dict[str, Any]] = [
    {"text": text, "meta": None if i < 4 else {"url": i}} for i, text in enumerate(TEXTS)
]
LINES = "\n".join(map(json.dumps, ROWS))


@pytest.mark.parametrize(
    "data",
    [
        LINES,
        LINES + "\n",
        LINES.replace("\n", "\n\n"),
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", ""),
        "\ufeff" + LINES,
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        json.dumps({"version": 1, "data": ROWS}),
        json.dumps({"version": 1, "rows": ROWS}, indent=1),
    ],
    ids=[*"ABCDEFGHIJK"],
)
def test_rows_of_json(data: str, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(data.encode())
    assert [dict(row) for row in object_rows(path)] == ROWS


def test_places_in_json(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [row.origin for row in object_rows(path)] == [f"{path}, line 1", f"{path}, line 3"]
    path.write_text('[{"a": 1}, "text"]')
    assert [(dict(row), row.origin) for row in object_rows(path)][1] == (
        {"text": "text"},
        f"{path}, row 1 (from 0)",
    )
    path.write_text('{"data": [{"a": 1}, {"a": 2}]}')
    assert [row.origin for row in object_rows(path)][1] == f"{path}, data[1]"
    path.write_text('{"text": "the only row", "messages": [{"role": "user"}]}')
    assert [row["text"] for row in object_rows(path)] == ["the only row"]
    path.write_text("")
    assert list(object_rows(path)) == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (LINES[:-40], "line 9 is not JSON: .*; it ends in mid-line: cut short"),
        ('{"a": 1}\n[1, 2]\n', "line 2 holds list where a row is an object"),
        ('{"a": 1}\nnot json\n{"a": 2}', "line 2 is not JSON: .*it reads 'not json'"),
        ("[1, 2]", r"row 0 \(from 0\) holds int"),
        ('[{"a": 1},', "is not JSON"),
        ('{"a": "Café"}', "is not in UTF-8, as JSON is"),
    ],
)
def test_what_is_no_json(data: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(data.encode("latin-1" if "é" in data else "utf-8"))
    with pytest.raises(DataError, match=said):
        list(object_rows(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_not_there(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing cannot be read: "):
        list(READERS[kind](tmp_path / "nothing"))
