"""Whether a folder can be written is found out by writing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from distqat.writable_folder import free_bytes, why_unwritable


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path: Path) -> None:
    assert why_unwritable(tmp_path / "a" / "b") == ""
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_file_in_the_way_is_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert why_unwritable(tmp_path / "file") == "File exists"
    assert why_unwritable(tmp_path / "file" / "below") == "Not a directory"


def test_a_full_disk_is_found_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert why_unwritable(tmp_path) == "No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_room_is_told_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert (free_bytes(tmp_path / "not" / "yet") or 0) > 0
