"""A trainer takes a batch in two phases: consumed once, counted once, marked when it is whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.failover.memory_scene import Driver, equal, state
from tests.golden.test_gan import batches, config_of
from tests.swarm_scene import MemorySwarm

from distqat.data.serving.batch_client import LeasedBatch
from distqat.distributed.serving.attempt_work import PreparedStep
from distqat.distributed.trainer import Trainer
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.errors import DataServerGone
from distqat.protocol.calls.slot_calls import ReportHeard, ReportStep

GENERATOR, DISCRIMINATOR = "generator.0.0.0", "discriminator.0.0.0"


class Scene:
    """A trainer over an in-memory swarm; data server, client and sink only listen."""

    def __init__(self, swarm: MemorySwarm) -> None:
        self.swarm = swarm
        self.events: list[str] = []  # what the data server and the stages were asked, in order
        self.told: list[Mapping[str, Any]] = []  # to the client
        self.records: list[Mapping[str, Any]] = []
        self.finished = False
        peer = SimpleNamespace(
            transport=swarm.trainer, directory=None, host="", identity=SimpleNamespace(peer="trainer")
        )
        swarm.trainer.traffic = SimpleNamespace(bytes_in=0, bytes_out=0)  # type: ignore[attr-defined]
        data: Any = SimpleNamespace(
            consumed=self.consumed, last_position={"epoch": 0, "index": 9}, account={}
        )
        sink: Any = SimpleNamespace(write=self.records.append)
        self.trainer = Trainer(swarm.config, peer, 0, data, sink)  # type: ignore[arg-type]
        watch: Any = SimpleNamespace(snapshot=Driver(swarm)._snapshot)
        self.trainer._watch = self.trainer._routes._watch = watch
        self.trainer._coordinator = SimpleNamespace(ask=self.ask)  # type: ignore[assignment]
        for server in swarm.stages:
            server.passage = lambda name, uid=server.uid: self.passed(name, uid)  # type: ignore[misc]

    def passed(self, name: str, uid: str) -> None:
        if name == "call.decide":
            self.events.append(f"decided at {uid}")

    async def consumed(self, batch_id: int) -> None:
        self.events.append(f"consumed {batch_id}")

    async def ask(self, request: ReportStep) -> ReportHeard:
        self.told.append({**request.figures, "loss": request.loss, "samples": request.samples})
        return ReportHeard(self.finished)

    async def train(self, number: int, batch: Any) -> bool:
        leased: list[LeasedBatch | None] = [LeasedBatch(number, batch, 0, ())]
        return await asyncio.wait_for(self.trainer._one_batch(leased, asyncio.Event()), 10)

    def steps(self) -> list[Mapping[str, Any]]:
        return [record for record in self.records if record["event"] == "step"]


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> AsyncIterator[Scene]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    config = config_of("generator", "discriminator")
    mirror = config.param_mirror.model_copy(update={"checkpoint_dir": str(tmp_path)})
    config = config.model_copy(update={"param_mirror": mirror})
    async with MemorySwarm(config) as swarm:
        yield Scene(swarm)
    torch.set_num_threads(before)


async def test_a_batch_is_consumed_before_its_first_commit_and_counted_once(scene: Scene) -> None:
    config = scene.swarm.config
    plain = BaselineTrainer(config, torch.device("cpu"))
    losses = []
    for number, batch in enumerate(batches(config, 2)):
        losses.append(plain.train(plain.phases([batch])))
        assert await scene.train(number, batch) is False
    await asyncio.gather(scene.trainer._told)  # type: ignore[arg-type]
    one = [f"decided at {GENERATOR}"] * 2
    assert scene.events == ["consumed 0", *one, "consumed 1", *one]
    count = scene.trainer._count
    assert (count.step, count.taken, count.samples) == (2, 4, 32)
    assert [told["samples"] for told in scene.told] == [16, 16]
    assert [told["loss"] for told in scene.told] == pytest.approx(losses, rel=1e-5)
    for told in scene.told:
        assert told["loss"] == pytest.approx(told["loss_discriminator"] + told["loss_generator"])
    found = [(s["step"], s["phase"], s["samples"], s["frozen"], s["id"][2]) for s in scene.steps()]
    assert found == [
        (1, "discriminator", 16, [GENERATOR], 1),
        (1, "generator", 0, [DISCRIMINATOR], 2),
        (2, "discriminator", 16, [GENERATOR], 3),
        (2, "generator", 0, [DISCRIMINATOR], 4),
    ]
    theirs = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
    for name, tensor in scene.swarm.floats().items():
        torch.testing.assert_close(tensor, theirs[name])


async def test_only_a_whole_batch_is_a_checkpoint_step_and_frozen_stages_write_it_too(
    scene: Scene, tmp_path: Any
) -> None:
    scene.trainer._checkpoints._due = True
    first, second = batches(scene.swarm.config, 2)
    await scene.train(0, first)
    marks = [mark for server in scene.swarm.stages for mark in server.marks]
    assert {(uid, step) for uid, step, _ in marks} == {(GENERATOR, 1), (DISCRIMINATOR, 1)}
    assert len(marks) == 2
    assert len({mark for _, _, mark in marks}) == 1
    await scene.train(1, second)
    assert sum(len(server.marks) for server in scene.swarm.stages) == 2
    await scene.trainer._parts.finish()
    parts = list(tmp_path.rglob("*.json"))
    assert len(parts) == 1, sorted(tmp_path.rglob("*"))


async def test_an_overflow_skips_its_phase_only(scene: Scene) -> None:
    first, second = batches(scene.swarm.config, 2)
    await scene.train(0, first)
    discriminator = scene.swarm.stage(DISCRIMINATOR)
    prepare, before = discriminator.replica.prepare, state(scene.swarm, DISCRIMINATOR)

    def overflows() -> PreparedStep:
        discriminator.replica.prepare = prepare  # type: ignore[method-assign]
        return PreparedStep(prepare().count, torch.tensor([torch.inf]))

    discriminator.replica.prepare = overflows  # type: ignore[method-assign]
    await scene.train(1, second)
    assert [step["skipped"] for step in scene.steps()] == [False, False, True, False]
    assert equal(before, state(scene.swarm, DISCRIMINATOR))
    counts = {server.uid: server.steps.tally.counts for server in scene.swarm.stages}
    assert counts[DISCRIMINATOR] == {"applied": 1, "skipped": 1, "frozen": 2, "aborted": 0}
    assert counts[GENERATOR] == {"applied": 2, "skipped": 0, "frozen": 2, "aborted": 0}
    assert scene.trainer._count.step == 2


async def test_a_failure_between_the_phases_runs_none_of_them_twice(scene: Scene) -> None:
    """The second phase is aborted and run again; the batch is not consumed again."""
    (batch,) = batches(scene.swarm.config, 1)
    generator = scene.swarm.stage(GENERATOR)
    prepares: list[str] = []

    def fails_once(name: str) -> None:
        if name == "call.prepare":
            prepares.append(name)
            if len(prepares) == 2:
                scene.swarm.fail.add("prepare")
        scene.passed(name, GENERATOR)

    generator.passage = fails_once
    scene.trainer._routes._router.failed = lambda *_: None  # type: ignore[method-assign]
    await scene.train(0, batch)
    assert len(prepares) == 3
    assert [record["event"] for record in scene.records] == ["step", "abort", "step"]
    assert [record["id"][2:] for record in scene.records] == [[1, 0], [2, 0], [2, 1]]
    assert [event for event in scene.events if event.startswith("consumed")] == ["consumed 0"]
    assert [server.replica.step for server in scene.swarm.stages] == [1, 1]


async def test_what_the_data_server_refuses_is_committed_nowhere(scene: Scene) -> None:
    (batch,) = batches(scene.swarm.config, 1)

    async def gone(batch_id: int) -> None:
        raise DataServerGone("it closed the connection")

    scene.trainer._data.consumed = gone  # type: ignore[method-assign]
    with pytest.raises(DataServerGone):
        await scene.train(0, batch)
    assert [server.replica.step for server in scene.swarm.stages] == [0, 0]
