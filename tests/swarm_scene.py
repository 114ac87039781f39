"""Stages of one pipeline over the in-memory transport: real steps, no process, no socket."""

from __future__ import annotations

import torch
from typing_extensions import Self

from distqat.config import Config
from distqat.distributed.building import build_module, build_task
from distqat.distributed.pipeline import Stepper, StepResult
from distqat.distributed.serving.compute import ComputeThread
from distqat.distributed.serving.precision import Precision
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.serving.steps import Steps
from distqat.distributed.wire import Hop
from distqat.errors import SwarmError
from distqat.swarm.channel import Call
from distqat.swarm.frame import Message
from distqat.swarm.link import Address
from distqat.swarm.memory import MemoryNetwork, MemoryTransport
from distqat.tasks.base import Batch


class Stage:
    """One server's steps without its rounds."""

    def __init__(self, config: Config, stage: str, network: MemoryNetwork, *, fail: set[str]) -> None:
        self.uid = f"{stage}.0.0.0"
        last = stage == config.stages[-1]
        self.replica = StageReplica(
            build_module(config, stage),
            config.diloco,
            config.quant,
            stage=stage,
            device=torch.device("cpu"),
            precision=Precision(),
            task=build_task(config) if last else None,
        )
        self.compute = ComputeThread(1)
        self.transport = MemoryTransport(network, self.uid)
        self.steps = Steps(
            self.replica, self.compute, self.transport, uid=self.uid, run=config.experiment_prefix, lease_s=30
        )
        self._fail = fail

    async def answer(self, call: Call) -> Message:
        if call.method in self._fail:
            self._fail.discard(call.method)
            raise SwarmError(f"{self.uid} fails {call.method} as the test wants")
        steps = self.steps
        calls = {"open": steps.open, "prepare": steps.prepare, "commit": steps.commit, "abort": steps.abort}
        calls["evaluate"] = steps.evaluate
        return await calls.get(call.method, steps.microbatch)(call)


class MemorySwarm:
    """A trainer and one replica of every stage."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.fail: set[str] = set()
        self.step_number = 0

    async def __aenter__(self) -> Self:
        network = MemoryNetwork()
        self.stages = [Stage(self.config, stage, network, fail=self.fail) for stage in self.config.stages]
        for stage in self.stages:
            await stage.transport.serve(stage.answer, stage.steps.gone)
        self.trainer = MemoryTransport(network, "trainer")
        self.hops = [Hop(stage.uid, Address(stage.uid)) for stage in self.stages]
        self.stepper = Stepper(
            transport=self.trainer,
            trainer="trainer",
            incarnation=1,
            options=self.config.model_pipeline,
            window_timeout=30,
            max_grad_norm=self.config.diloco.max_grad_norm,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for stage in self.stages:
            await stage.steps.close()
            stage.compute.stop()

    async def step(self, batch: list[Batch], attempt: int = 1) -> StepResult:
        self.step_number += 1

        async def consumed() -> None:
            return

        return await self.stepper.run(batch, self.hops, self.step_number, attempt, consumed=consumed)

    async def calibrate(self, batch: list[Batch]) -> None:
        self.step_number += 1
        await self.stepper.calibrate(batch, self.hops, self.step_number, 0)

    async def abort_a_step(self, batch: list[Batch]) -> None:
        """Run a step whose prepare fails at the end of the work; the trainer aborts it everywhere."""
        self.fail.add("prepare")
        try:
            await self.step(batch, attempt=0)
        except SwarmError:
            self.step_number -= 1
            return
        raise AssertionError("the step did not fail")

    def calibrating(self) -> bool:
        return any(stage.replica.calibrating for stage in self.stages)

    def floats(self) -> dict[str, torch.Tensor]:
        return {
            f"{stage.replica.stage}.{name}": tensor
            for stage in self.stages
            for name, tensor in stage.replica.module.state_dict().items()
            if tensor.is_floating_point()
        }
