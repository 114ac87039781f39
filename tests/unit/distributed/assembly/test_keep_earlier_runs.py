"""Which states on a host's disk are of an earlier run, as the client and each server see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.checkpoint.test_earlier_runs import leave

from distqat.checkpoint.finished_note import finished_generation, note_finished
from distqat.config import Config, load_config
from distqat.distributed.assembly import keep_earlier_runs
from distqat.distributed.assembly.keep_earlier_runs import make_room, note_end
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.run_start import RunStart
from distqat.process import RoleParameters


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config("configs/mlp.yaml", {"param_mirror.checkpoint_dir": str(tmp_path / "ck")})


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(keep_earlier_runs, "notice", said.append)
    return said


def test_a_run_that_goes_on_keeps_its_older_generations(config: Config, notices: list[str]) -> None:
    leave(config.checkpoint_dir, 1000)
    note_finished(config.checkpoint_dir, 1000)
    make_room(config, 1000, goes_on=True)  # a finished run that is resumed for more rounds
    make_room(config, 0, goes_on=True)
    assert notices == []
    assert (config.checkpoint_dir / "model.safetensors").exists()


def test_a_new_run_begins_after_what_is_finished(config: Config, notices: list[str]) -> None:
    """Also where the client knows of no earlier one, since its log is on another host, or lost."""
    leave(config.checkpoint_dir, 1000)
    make_room(config, 0, goes_on=False)
    assert notices == []  # it came to no end: servers may go on from it
    note_finished(config.checkpoint_dir, 1000)
    make_room(config, 0, goes_on=False)
    assert len(notices) == 1
    assert "an earlier run is kept in " in notices[0]


def test_a_folder_that_cannot_be_moved_is_a_warning(
    config: Config, notices: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    leave(config.checkpoint_dir, 1000)
    (config.checkpoint_dir / "previous").write_text("in the way")
    make_room(config, 2000, goes_on=True)
    assert notices == []
    assert "stays where it is" in caplog.text


def test_an_end_that_cannot_be_noted_is_a_warning(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    note_end(config, 1000)
    assert finished_generation(config.checkpoint_dir) == 1000
    (config.checkpoint_dir / "finished").unlink()
    (config.checkpoint_dir / "finished").mkdir()
    note_end(config, 2000)
    assert "the next start will go on from this run unless told otherwise" in caplog.text


def test_the_client_knows_from_where_on_states_are_its_runs(config: Config, tmp_path: Path) -> None:
    def start(log: CommitLog, **told: Any) -> RunStart:
        found = RunStart.of(config, log, RoleParameters(**told))
        log.close()
        return found

    log = CommitLog(tmp_path / "log", "mlp")
    began = log.first_generation
    log.commit_round("front", 0, "a")
    assert start(log, run_locally=True).counts_from == began  # the baseline never goes on with another run
    continued = start(CommitLog(tmp_path / "log", "mlp"))
    assert (continued.counts_from, continued.goes_on) == (began, True)
    note_finished(config.checkpoint_dir, 500)
    lost = start(CommitLog(tmp_path / "another log", "mlp"))
    assert (lost.counts_from, lost.goes_on) == (501, False)
    resumed = start(CommitLog(tmp_path / "a third log", "mlp", resume=True), resume=True)
    assert (resumed.counts_from, resumed.goes_on) == (0, True)
    fresh = start(CommitLog(tmp_path / "a fourth log", "mlp"), oldest=9000)
    assert (fresh.counts_from, fresh.goes_on) == (9000, False)
