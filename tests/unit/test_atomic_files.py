from __future__ import annotations

import threading
from pathlib import Path

import pytest

from distqat.atomic_files import write_whole


def test_many_writers_of_one_file(tmp_path: Path) -> None:
    path, errors = tmp_path / "folder" / "told", []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                write_whole(path, f"{number}" * 5000)
        except OSError as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert path.read_text() in {f"{number}" * 5000 for number in range(4)}
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "told"
    write_whole(path, b"old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
