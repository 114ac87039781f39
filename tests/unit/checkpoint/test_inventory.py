"""A checkpoint folder in words."""

from __future__ import annotations

from pathlib import Path

from tests.unit.checkpoint.states import AGREEMENT, shard_state

from distqat.checkpoint import CheckpointStore
from distqat.checkpoint.inventory import earlier_runs, inventory


def test_rounds_are_named_by_run_and_model(tmp_path: Path) -> None:
    for run, generation in (("cats", 1), ("dogs", 2)):
        for round in (1, 2, 3):
            for stage in ("front", "back"):
                told = {**AGREEMENT, "model.model_name": f"mlp.{stage}"}
                state = shard_state(round, stage=stage, generation=generation, agreement=told)
                CheckpointStore(tmp_path, run).write(stage, state)
    (tmp_path / "model.safetensors").touch()
    assert inventory(tmp_path) == (
        f"{tmp_path} holds rounds 1 to 3 of run 'cats' (mlp.front, mlp.back) and rounds 1 to 3 of run 'dogs' "
        "(mlp.front, mlp.back) and model.safetensors"
    )


def test_other_things_are_named_too(tmp_path: Path) -> None:
    assert inventory(tmp_path / "nope") == f"there is no {tmp_path}/nope"
    assert inventory(tmp_path) == f"{tmp_path} is empty"
    for name in "abcdefg":
        (tmp_path / name).touch()
    assert inventory(tmp_path) == f"{tmp_path} holds a, b, c, d, e and 2 more"
    assert inventory(tmp_path / "a") == f"{tmp_path}/a is a file"


def test_earlier_runs_are_hinted_at(tmp_path: Path) -> None:
    assert earlier_runs(tmp_path) == ""
    (tmp_path / "previous" / "20261201-101839").mkdir(parents=True)
    assert earlier_runs(tmp_path) == f"; earlier runs are in {tmp_path}/previous/: 20261201-101839"
