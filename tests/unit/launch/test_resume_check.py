"""--resume goes on with this run or says what is there instead; it never begins anew in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distqat.checkpoint import CheckpointStore, ShardState
from distqat.config import Config, load_config, structure, structure_digest
from distqat.diloco.tensor_digest import state_digest
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.errors import ConfigError
from distqat.launch.resume_check import COMMIT_LOG, check_resumable


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return of_run("mine", tmp_path)


def of_run(name: str, folder: Path, **changes: Any) -> Config:
    places = {"param_mirror.checkpoint_dir": str(folder / "ck"), "log_dir": str(folder / "logs")}
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config("configs/mlp.yaml", {"experiment_prefix": name, **places, **given})


def write(config: Config, *stages: str) -> None:
    store = CheckpointStore(config.checkpoint_dir, config.experiment_prefix, stages=config.stages)
    for round in (1, 2):
        for stage in stages:
            shared = {"anchor/w": torch.full((2,), float(round))}
            told = structure(config, stage)
            digest = structure_digest(config, stage)
            store.write(stage, ShardState(1000, round, 5, state_digest(shared), shared, told, digest))


def log(config: Config, *rounds: int) -> None:
    written = CommitLog(Path(config.log_dir) / COMMIT_LOG, config.experiment_prefix)
    for round in rounds:
        for stage in config.stages:
            written.commit_round(stage, round, "d")
    written.close()


def refused(config: Config) -> str:
    with pytest.raises(ConfigError) as raised:
        check_resumable(config)
    return str(raised.value)


def test_rounds_of_every_stage_are_gone_on_from(config: Config) -> None:
    write(config, *config.stages)
    check_resumable(config)
    log(config, 0, 1, 2, 3)
    check_resumable(config)


def test_another_runs_checkpoints_are_named(config: Config, tmp_path: Path) -> None:
    write(of_run("other", tmp_path), *config.stages)
    said = refused(config)
    assert "nothing to resume of run 'mine' (no commit log says how far it went)" in said
    assert f"{tmp_path}/ck holds rounds 1 to 2 of run 'other' (mlp.front, mlp.back)" in said
    assert "--experiment-prefix" in said


def test_an_empty_folder_is_named(config: Config, tmp_path: Path) -> None:
    assert f"there is no {tmp_path}/ck" in refused(config)
    (tmp_path / "ck" / "previous" / "20261201-101839").mkdir(parents=True)
    assert f"earlier runs are in {tmp_path}/ck/previous/: 20261201-101839" in refused(config)


def test_a_log_whose_checkpoints_are_gone_is_no_beginning(config: Config) -> None:
    log(config, 0, 1, 2)
    assert "(its log says round 2)" in refused(config)
    write(config, "front")
    assert "no round of stage back" in refused(config)


def test_a_run_that_was_stopped_before_its_first_round_begins_again(config: Config) -> None:
    log(config)
    check_resumable(config)
    with (Path(config.log_dir) / COMMIT_LOG).open("a") as file:
        file.write('{"kind": "round", "sta')  # cut short by a power cut
    check_resumable(config)


def test_another_model_is_refused_by_the_key(config: Config, tmp_path: Path) -> None:
    write(config, *config.stages)
    pipeline = [{"model_name": f"mlp.{name}", "hidden": 24} for name in config.stages]
    said = refused(of_run("mine", tmp_path, model_pipeline__pipeline=pipeline))
    assert "run 'mine' cannot be resumed with another model.hidden (None, now 24)" in said


def test_the_log_of_another_run_is_named(config: Config, tmp_path: Path) -> None:
    log(of_run("other", tmp_path), 0, 1)
    assert f"{tmp_path}/logs/{COMMIT_LOG} is of run 'other', and this is 'mine'" in refused(config)
    assert json.loads((tmp_path / "logs" / COMMIT_LOG).read_text().splitlines()[0])["run"] == "other"
