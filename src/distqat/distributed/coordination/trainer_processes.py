"""The client's children: the data server and one trainer per complete pipeline."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distqat.checkpoint.trainer_part import TrainerPart
from distqat.config import Config
from distqat.distributed.training.checkpoint_schedule import TrainerProgress
from distqat.errors import BadFrame, DistqatError, Refused
from distqat.metrics import Sink
from distqat.process import (
    ForkServerClient,
    RoleCommand,
    RoleParameters,
    RoleProcess,
    Supervisor,
    claim_log,
    runtime_dir,
)
from distqat.protocol.call_schema import fields_of
from distqat.protocol.calls.slot_calls import ReportStep

logger = logging.getLogger(__name__)

DATA_READY_S = 120.0  # the first batch may come from the hub
STOP_GRACE_S = 8.0
LOG_EVERY = 10
DATA_SERVER = "data-server"


class TrainerProcesses:
    """Starts what the client needs, restarts what crashes, keeps what trainers report."""

    def __init__(
        self, config: Config, argv: Sequence[str], fork_server: ForkServerClient, sink: Sink
    ) -> None:
        self.rounds: list[dict[str, Any]] = []
        self.totals: dict[int, dict[str, Any]] = {}  # last report by pipeline
        self.first_loss: float | None = None
        self.recent_losses: list[float] = []
        self.began: float | None = None
        self.ended = 0.0
        self.samples = 0
        self.account: dict[str, Any] = {}  # what the data set leaves out
        self._config = config
        self._argv = list(argv)
        self._sink = sink
        self._supervisor = Supervisor(fork_server)
        self._wanted: set[int] = set()
        self._data_ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._data_there = asyncio.Event()
        self._starting: list[asyncio.Future[None]] = []
        self._failed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._socket = runtime_dir() / f"data-{os.getpid()}.sock"
        self._parameters: dict[str, RoleParameters] = {}  # by the name of a child
        self._environments: dict[str, dict[str, str]] = {}

    async def start(self, parts: Sequence[TrainerPart] = (), *, serve_data: bool = True) -> None:
        """Start the data server if the task has data; trainers follow when pipelines are complete.

        `parts`: what trainers wrote at the checkpoint step that the run goes on from, newest first.
        """
        for part in reversed(parts):
            progress = TrainerProgress(part.step, part.taken, part.samples, dict(part.scaler))
            self._keep_up(part.pipeline, part.data, progress.fields())
        if not serve_data:
            self._data_ready.set_result({})
            self._data_there.set()
            return
        log = claim_log(Path(self._config.log_dir), "data_server")
        command = RoleCommand(
            DATA_SERVER,
            "distqat.distributed.data_server:main",
            tuple(self._argv),
            log.path,
            self._given(DATA_SERVER),
            threads=1,
        )
        serving = self._supervisor.start(command, on_start=self._data_started)
        serving.add_done_callback(lambda task: self._give_up(command, task))

    def _data_started(self, role: RoleProcess) -> None:
        """Trainers wait for the (newest) data server: without it they could only crash."""
        self._data_ready = asyncio.ensure_future(role.ready(DATA_READY_S))
        self._data_there.set()

    async def failure(self) -> None:
        """Raises what the data server or a trainer ended with when it is given up."""
        await self._failed

    async def run_baseline(
        self, client_peer: str, generation: int, samples: int | None, before: Callable[[], Awaitable[None]]
    ) -> None:
        """The documented baseline: one trainer that computes by itself; returns when it has finished.

        The arguments as in RoleParameters. It does not wait for the checks that servers wait for, so `before`
        is done here, once the data serve.
        """
        await self.data_serves()
        await before()
        self._wanted.add(0)
        self._given(_trainer(0), client_peer=client_peer, generation=generation, samples=samples)
        task = self._start_trainer(0, ("--run-locally",))
        await asyncio.wait({task})
        if task.result() != 0:
            await self._failed

    def want(self, pipelines: list[int]) -> None:
        """One trainer per complete pipeline; a trainer whose pipeline broke pauses and stays."""
        for pipeline in pipelines:
            if pipeline not in self._wanted and self._config.spawn_trainers:
                self._wanted.add(pipeline)
                self._starting.append(asyncio.ensure_future(self._start_when_data_serves(pipeline)))

    def report(self, told: ReportStep) -> None:
        """What a trainer says of a step. Raises Refused; BadFrame where no trainer could go on from there."""
        pipeline, step, loss = told.pipeline, told.step, told.loss
        # With trainers of the user's own, any pipeline that there can be.
        if pipeline not in self._wanted and (
            self._config.spawn_trainers or pipeline >= self._config.max_expert_index
        ):
            raise Refused(f"this client has no trainer for pipeline {pipeline}")
        progress = None if told.progress is None else _progress_of(told.progress)
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.recent_losses = [*self.recent_losses[-19:], loss]
        now = asyncio.get_running_loop().time()
        self.began = now - told.seconds if self.began is None else self.began
        self.ended = now
        self.samples += told.samples
        self._keep_up(pipeline, told.position, progress)
        self.account = dict(told.account or {}) or self.account
        fields = fields_of(replace(told, position=None, progress=None, account=None))
        self.totals[pipeline] = fields
        if step == 1 or step % LOG_EVERY == 0:
            logger.info("Trainer %d Step #%d loss = %.5f sps = %.1f", pipeline, step, loss, told.sps)
            if told.tokens_per_s is not None:
                logger.info("Trainer %d reads %.0f tokens/s", pipeline, told.tokens_per_s)
        self._sink.write({"event": "step", **fields})

    def _keep_up(
        self, pipeline: int, position: Mapping[str, Any] | None, progress: Mapping[str, Any] | None
    ) -> None:
        """A child that is started again goes on where the last one was when it last said so."""
        if position is not None:
            self._given(DATA_SERVER, data_position=dict(position))
        if progress is not None:
            self._given(_trainer(pipeline), progress=dict(progress))

    def _given(self, name: str, **changes: Any) -> dict[str, str]:
        """What a child finds in its environment when it is started, the next time with `changes`."""
        known = self._parameters.get(name) or RoleParameters(data_socket=str(self._socket))
        self._parameters[name] = replace(known, **changes)
        environment = self._environments.setdefault(name, {})
        environment.update(self._parameters[name].environment())
        return environment

    def latest(self) -> list[dict[str, Any]]:
        """The last report of every trainer."""
        return [self.totals[pipeline] for pipeline in sorted(self.totals)]

    def samples_per_s(self) -> float:
        """Over all trainers, from the first step's begin to the last report."""
        return self.samples / max(self.ended - (self.began or self.ended), 1e-9)

    async def stop(self) -> None:
        """End the trainers and the data server in order. May be repeated."""
        for starting in self._starting:
            starting.cancel()
        await self._supervisor.stop(STOP_GRACE_S)
        self._socket.unlink(missing_ok=True)

    async def _start_when_data_serves(self, pipeline: int) -> None:
        await self.data_serves()
        self._start_trainer(pipeline)

    async def data_serves(self) -> dict[str, Any]:
        """What the data server said once it was ready; one that crashed is started again."""
        while True:
            await self._data_there.wait()
            ready = self._data_ready
            try:
                return await asyncio.shield(ready)
            except DistqatError as error:
                logger.warning("the data server is not ready: %s", error)
            if self._data_ready is ready:
                self._data_there.clear()

    def _start_trainer(self, pipeline: int, flags: tuple[str, ...] = ()) -> asyncio.Task[int]:
        log = claim_log(Path(self._config.log_dir), "trainer", pipeline)
        name = _trainer(pipeline)
        command = RoleCommand(
            name,
            "distqat.distributed.trainer:main",
            (*flags, *self._argv),
            log.path,
            self._given(name, pipeline=pipeline),
            threads=None if flags else 1,
        )

        def said(role: RoleProcess) -> None:
            logger.info("Spawned trainer %d with PID %d", pipeline, role.pid)

        task = self._supervisor.start(command, on_start=said)
        task.add_done_callback(lambda done: self._give_up(command, done))
        return task

    def waits(self) -> list[dict[str, Any]]:
        """What children say that they wait for: who, what, since when (Unix time)."""
        live = self._supervisor.live
        return [role.wait_told.fields(role.command.name) for role in live if role.wait_told]

    def _give_up(self, command: RoleCommand, task: asyncio.Task[int]) -> None:
        if task.cancelled() or self._failed.done() or task.result() == 0:
            return
        ended = self._supervisor.end_of(command)
        assert ended is not None, "a task that is over has told how"
        self._failed.set_exception(ended.failure())


def _trainer(pipeline: int) -> str:
    return f"trainer {pipeline}"


def _progress_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """The progress that a trainer tells of, as the next one takes it. Raises BadFrame."""
    try:
        return TrainerProgress.of(told).fields()
    except (TypeError, ValueError) as error:
        raise BadFrame(f"field 'progress' does not say where a trainer goes on: {error}") from error
