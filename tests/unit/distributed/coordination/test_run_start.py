"""Commit logs that are continued, finished or begun anew, and what may change between two starts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from distqat.config import load_config
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.run_start import note_settings
from distqat.distributed.training.checkpoint_schedule import CheckpointSchedule
from distqat.errors import ConfigError
from distqat.protocol.calls.step_calls import StageStanding


def test_an_unfinished_run_is_continued(tmp_path: Path) -> None:
    log = CommitLog(tmp_path / "log", "run")
    assert not log.continued
    assert log.oldest == 0  # states that servers hold may belong to this run
    log.commit_round("front", 0, "a")
    log.close()
    again = CommitLog(tmp_path / "log", "run")
    assert again.continued
    assert again.generation == again.oldest == log.generation
    assert again.newest_round("front") == (0, "a")


def test_a_finished_run_is_continued_only_if_asked(tmp_path: Path) -> None:
    log = CommitLog(tmp_path / "log", "run")
    log.commit_round("front", 0, "a")
    log.finish()
    log.close()
    resumed = CommitLog(tmp_path / "log", "run", resume=True)
    assert resumed.continued
    resumed.commit_round("front", 1, "b")
    resumed.close()
    unfinished = CommitLog(tmp_path / "log", "run")  # it was resumed, and not finished again
    assert unfinished.continued
    unfinished.finish()
    unfinished.close()
    anew = CommitLog(tmp_path / "log", "run")
    assert not anew.continued
    assert anew.newest_round("front") is None
    assert anew.oldest == anew.first_generation  # what the finished run left does not count


def test_all_stages_restart_in_one_generation(tmp_path: Path) -> None:
    log = CommitLog(tmp_path / "log", "run")
    for stage in ("front", "back"):
        for round in range(3):
            log.commit_round(stage, round, f"{stage} {round}")
    first, generation = log.generation, log.new_generation()
    assert generation > first
    assert log.restart_stage("front", 1, "x", generation) == generation
    assert log.restart_stage("back", 2, "y", generation) == generation
    log.close()
    again = CommitLog(tmp_path / "log", "run")
    assert again.newest_round("front") == (1, "x")
    assert again.newest_round("back") == (2, "y")
    assert (again.generation, again.first_generation) == (generation, first)


BASE = "configs/mlp.yaml"


def test_rates_and_sizes_may_change_and_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = CommitLog(tmp_path / "log", "mlp")
    note_settings(log, load_config(BASE, {}))
    log.close()
    log = CommitLog(tmp_path / "log", "mlp")
    changes = {"diloco.batch_size_per_step": 8, "diloco.inner_optim.adam_lr": 5e-3, "diloco.inner_steps": 4}
    with caplog.at_level(logging.INFO):
        note_settings(log, load_config(BASE, changes))
    told, refused = "servers are told", "a server that was started with another value is refused"
    for key, values, follows in (
        ("diloco.batch_size_per_step", "32 -> 8", told),
        ("diloco.inner_optim.adam_lr", "0.002 -> 0.005", told),
        ("diloco.inner_steps", "5 -> 4", refused),
    ):
        assert f"changed since the last start: {key}: {values} ({follows})\n" in caplog.text
    assert caplog.text.count("changed") == 3
    caplog.clear()
    with caplog.at_level(logging.INFO):
        note_settings(log, load_config(BASE, changes))
    assert "changed" not in caplog.text


def test_what_an_older_release_did_not_note_is_not_said_to_have_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = CommitLog(tmp_path / "log", "mlp")
    note_settings(log, load_config(BASE, {}))
    del log.settings["changeable"]["data.tokenizer"]
    with caplog.at_level(logging.INFO):
        note_settings(log, load_config(BASE, {"diloco.outer_steps": 9}))
    assert caplog.text.count("changed") == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 9}, "seed (0, now 9)"),
        ({"quant.enabled": False}, "quant.enabled"),
        ({"diloco.outer_optim.type": "adam"}, "diloco.outer_optim.type"),
        ({"data.img_size": 16}, "data.img_size"),
    ],
)
def test_another_structure_is_refused_by_name(tmp_path: Path, changes: dict[str, object], key: str) -> None:
    log = CommitLog(tmp_path / "log", "mlp")
    note_settings(log, load_config(BASE, {}))
    with pytest.raises(ConfigError, match="cannot go on with another") as refused:
        note_settings(log, load_config(BASE, changes))
    assert key in str(refused.value)


def test_another_pipeline_is_refused(tmp_path: Path) -> None:
    log = CommitLog(tmp_path / "log", "resnet18")
    note_settings(log, load_config("configs/resnet18.yaml", {}))
    other = load_config("configs/mlp.yaml", {"experiment_prefix": "resnet18"})
    with pytest.raises(ConfigError, match=r"model\.model_name"):
        note_settings(log, other)


def test_the_step_after_a_round_is_marked_when_the_last_mark_is_on_disk() -> None:
    marker = CheckpointSchedule(pipeline=0, life=7, every_s=1e9)
    at = [StageStanding(9, "", 0)] * 2
    assert marker.next(1) == ""
    marker.committed("", at, told=True)
    marker.committed("", at, told=True)
    after = [StageStanding(9, "", 1)] * 2
    marker.committed("", after, told=True)
    mark = marker.next(11)
    assert mark == "0-7-00000011"
    marker.committed(mark, after, told=True)
    later = [StageStanding(9, "", 2), StageStanding(9, mark, 2)]
    marker.committed("", later, told=True)
    assert marker.next(13) == ""  # one stage still writes
    marker.committed("", [StageStanding(9, mark, 2)] * 2, told=True)
    assert marker.next(14) == "0-7-00000014"


def test_steps_are_marked_by_time_too() -> None:
    marker = CheckpointSchedule(pipeline=1, life=7, every_s=0.0)
    assert marker.next(5) == "1-7-00000005"
    marker.committed("1-7-00000005", [], told=False)  # nobody else writes it: nobody is waited for
    assert marker.next(6) == "1-7-00000006"
