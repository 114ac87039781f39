"""Trainers are started for complete pipelines, unless the run is trained by loops of its users' own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from distqat.config import Config
from distqat.distributed.coordination.trainer_processes import TrainerProcesses
from distqat.metrics import NullSink
from distqat.process import RoleCommand, RoleProcess


@pytest.mark.parametrize("spawns", [True, False])
async def test_one_for_each_pipeline_where_they_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spawns: bool
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    asked = asyncio.Queue[str]()

    class Roles:
        async def spawn(self, command: RoleCommand) -> RoleProcess:
            asked.put_nowait(command.name)
            role = RoleProcess(command, 7, lambda *_: None)
            role._on_event({"event": "exit", "status": 0})
            return role

    config = Config(log_dir=str(tmp_path / "logs"), spawn_trainers=spawns)
    trainers = TrainerProcesses(config, [], Roles(), NullSink())  # type: ignore[arg-type]
    await trainers.start(serve_data=False)
    trainers.want([0, 1])
    trainers.want([0, 1])
    assert len(trainers._starting) == (2 if spawns else 0)
    started = [await asyncio.wait_for(asked.get(), 10) for _ in trainers._starting]
    assert sorted(started) == (["trainer 0", "trainer 1"] if spawns else [])
    await trainers.stop()
