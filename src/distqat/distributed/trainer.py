"""The trainer: takes batches and drives them through a pipeline, step after step."""

from __future__ import annotations

from distqat.terminal import begin, leave

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("trainer", clean=False)

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from distqat.config import Config
from distqat.data.serving.batch_client import DataClient, LeasedBatch
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.distributed.network.role_peer import RolePeer, first_of
from distqat.distributed.network.unreachable_peers import UnreachablePeers
from distqat.distributed.role_main import RoleStart, run_role_main
from distqat.distributed.training.ask_model import ask_model
from distqat.distributed.training.batch_phases import PhaseStep, phase_steps
from distqat.distributed.training.batch_source import BatchFeed, StoppedWaiting
from distqat.distributed.training.checkpoint_schedule import CheckpointSchedule, TrainerProgress
from distqat.distributed.training.loss_scaler import LossScaler, wants_scaling
from distqat.distributed.training.part_writer import PartWriter
from distqat.distributed.training.rollout import RolloutFeed
from distqat.distributed.training.route_choice import RouteChoice
from distqat.distributed.training.route_step import StepSettings
from distqat.distributed.training.step_driver import StepDriver, StepResult
from distqat.distributed.training.step_failures import BatchFailures, StepFailures
from distqat.distributed.training.step_records import StepRecords
from distqat.distributed.training.step_size import StepSize
from distqat.errors import ConfigError, DataError, DataServerGone, HubUnavailable, SwarmError, TaskError
from distqat.failpoints import failpoint
from distqat.metrics import Sink, open_sinks
from distqat.process import AnnouncedWait, announce_ready, waiting
from distqat.protocol.call_schema import parse
from distqat.protocol.calls.slot_calls import ReportStep
from distqat.protocol.hop import Hop
from distqat.swarm.directory import DirectoryWatch
from distqat.topology.routing import Route

logger = logging.getLogger(__name__)

RETRY_S = 0.1


class Trainer:
    """Trains over whatever complete pipeline there is; pauses when there is none."""

    def __init__(
        self,
        config: Config,
        peer: RolePeer,
        pipeline: int,
        data: BatchFeed | None,
        sink: Sink,
        progress: TrainerProgress | None = None,
    ) -> None:
        """`data`: None for a task that makes its batches by acting. `progress`: of an earlier life."""
        self._config = config
        self._peer = peer
        self._pipeline = pipeline
        self._task = build_task(config)
        self._watch = DirectoryWatch(peer.directory, config.stages)
        self._coordinator = CoordinatorLink(peer.transport, peer.directory)
        self._unreached = UnreachablePeers(peer.transport, self._coordinator, peer.host)
        self._routes = RouteChoice(self._watch, pipeline)
        self._records = StepRecords(sink, pipeline, peer.transport)
        self._count = progress or TrainerProgress()
        self._failures = StepFailures()
        self._batch_failures = BatchFailures()
        self._stop = asyncio.Event()
        if self._task.plays:
            start = self._count.taken
            data = RolloutFeed(
                self._task, self._ask, seed=config.seed, pipeline=pipeline, start=start, told=sink.write
            )
        assert data is not None
        self._data = data
        self._life = int(time.time() * 1000)
        self._checkpoints = CheckpointSchedule(pipeline, self._life, config.param_mirror.refresh_every)
        self._parts = PartWriter(config, pipeline, self._life)
        self._told: asyncio.Future[bool] | None = None  # the last report to the client
        self._step_size = StepSize(config.diloco.batch_size_per_step)
        self._fp16 = LossScaler.for_fp16(self._count.scaler)
        self._stepper = StepDriver.of(config, peer.transport, self._life)
        self._stepper.task = self._task if self._task.loss_at == "trainer" else None

    async def run(self, stop: asyncio.Event) -> int:
        """Step after step until the client says that the run is finished, or until asked to stop."""
        watching = asyncio.ensure_future(self._watch.run())
        reporting = asyncio.ensure_future(self._unreached.report())
        self._stop = stop
        try:
            await self._coordinator.wait()
            await self._watch.refresh()
            finished = False
            while not finished and not stop.is_set():
                try:
                    leased = await self._lease(await self._routes.next(stop))
                except StoppedWaiting:
                    break
                try:
                    finished = await self._one_batch(leased, stop)
                finally:
                    await asyncio.gather(*(self._release(lease) for lease in leased if lease is not None))
            return 0
        finally:
            watching.cancel()
            reporting.cancel()
            await self._parts.finish()

    async def _lease(self, route: Route | None) -> list[LeasedBatch | None]:
        """The batches of one inner step; a server on the route may want them small."""
        options = self._config.diloco
        count = self._step_size.over(route.servers if route else ())
        return [await self._next(count) for _ in range(options.gradient_accumulation_steps)]

    async def _next(self, count: int) -> LeasedBatch:
        """A batch. Raises RunFailed when the same samples cannot be read again and again, DataServerGone."""
        while True:
            try:
                with waiting("a batch from the data server"):
                    leased = await self._data.next(count)
            except (DataServerGone, HubUnavailable):
                raise
            except (DataError, TaskError) as error:
                logger.warning("no batch: %s", error)
                self._batch_failures.failed(error)
                await asyncio.sleep(RETRY_S)
            else:
                self._batch_failures.succeeded()
                return leased

    async def _ask(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The whole model in eval mode. Raises StoppedWaiting."""
        return await ask_model(self._stepper, self._routes, inputs, self._stop)

    async def _release(self, lease: LeasedBatch) -> None:
        with contextlib.suppress(DataServerGone):
            await self._data.release(lease.batch_id)

    async def _one_batch(self, leased: list[LeasedBatch | None], stop: asyncio.Event) -> bool:
        """Run the step of a batch, or one for each phase of its task; whether all is finished.

        The batch is consumed just before the first commit. What a death or a stop leaves undone of its
        phases after that is lost; no phase is committed twice.
        """
        steps = phase_steps(
            self._task,
            [lease.batch for lease in leased if lease is not None],
            stages=len(self._config.stages),
            microbatches=self._config.model_pipeline.microbatches,
        )

        async def consumed() -> None:
            for position, lease in enumerate(leased):
                if lease is None:  # an attempt came to its commit before and was aborted there
                    continue
                await self._data.consumed(lease.batch_id)
                leased[position] = None

        for planned in steps:
            if await self._one_step(planned, consumed, stop):
                return True
        return False

    async def _one_step(
        self, planned: PhaseStep, consumed: Callable[[], Awaitable[None]], stop: asyncio.Event
    ) -> bool:
        """Run one step until it is committed, over as many routes as it takes; whether all is finished."""
        with contextlib.ExitStack() as failing:
            return await self._until_committed(planned, consumed, stop, failing)

    async def _until_committed(
        self,
        planned: PhaseStep,
        consumed: Callable[[], Awaitable[None]],
        stop: asyncio.Event,
        failing: contextlib.ExitStack,
    ) -> bool:
        """As `_one_step`; a wait that says why is opened in `failing` at the first failure."""
        step, attempt = self._count.take(), 0
        wait: AnnouncedWait | None = None
        while not stop.is_set():
            route = await self._routes.next(stop)
            if route is None:
                return True
            hops = [Hop.of(server) for server in route.servers]
            began = time.monotonic()
            failpoint("trainer.step")
            try:
                if any(server.state == "calibrating" for server in route.servers):
                    await self._stepper.calibrate(planned.parts, hops, step, attempt)
                    await self._watch.refresh()
                    step, attempt = self._count.take(), 0  # the calibration has used up the last number
                    continue
                number = self._count.step + 1
                # A checkpoint holds whole batches, so only the last of the phases may be marked.
                mark = self._checkpoints.next(number) if planned.last else ""
                draw = f"{self._pipeline}|{number}{planned.name and '|'}{planned.name}"
                alone = len(self._watch.snapshot.servers) == len(hops)
                told = mark if alone else ""  # with replicas a run goes on from rounds, not from steps
                self._stepper.scaler = self._fp16 if wants_scaling(route.servers) else LossScaler()
                result = await self._stepper.run(
                    planned.parts,
                    hops,
                    step,
                    attempt,
                    consumed=consumed,
                    settings=StepSettings(draw, told, planned.uids(hops)),
                )
            except SwarmError as error:
                self._records.aborted(error, hops, self._stepper.id(step, attempt))
                attempt += 1
                logger.warning("step %d is run again (attempt %d): %s", step, attempt, error)
                self._failures.failed(error, self._count.step + 1)
                wait = wait or failing.enter_context(waiting(""))
                wait.what = f"a route for step {self._count.step + 1}; the last failed: {error}"
                await self._routes.failed(error, route, attempt)
                continue
            self._count.step += planned.last
            self._count.samples += planned.samples
            self._count.scaler = self._fp16.state()
            self._mark("" if result.skipped else mark, result, told=bool(told))
            seconds = time.monotonic() - began
            self._failures.committed(result, self._count.step)
            for uid in result.lost:
                logger.warning("step %d is lost at %s, which died in its commit", self._count.step, uid)
            self._routes.taken(route, result, seconds, elsewhere=self._failures.look_elsewhere)
            taken = number, seconds
            batch = self._records.committed(planned, result, hops, self._stepper.id(step, attempt), taken)
            return await self._report(batch) if planned.last else False
        return True

    def _mark(self, mark: str, result: StepResult, *, told: bool) -> None:
        """Write our part of a checkpoint step while the stages write theirs."""
        self._checkpoints.committed(mark, result.standing, told=told)
        if mark:
            self._parts.begin(mark, result.standing, self._count, self._data.last_position)

    async def _report(self, batch: dict[str, Any]) -> bool:
        """Tell the client of a batch; the answer to the report before says whether the run is finished."""
        finished = await self._told if self._told is not None else False
        told = {**batch, "position": self._data.last_position, "progress": self._count.fields()}
        told["account"] = self._data.account
        self._told = asyncio.ensure_future(self._tell(told))  # the next step need not wait for the answer
        return finished

    async def _tell(self, record: dict[str, Any]) -> bool:
        try:
            return (await self._coordinator.ask(parse(ReportStep, record))).finished
        except SwarmError as error:
            logger.warning("the client does not answer: %s", error)
            self._failures.report_failed(error)
            await self._coordinator.wait()
            return False


async def serve(start: RoleStart, stop: asyncio.Event) -> int:
    """Connect to the data server and the swarm, then train."""
    config, parameters, pipeline = start.config, start.parameters, start.parameters.pipeline
    if start.args.run_locally:
        from distqat.distributed.baseline import train_locally

        return await train_locally(config, stop, parameters)
    if not config.initial_peers and not parameters.data_socket:
        raise ConfigError(
            "a trainer of a swarm is started by its client; to train in this process, give --run-locally"
        )
    plays = build_task(config).plays
    peer = await RolePeer.start(config, port=0, port_given=False, initial_peers=config.initial_peers)
    sink = open_sinks(config.log_dir, f"trainer_{pipeline}")
    try:
        data: DataClient | None = None
        if not plays:
            data = await DataClient.connect(
                parameters.data_socket_path,
                trainer=str(pipeline),
                count=config.diloco.batch_size_per_step,
                slots=config.diloco.gradient_accumulation_steps + 1,
            )
        announce_ready({"role": "trainer", "pipeline": pipeline})
        progress = TrainerProgress.of(parameters.progress)
        training: asyncio.Future[Any] = asyncio.ensure_future(
            Trainer(config, peer, pipeline, data, sink, progress).run(stop)
        )
        daemon: asyncio.Future[Any] = asyncio.ensure_future(peer.lost_daemon())
        ended = await first_of(stop, training, daemon)
        if ended is None:  # asked to stop: finish or abort the step
            await asyncio.wait({training}, timeout=5.0)
        training.cancel()
        daemon.cancel()
        await asyncio.gather(training, return_exceptions=True)
        if data is not None:
            await data.close()
        if ended is not None:
            ended.result()
        return 0
    finally:
        await peer.stop()
        sink.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: the run finished or the trainer was stopped in order; 1: it failed; 2: refused."""
    return run_role_main(
        "trainer",
        "Train over one pipeline.",
        serve,
        argv,
        flags=lambda parser: parser.add_argument(
            "--run-locally",
            action="store_true",
            help="compute in this process, without servers: the baseline",
        ),
        title=lambda args, told: f"trainer {told.pipeline}",
    )


if __name__ == "__main__":
    leave(main())
