"""The client: finds complete pipelines, spawns trainers, grants slots, convenes rounds."""

from __future__ import annotations

from distqat.terminal import begin, leave

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("client", clean=False)

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distqat.config import Config, check_start_from, check_teacher_path, to_argv
from distqat.distributed.assembly.keep_earlier_runs import note_end
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.assembly.tied_weights import tied_stages
from distqat.distributed.coordination.client_calls import ClientCalls, ClientParts
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.discarded_rounds import DiscardedRounds
from distqat.distributed.coordination.fetch_committed import collect_states
from distqat.distributed.coordination.parameter_mirror import ParameterMirror
from distqat.distributed.coordination.periodic_evaluation import PeriodicEvaluation
from distqat.distributed.coordination.preflight import Preflight
from distqat.distributed.coordination.round_service import RoundService
from distqat.distributed.coordination.run_end import EndedRun, conclude
from distqat.distributed.coordination.run_start import RunStart, note_settings
from distqat.distributed.coordination.slot_grants import SlotGrants
from distqat.distributed.coordination.trainer_processes import TrainerProcesses
from distqat.distributed.network.role_peer import RolePeer, first_failure, first_of, need_log_dir, need_peers
from distqat.distributed.role_main import RoleStart, run_role_main
from distqat.distributed.training.rollout import check_play
from distqat.errors import ConfigError, ModelError, RunFailed, SwarmError, TaskError
from distqat.metrics import Sink, open_sinks
from distqat.process import (
    PRELOAD,
    ForkServerClient,
    RoleParameters,
    announce_ready,
    notice,
)
from distqat.swarm.directory import DirectoryWatch, keep_announced

logger = logging.getLogger(__name__)

BY_HAND = RoleParameters()
FINISH_S = 5.0  # how long servers get to hear that the run is finished


class Client:
    """The client role of one run."""

    def __init__(
        self,
        config: Config,
        argv: Sequence[str],
        peer: RolePeer,
        fork_server: ForkServerClient,
        sink: Sink,
        parameters: RoleParameters = BY_HAND,
    ) -> None:
        stages = tuple(config.stages)
        path = Path(config.log_dir) / "commit_log.jsonl"
        log = CommitLog(path, config.experiment_prefix, resume=parameters.resume)
        slots = SlotGrants(log, stages, config.max_expert_index)
        pair = tied_stages(config)
        rounds = RoundService(list(stages), config.diloco, log, self._record, slots.hop_of, pair)
        if not parameters.run_locally:
            note_settings(log, config)
        start = RunStart.of(config, log, parameters)
        self.parts = ClientParts(
            config,
            parameters,
            peer,
            sink,
            log,
            slots,
            rounds,
            ParameterMirror(config, log, rounds, peer.transport),
            PeriodicEvaluation(config, rounds, peer.transport, sink),
            DirectoryWatch(peer.directory, stages),
            TrainerProcesses(config, argv, fork_server, sink),
            start,
            Preflight(config, start.make_room, by_servers=parameters.servers_check),
        )
        self.calls = ClientCalls(self.parts)
        self._discarded = DiscardedRounds()

    async def run(self, stop: asyncio.Event) -> int:
        """Exit code 0: the run finished, or the client was stopped in order."""
        parts = self.parts
        await parts.peer.transport.serve(self.calls.answer, self.calls.died)
        background: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(
                keep_announced(lambda: parts.peer.directory.announce_role("client", parts.peer.host))
            ),
            asyncio.ensure_future(parts.watch.run()),
            asyncio.ensure_future(self._look_at_pipelines()),
            asyncio.ensure_future(parts.mirror.run()),
            asyncio.ensure_future(parts.evaluating.run()),
        ]
        announce_ready({"role": "client", "peers": list(parts.peer.maddrs)})
        daemon: asyncio.Future[Any] = asyncio.ensure_future(parts.peer.lost_daemon())
        rounds: asyncio.Future[Any] = asyncio.ensure_future(self._training())
        failed: asyncio.Future[Any] = asyncio.ensure_future(self._until_failure())
        broken: asyncio.Future[Any] = asyncio.ensure_future(first_failure(*background, parts.rounds.broken))
        try:
            ended = await first_of(stop, rounds, daemon, failed, broken)
            if ended is not None:  # also the baseline may fail, and nobody else would tell
                ended.result()
            if ended is rounds and not parts.parameters.run_locally:
                await self._finish()
            return 0
        except (RunFailed, ConfigError) as error:
            if not parts.parameters.servers_check:  # a local run ends its servers itself
                await parts.failure.tell(error, [holder.grant.uid for holder in parts.slots.holders])
            raise
        finally:
            for task in (*background, daemon, rounds, failed, broken):
                task.cancel()
            parts.seen.close()
            await parts.trainers.stop()
            self.calls.reach.close()
            parts.mirror.close()
            parts.rounds.close()
            parts.log.close()

    async def _until_failure(self) -> None:
        """Raises ConfigError for a run that cannot work, RoleError when a child is given up."""
        parts = self.parts
        noted = parts.start.note_run(parts.trainers.data_serves, parts.preflight.opened, parts.log)
        await asyncio.gather(self._keep_children(), self._check_start(), noted)

    async def _keep_children(self) -> None:
        """Start the data server where the run goes on. Raises RoleError when it or a trainer is given up."""
        parts = self.parts
        try:
            task = await asyncio.to_thread(build_task, parts.config)
            if task.plays:
                await asyncio.to_thread(check_play, parts.config, task)
        except (TaskError, ModelError) as error:  # a restart cannot help
            raise ConfigError(str(error)) from error
        decision = await self.calls.decided()
        await parts.trainers.start(parts.start.parts_for(decision), serve_data=not task.plays)
        await parts.trainers.failure()

    async def _check_start(self) -> None:
        """Raises ConfigError before any server has joined; a run that goes on needs servers to know where."""
        parts = self.parts
        resumes, weights = parts.start.resumption.waiting, parts.config.start_from
        if weights is not None and parts.start.goes_on:
            notice(f"start_from {weights} is not read: the run goes on with its own weights")
        else:
            check_start_from(parts.config)
        if not parts.start.goes_on:
            check_teacher_path(parts.config)
        await parts.preflight.check(None if resumes else parts.trainers.data_serves)

    async def _training(self) -> None:
        """Until all rounds are committed, or the baseline has finished."""
        parts = self.parts
        if parts.parameters.run_locally:
            own, began = parts.peer.identity.peer, parts.log.generation
            samples = parts.parameters.samples
            await parts.trainers.run_baseline(own, began, samples, before=parts.start.make_room)
        else:
            await parts.rounds.finished.wait()
            await parts.rounds.held()  # at once, unless the run was ended between its last round and its end

    async def _look_at_pipelines(self) -> None:
        parts = self.parts
        while True:
            snapshot = parts.slots.live(await parts.watch.next_change())
            if parts.parameters.run_locally:
                continue
            parts.seen.tell(snapshot)
            parts.trainers.want(snapshot.complete_pipelines())
            move = parts.slots.next_move(snapshot)
            if move is not None:
                holder = parts.slots.of_peer(move.server.peer_id)
                if holder is not None and holder.state == "held":
                    holder.enter("move")
                    logger.info("asking %s to move to stage %s", holder.grant.uid, move.target.stage)

    def _record(self, record: dict[str, Any]) -> None:
        parts = self.parts
        parts.sink.write(record)
        parts.trainers.rounds.append(record)
        parts.evaluating.ended(record)
        self._discarded.ended(record)

    async def _finish(self) -> None:
        """All rounds are done: the model and the summary; let everybody go. RunFailed: it was not judged."""
        parts = self.parts
        await parts.trainers.stop()
        modules = await parts.evaluating.modules()
        states = await collect_states(parts.config, parts.peer.transport, parts.rounds)
        run = EndedRun(
            parts.config,
            parts.trainers,
            parts.slots,
            parts.peer.transport.traffic.bytes_out,
        )
        async with parts.evaluating.using_modules:
            summary, failure = await conclude(run, states, modules)
        parts.log.finish()
        await asyncio.to_thread(note_end, parts.config, parts.log.generation)
        parts.finished.set()
        with contextlib.suppress(SwarmError):  # for those who are not connected at this moment
            await parts.peer.directory.announce_finished(time.time())
        logger.info("finished: %s", summary.line())
        if parts.slots.holders:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(parts.empty.wait(), FINISH_S)
        if failure:
            raise RunFailed(failure)


async def serve(fork_server: ForkServerClient, start: RoleStart, stop: asyncio.Event) -> int:
    """Start the peer, run the client, stop."""
    config, args = start.config, start.args
    need_peers(config)
    need_log_dir(config)
    peer = await RolePeer.start(
        config,
        port=config.client_port,
        port_given=start.given("client_port"),
        initial_peers=config.initial_peers,
        claimed=start.parameters.claimed_port,
    )
    sink = open_sinks(config.log_dir, "client", config.wandb_project)
    try:
        argv = to_argv(args.config_path or "", args.config_overrides)
        return await Client(config, argv, peer, fork_server, sink, start.parameters).run(stop)
    finally:
        await peer.stop()
        await fork_server.close()
        sink.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: the run finished, or the client was stopped in order; 1: it failed; 2: refused."""
    preload = [name for name in PRELOAD if name != "torch._dynamo"]  # only optimizers need it: 1.4 s
    fork_server = ForkServerClient.start(
        (*preload, "distqat.distributed.trainer", "distqat.distributed.data_server")
    )
    role = partial(serve, fork_server)
    return run_role_main("client", "Find pipelines and train over them.", role, argv)


if __name__ == "__main__":
    leave(main())
