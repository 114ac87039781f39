"""Stages of one pipeline over the in-memory transport: real steps, no process, no socket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import torch
from tests.fakes.memory_transport import MemoryNetwork, MemoryTransport
from typing_extensions import Self

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.assembly.teacher_model import build_served
from distqat.distributed.model import SwarmModel
from distqat.distributed.serving.compute_thread import ComputeThread
from distqat.distributed.serving.forward_precision import ForwardPrecision
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.serving.serving_observer import ServingObserver
from distqat.distributed.serving.step_service import StepService
from distqat.distributed.serving.step_tally import StepOutcome
from distqat.distributed.training.custom_steps import CustomSteps
from distqat.distributed.training.event_loop_thread import EventLoopThread
from distqat.distributed.training.route_choice import RouteChoice
from distqat.distributed.training.route_step import StepSettings
from distqat.distributed.training.step_driver import StepDriver, StepResult
from distqat.errors import SwarmError
from distqat.protocol.hop import Hop, PeerAddress
from distqat.protocol.step_attempts import StepId
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.call_messages import CallHandlers
from distqat.swarm.tensor_frame import Message
from distqat.tasks.base import Batch
from distqat.topology.expert import ExpertId
from distqat.topology.snapshot import ServerRecord, SwarmSnapshot

AT: ContextVar[str] = ContextVar("AT", default="")
"""The UID of the replica whose code runs: tells a failpoint in one process where it is."""


class Stage(ServingObserver):
    """One server's steps without its rounds."""

    def __init__(
        self, config: Config, stage: str, network: MemoryNetwork, *, fail: set[str], index: int = 0
    ) -> None:
        self.uid = f"{stage}.0.{index}.0"
        last = stage == config.stages[-1]
        self.replica = StageReplica(
            build_served(config, stage),
            config.diloco,
            config.quant,
            stage=stage,
            precision=ForwardPrecision.resolve(config.data.precision, torch.device("cpu")),
            task=build_task(config) if last else None,
            activations=config.model_pipeline.activations,
        )
        self.compute = ComputeThread(1)
        self.transport = MemoryTransport(network, self.uid)
        self.steps = StepService(
            self.replica,
            self.compute,
            self.transport,
            self,
            uid=self.uid,
            run=config.experiment_prefix,
            lease_s=30,
        )
        self._fail = fail
        self.applied: Counter[str] = Counter()  # how often the optimizer stepped, by the step's seed
        self.marks: list[tuple[str, int, str]] = []  # checkpoint steps: by whom, at which step, their name
        self.passage: Callable[[str], None] = lambda name: None
        self._count_commits()

    def step_ended(self, id: StepId, outcome: StepOutcome, samples: int, mark: str) -> None:
        if mark:
            self.marks.append((self.uid, self.replica.step, mark))

    def _count_commits(self) -> None:
        """A ledger beside the server's own: what the replica was told, and what it did."""
        begin, commit, seeds = self.replica.begin, self.replica.commit, [""]

        def began(seed: str, *, frozen: bool = False) -> None:
            begin(seed, frozen=frozen)
            seeds[0] = seed

        def committed(factor: float, *, skip: bool = False) -> int:
            before = self.replica.step
            after = commit(factor, skip=skip)
            self.applied[seeds[0]] += after - before
            return after

        self.replica.begin, self.replica.commit = began, committed  # type: ignore[method-assign]

    async def answer(self, call: IncomingCall) -> Message:
        AT.set(self.uid)
        self.passage(f"call.{call.method}")
        if call.method in self._fail:
            self._fail.discard(call.method)
            raise SwarmError(f"{self.uid} fails {call.method} as the test wants")
        return await CallHandlers(self.uid, self.steps.handlers).answer(call)


class MemorySwarm:
    """A trainer and `replicas` of every stage."""

    def __init__(self, config: Config, replicas: int = 1) -> None:
        self.config = config
        self.replicas = replicas
        self.fail: set[str] = set()
        self.step_number = 0

    async def __aenter__(self) -> Self:
        self.network = network = MemoryNetwork()
        self.stages = [
            Stage(self.config, stage, network, fail=self.fail, index=index)
            for index in range(self.replicas)
            for stage in self.config.stages
        ]
        for stage in self.stages:
            await stage.transport.serve(stage.answer, stage.steps.attempts.gone)
        self.trainer = MemoryTransport(network, "trainer")
        self.hops = self.route()
        self.stepper = StepDriver(
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

    def route(self, *indices: int) -> list[Hop]:
        """One replica per stage, by index; those of index 0 where none is given."""
        chosen = [*indices, *[0] * (len(self.config.stages) - len(indices))]
        uids = [f"{stage}.0.{i}.0" for stage, i in zip(self.config.stages, chosen, strict=True)]
        return [Hop(uid, PeerAddress(uid)) for uid in uids]

    def snapshot(self) -> SwarmSnapshot:
        """What the directory would say of it."""
        return SwarmSnapshot(tuple(self.config.stages), tuple(_record(server) for server in self.stages))

    def custom_model(self, loop: EventLoopThread, **given: Any) -> SwarmModel:
        """The model of a training loop of one's own; `loop` is the one that this swarm lives on."""

        async def refresh() -> None:
            watch.snapshot = self.snapshot()

        watch: Any = SimpleNamespace(snapshot=self.snapshot())
        return SwarmModel(CustomSteps(self.stepper, RouteChoice(watch, 0), refresh), loop, **given)

    def stage(self, uid: str) -> Stage:
        return next(stage for stage in self.stages if stage.uid == uid)

    async def step(
        self,
        batch: list[Batch],
        attempt: int = 1,
        hops: Sequence[Hop] | None = None,
        consumed: Callable[[], Awaitable[None]] | None = None,
        frozen: Collection[int] = (),
    ) -> StepResult:
        """One step; stages at the positions `frozen` take part and stay as they are."""
        self.step_number += 1
        route = hops or self.hops

        async def nothing() -> None:
            return

        return await self.stepper.run(
            batch,
            route,
            self.step_number,
            attempt,
            consumed=consumed or nothing,
            settings=StepSettings(
                frozen=[hop.uid for position, hop in enumerate(route) if position in frozen]
            ),
        )

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


def _record(server: Stage) -> ServerRecord:
    expert = ExpertId.parse(server.uid)
    return ServerRecord(
        peer_id=PeerAddress(server.uid).peer,
        stage=expert.stage,
        index=expert.index,
        epoch=1,
        state="calibrating" if server.replica.calibrating else "serving",
        throughput=0.0,
        step=0,
        round=0,
        config_digest="",
        host="",
    )
