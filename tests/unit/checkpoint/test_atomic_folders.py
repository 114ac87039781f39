from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from distqat.checkpoint import atomic_folders
from distqat.checkpoint.atomic_folders import (
    is_temporary,
    locked,
    remove_leftovers,
    set_aside,
    temporary_folder,
)
from distqat.errors import CheckpointError


def test_work_in_progress_is_no_leftover(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "round", "front") as folder:
        assert is_temporary(folder)
        assert remove_leftovers(tmp_path / "round") == []
        (folder / "file").write_text("x")
    assert not folder.exists()


def test_a_prune_that_comes_before_the_lock_makes_the_writer_take_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prune has locked the new folder and is about to delete it."""
    others: list[int] = []
    lock = atomic_folders._locked_by_another

    def pruned_before(descriptor: int, *, unknown: bool = False) -> bool:
        if not others:
            (new,) = tmp_path.iterdir()
            others.append(os.open(new, os.O_RDONLY))
            fcntl.flock(others[0], fcntl.LOCK_EX)
        return lock(descriptor, unknown=unknown)

    monkeypatch.setattr(atomic_folders, "_locked_by_another", pruned_before)
    with temporary_folder(tmp_path, "front") as folder:
        assert len(list(tmp_path.iterdir())) == 2
        (pruned,) = [path for path in tmp_path.iterdir() if path != folder]
        shutil.rmtree(pruned)
        os.close(others[0])
        (folder / "file").write_text("x")


def test_what_dead_writers_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".front.1-ab.tmp" / "deep").mkdir(parents=True)
    (tmp_path / ".model.1-ab.tmp").write_text("x")
    (tmp_path / "front").mkdir()
    assert len(remove_leftovers(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["front"]


def test_what_was_renamed_stays(tmp_path: Path) -> None:
    with temporary_folder(tmp_path, "front") as folder:
        folder.rename(tmp_path / "front")
    assert (tmp_path / "front").is_dir()


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path, wait_s=0), pytest.raises(CheckpointError, match="held by another"):  # noqa: SIM117
        with locked(tmp_path, wait_s=0):
            pass
    with locked(tmp_path, wait_s=0):
        pass


def test_set_aside_is_a_leftover(tmp_path: Path) -> None:
    (tmp_path / "front").mkdir()
    assert is_temporary(set_aside(tmp_path / "front"))
    assert len(remove_leftovers(tmp_path)) == 1
