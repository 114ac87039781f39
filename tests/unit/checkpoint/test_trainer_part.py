from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.checkpoint.states import RUN, shard_state, temporary_files, trainer_part

from distqat.checkpoint import CheckpointStore, read_trainer_parts, verify, write_trainer_part
from distqat.checkpoint.atomic_folders import temporary_folder
from distqat.checkpoint.trainer_part import FORMAT, TRAINERS, read_trainer_part
from distqat.errors import CheckpointError


def steps(folder: Path) -> list[int]:
    return [part.step for part in read_trainer_parts(folder, RUN)]


def test_round_trip(tmp_path: Path) -> None:
    part = trainer_part(12)
    path = write_trainer_part(tmp_path / "run", part)
    assert path == tmp_path / "run" / TRAINERS / "0-7-000012.json"
    assert read_trainer_parts(tmp_path / "run", RUN) == [part]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_nothing_there(tmp_path: Path) -> None:
    assert read_trainer_parts(tmp_path / "run", RUN) == []


def test_newest_first_by_generation_life_and_step(tmp_path: Path) -> None:
    for part in (
        trainer_part(90),
        trainer_part(80, life=9),
        trainer_part(81, life=9),
        trainer_part(5, life=8, generation=1),
    ):
        write_trainer_part(tmp_path, part)
    assert steps(tmp_path) == [5, 81, 80, 90]


def test_each_pipeline_keeps_its_last(tmp_path: Path) -> None:
    write_trainer_part(tmp_path, trainer_part(3, pipeline=1))
    write_trainer_part(tmp_path, trainer_part(1, run="other", mark="elsewhere"))
    for step in range(1, 8):
        write_trainer_part(tmp_path, trainer_part(step), keep=3)
    assert steps(tmp_path) == [7, 6, 5, 3]
    assert read_trainer_part(tmp_path / TRAINERS / "elsewhere.json").run == "other"
    write_trainer_part(tmp_path, trainer_part(2, life=1), keep=1)  # a clock that was set back
    assert (tmp_path / TRAINERS / "0-1-000002.json").exists()
    with pytest.raises(CheckpointError, match="at least one"):
        write_trainer_part(tmp_path, trainer_part(8), keep=0)


def test_written_again_it_is_the_newer_one(tmp_path: Path) -> None:
    write_trainer_part(tmp_path, trainer_part(3))
    write_trainer_part(tmp_path, trainer_part(3, samples=1))
    assert [part.samples for part in read_trainer_parts(tmp_path, RUN)] == [1]


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"samples": 64', b'"samples": 65'))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def pickled(path: Path) -> None:
    torch.save({"x": torch.zeros(2)}, path)


def renamed(path: Path) -> None:
    path.rename(path.with_name("0-7-000099.json"))


def of_another_run(path: Path) -> None:
    write_trainer_part(path.parent.parent, trainer_part(2, run="other"))


def of_another_format(path: Path) -> None:
    write_trainer_part(path.parent.parent, trainer_part(2, format=FORMAT + 1))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "own digest"),
        (cut, "not JSON"),
        (emptied, "not JSON"),
        (pickled, "not JSON"),
        (renamed, "is of mark '0-7-000002'"),
        (of_another_run, "is of run 'other'"),
        (of_another_format, "has format 2"),
        (a_folder, "cannot be read"),
    ],
)
def test_a_broken_one_is_skipped_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, said: str
) -> None:
    write_trainer_part(tmp_path, trainer_part(1))
    path = write_trainer_part(tmp_path, trainer_part(2))
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert steps(tmp_path) == [1]
    assert said in caplog.text
    assert str(path.parent) in caplog.text
    write_trainer_part(tmp_path, trainer_part(3), keep=1)
    assert steps(tmp_path) == [3]


def test_no_byte_of_it_can_change_unseen(tmp_path: Path) -> None:
    path = write_trainer_part(tmp_path, trainer_part(2))
    good, part = path.read_bytes(), trainer_part(2)
    for position in range(1, len(good) - 2, 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert read_trainer_parts(tmp_path, RUN) in ([], [part])  # white space may change
    path.write_bytes(good)
    assert steps(tmp_path) == [2]


def test_verify_reads_them(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, RUN).write("front", shard_state(1))
    path = write_trainer_part(tmp_path, trainer_part(2))
    assert [report.problems for report in verify(tmp_path)] == [(), ()]
    cut(path)
    assert "not JSON" in verify(tmp_path)[1].problems[0]
    assert [report.problems for report in verify(tmp_path, 1)] == [()]


@pytest.mark.parametrize("failing", ["os.fsync", "Path.replace", "Path.open"])
def test_disk_full_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    write_trainer_part(tmp_path, trainer_part(1))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(f"distqat.checkpoint.tensor_file.{failing}", fail)
        with pytest.raises(CheckpointError, match=r"0-7-000002.json.*No space left on device; make room"):
            write_trainer_part(tmp_path, trainer_part(2))
    assert steps(tmp_path) == [1]
    assert temporary_files(tmp_path) == []


def test_leftovers_of_killed_writers_go(tmp_path: Path) -> None:
    (tmp_path / TRAINERS / ".0-7-000001.9-aa.tmp").mkdir(parents=True)
    with temporary_folder(tmp_path / TRAINERS, "0-7-000002") as busy:
        write_trainer_part(tmp_path, trainer_part(3))
        assert [p for p in (tmp_path / TRAINERS).iterdir() if p.name.startswith(".")] == [busy]
    assert steps(tmp_path) == [3]


@pytest.mark.parametrize("changes", [{"mark": "../x"}, {"mark": "a b"}, {"scaler": {"scale": float("nan")}}])
def test_what_cannot_be_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"file name|must be JSON"):
        write_trainer_part(tmp_path, trainer_part(1, **changes))
    assert list(tmp_path.iterdir()) == []
