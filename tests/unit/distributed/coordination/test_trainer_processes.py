"""Trainers are started for complete pipelines, unless the run is trained by loops of its users' own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from distqat.config import Config
from distqat.distributed.coordination.trainer_processes import TrainerProcesses
from distqat.errors import BadFrame, Refused
from distqat.metrics import NullSink
from distqat.process import RoleCommand, RoleProcess
from distqat.protocol.calls.slot_calls import ReportStep


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


@pytest.mark.parametrize("spawns", [True, False])
async def test_reports_count_for_pipelines_that_can_have_a_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spawns: bool
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    config = Config(log_dir=str(tmp_path / "logs"), spawn_trainers=spawns, max_expert_index=4)
    trainers = TrainerProcesses(config, [], None, NullSink())  # type: ignore[arg-type]
    trainers.want([0])
    with pytest.raises(Refused, match="no trainer for pipeline 4"):
        trainers.report(ReportStep(4, 1, 0.5, 8, 2.0))
    broken = ReportStep(0, 1, 0.5, 8, 2.0, position={"order": "x"}, progress={"step": "abc"})
    with pytest.raises(BadFrame, match="progress"):
        trainers.report(broken)
    assert trainers.latest() == []
    assert trainers._parameters == {}
    assert trainers.samples == 0
    trainers.report(ReportStep(0, 1, 0.5, 8, 2.0, progress={"step": 1}, tokens_per_s=64.0))
    assert [each["tokens_per_s"] for each in trainers.latest()] == [64.0]
    if spawns:
        with pytest.raises(Refused, match="no trainer for pipeline 1"):
            trainers.report(ReportStep(1, 1, 0.5, 8, 2.0))
    else:  # loops of the user's own
        trainers.report(ReportStep(1, 1, 0.5, 8, 2.0))
    await trainers.stop()
