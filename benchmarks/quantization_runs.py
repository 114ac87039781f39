"""The four ways to a model that benchmarks/quantization.py compares."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tests.failover.round_scene import STAGE, Convening, Replica, RoundSwarm
from tests.fakes.direct_calls import from_peer
from tests.fakes.memory_transport import MemoryNetwork
from torch import nn

from benchmarks.quantization_work import Work
from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_module
from distqat.distributed.serving.committed_state import as_local, initial
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.models import named_tensors
from distqat.protocol.calls.round_calls import FoundStage
from distqat.quant.ptq import end_observing, load_float, start_observing

CALIBRATION = 16  # batches
REPLICAS = 4


def one_process(work: Work, quant: Mapping[str, Any] | None) -> nn.Module:
    """Trained by the documented baseline; the only stage of it."""
    config = work.config(quant)
    samples = work.effort.steps * config.diloco.batch_size_per_step
    trainer = BaselineTrainer(config, torch.device("cpu"), samples)
    for batch in work.batches(work.seed + 10_000, CALIBRATION):
        if trainer.calibrates:
            trainer.calibrate(batch)
    for batch in work.batches(work.seed, work.effort.steps):
        trainer.step(batch)
    return trainer.model.stages[config.stages[0]]


def after_training(work: Work, trained: nn.Module, quant: Mapping[str, Any]) -> nn.Module:
    """The float model, quantized without training."""
    config = work.config(quant)
    module = build_module(config, config.stages[0])
    load_float(module, trained.state_dict())
    start_observing(module)
    with torch.no_grad():
        for batch in work.batches(work.seed + 10_000, CALIBRATION):
            for part in batch:
                named_tensors(module(*part.inputs.values()))
    end_observing(module)
    return module


async def diloco(work: Work, quant: Mapping[str, Any] | None) -> nn.Module:
    """Four replicas with steps and rounds over the in-memory transport; the committed state of the end."""
    config = work.config(quant)
    with tempfile.TemporaryDirectory() as folder:
        async with WorkSwarm(work, config, Path(folder)) as swarm:
            for number in range(config.diloco.outer_steps):
                records = await swarm.round(number)
                assert all(record["committed"] for record in records), records
            await swarm.agreed()
            swarm.check()
            founder = swarm.replicas[0]
            module = copy.deepcopy(founder.replica.module)
            as_local(founder.member.committed).load(module)
    return module


class WorkReplica(Replica):
    """Takes its batches from the work."""

    def __init__(self, work: Work, config: Config, network: MemoryNetwork, index: int) -> None:
        super().__init__(config, network, index)
        self._work = work

    async def found(self, client: Convening) -> None:
        await self.transport.serve(self.answer, self.steps.attempts.gone)
        for batch in self._work.batches(self._work.seed + 10_000, CALIBRATION):
            if self.replica.calibrating:
                self._steps += 1
                await self._stepper.calibrate(batch, [self.hop], self._steps, 0)
        shared = await self._compute(lambda: initial(self.replica.module))
        await client.service.found(FoundStage(STAGE, self.uid, shared.digest), from_peer(self.uid))
        await self._begin(shared)

    async def take_steps(self, count: int, seed: int) -> None:
        async def nothing() -> None:
            return

        for batch in self._work.batches(1_000_003 * (self._work.seed + 1) + seed, count):
            self._steps += 1
            await self._stepper.run(batch, [self.hop], self._steps, 0, consumed=nothing)


class WorkSwarm(RoundSwarm):
    """Four of them."""

    def __init__(self, work: Work, config: Config, folder: Path) -> None:
        super().__init__(config, folder, REPLICAS)
        self._work = work

    async def add(self) -> Replica:
        replica = WorkReplica(self._work, self.config, self.network, len(self.replicas))
        self.replicas.append(replica)
        await (replica.join() if len(self.replicas) > 1 else replica.found(self.client))
        return replica

    async def _ended(self, replica: Replica, count: int) -> None:
        await replica.rounds_ended(count)
