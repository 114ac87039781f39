from __future__ import annotations

import threading
from pathlib import Path

import pytest

from distqat.checkpoint.finished_note import finished_generation, note_finished
from distqat.errors import CheckpointError


def test_servers_that_share_a_folder_note_the_end_at_the_same_moment(tmp_path: Path) -> None:
    folder, errors = tmp_path / "run", []
    at_once = threading.Barrier(6)

    def note(generation: int) -> None:
        at_once.wait()
        try:
            for _ in range(5):
                note_finished(folder, generation)
        except CheckpointError as error:
            errors.append(error)

    writers = [threading.Thread(target=note, args=(generation,)) for generation in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert finished_generation(folder) == 5
    assert [path.name for path in folder.iterdir()] == ["finished"]


def test_an_earlier_end_does_not_hide_a_later_one(tmp_path: Path) -> None:
    assert finished_generation(tmp_path) == -1
    note_finished(tmp_path, 7)
    note_finished(tmp_path, 3)
    assert finished_generation(tmp_path) == 7


def test_what_the_disk_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="finished could not be written: "):
        note_finished(tmp_path / "file" / "run", 1)
