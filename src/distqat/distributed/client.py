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

from distqat.config import Config, agreement, to_argv
from distqat.config.authority import run_settings
from distqat.distributed.assembly.keep_earlier_runs import note_end
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.assembly.tied_weights import tied_stages
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.discarded_rounds import DiscardedRounds
from distqat.distributed.coordination.failure_broadcast import FailureBroadcast
from distqat.distributed.coordination.fetch_committed import collect_states
from distqat.distributed.coordination.parameter_mirror import ParameterMirror
from distqat.distributed.coordination.periodic_evaluation import PeriodicEvaluation
from distqat.distributed.coordination.preflight import Preflight
from distqat.distributed.coordination.reachability import ReachabilityChecks
from distqat.distributed.coordination.resume_decision import ResumeDecision
from distqat.distributed.coordination.round_service import RoundService
from distqat.distributed.coordination.run_end import EndedRun, conclude
from distqat.distributed.coordination.run_start import RunStart, note_settings
from distqat.distributed.coordination.servers_seen import ServersSeen
from distqat.distributed.coordination.slot_grants import SlotGrants, check_agreement
from distqat.distributed.coordination.trainer_processes import TrainerProcesses
from distqat.distributed.network.role_peer import RolePeer, first_failure, first_of, need_log_dir, need_peers
from distqat.distributed.role_main import RoleStart, run_role_main
from distqat.distributed.training.rollout import check_play
from distqat.errors import ConfigError, ModelError, Refused, RunFailed, SwarmError, TaskError
from distqat.failpoints import failpoint
from distqat.metrics import Sink, open_sinks
from distqat.process import (
    PRELOAD,
    ForkServerClient,
    RoleParameters,
    announce_ready,
    told_wait,
)
from distqat.protocol.call_schema import CLIENT, fields_of
from distqat.protocol.calls.slot_calls import (
    AskMembers,
    AskStatus,
    Beat,
    BeatAnswer,
    GrantedSlot,
    Leave,
    Mirrored,
    ReportHeard,
    ReportStep,
    ReportUnreached,
    RequestSlot,
    Restore,
    RunOver,
    SlotWait,
    StageMembers,
    StatusFigures,
)
from distqat.protocol.calls.step_calls import Done
from distqat.protocol.calls.transfer_calls import DescribeState, FetchChunk
from distqat.protocol.hop import Hop, PeerAddress
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.call_messages import CallHandlers
from distqat.swarm.directory import DirectoryWatch, keep_announced
from distqat.swarm.tensor_frame import Message
from distqat.topology.expert import ExpertId

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
        self._config = config
        self._peer = peer
        self._sink = sink
        stages = tuple(config.stages)
        path = Path(config.log_dir) / "commit_log.jsonl"
        self._log = CommitLog(path, config.experiment_prefix, resume=parameters.resume)
        self._slots = SlotGrants(self._log, stages, config.max_expert_index)
        self._rounds = RoundService(
            list(stages), config.diloco, self._log, self._record, self._slots.hop_of, tied_stages(config)
        )
        self._mirror = ParameterMirror(config, self._log, self._rounds, peer.transport)
        self._evaluating = PeriodicEvaluation(config, self._rounds, peer.transport, sink)
        self._watch = DirectoryWatch(peer.directory, stages)
        self._reach = ReachabilityChecks(peer.transport, peer.host, self._slots, self._gone)
        self._trainers = TrainerProcesses(config, argv, fork_server, sink)
        self._agreements = {stage: agreement(config, stage) for stage in stages}
        self._settings = run_settings(config)
        self._parameters = parameters
        if not parameters.run_locally:
            note_settings(self._log, config)
        self._start = RunStart.of(config, self._log, parameters)
        self.preflight = Preflight(config, self._start.make_room, by_servers=parameters.servers_check)
        self._finished = asyncio.Event()
        self._empty = asyncio.Event()  # no server holds a slot any more
        self._seen = ServersSeen()
        self._farewell = FailureBroadcast()
        self._discarded = DiscardedRounds()
        self._handlers = CallHandlers(
            "the client",
            {
                RequestSlot: self._slot,
                Beat: self._beat,
                Leave: self._left,
                AskMembers: self._members,
                ReportUnreached: self._reach.heard,
                ReportStep: self._stepped,
                AskStatus: self._status,
                DescribeState: self._mirror.describe,
                FetchChunk: self._mirror.chunk,
                **self._rounds.handlers,
            },
            CLIENT,
        )

    async def run(self, stop: asyncio.Event) -> int:
        """Exit code 0: the run finished, or the client was stopped in order."""
        await self._peer.transport.serve(self._answer, self._died)
        background: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(
                keep_announced(lambda: self._peer.directory.announce_role("client", self._peer.host))
            ),
            asyncio.ensure_future(self._watch.run()),
            asyncio.ensure_future(self._look_at_pipelines()),
            asyncio.ensure_future(self._mirror.run()),
            asyncio.ensure_future(self._evaluating.run()),
        ]
        announce_ready({"role": "client", "peers": list(self._peer.maddrs)})
        daemon: asyncio.Future[Any] = asyncio.ensure_future(self._peer.lost_daemon())
        rounds: asyncio.Future[Any] = asyncio.ensure_future(self._training())
        failed: asyncio.Future[Any] = asyncio.ensure_future(self._until_failure())
        broken: asyncio.Future[Any] = asyncio.ensure_future(first_failure(*background, self._rounds.broken))
        try:
            ended = await first_of(stop, rounds, daemon, failed, broken)
            if ended is not None:  # also the baseline may fail, and nobody else would tell
                ended.result()
            if ended is rounds and not self._parameters.run_locally:
                await self._finish()
            return 0
        except (RunFailed, ConfigError) as error:
            if not self._parameters.servers_check:  # a local run ends its servers itself
                await self._farewell.tell(error, [holder.grant.uid for holder in self._slots.holders])
            raise
        finally:
            for task in (*background, daemon, rounds, failed, broken):
                task.cancel()
            self._seen.close()
            await self._trainers.stop()
            self._reach.close()
            self._mirror.close()
            self._rounds.close()
            self._log.close()

    # what others call

    async def _answer(self, call: IncomingCall) -> Message:
        failpoint(f"client.{call.method}")
        return await self._handlers.answer(call)

    async def _slot(self, request: RequestSlot, call: IncomingCall) -> RunOver | SlotWait | GrantedSlot:
        peer, holding = call.peer, request.holding
        check_agreement(self._agreements, request.agreements, peer)
        if self._finished.is_set():
            return RunOver()
        await self._reach.prove(request.hop.address, holding)
        self._gone(peer)
        if not holding and not await self.preflight.passed():
            return SlotWait("the client still looks at the model and the data")
        if not holding:
            await self._start.holders_first()
        holder = self._slots.grant(peer, request.hop, self._watch.snapshot, holding or None)
        uid, stage = holder.grant.uid, ExpertId.parse(holder.grant.uid).stage
        logger.info("granted %s to %s, epoch %d", uid, peer, holder.grant.epoch)
        alone = len(self._slots.of_stage(stage)) == 1
        self._start.offered(uid, request, founded=self._rounds.began)
        return GrantedSlot(
            uid,
            holder.grant.epoch,
            founder=alone and self._rounds.round_of(stage) is None and not self._start.resumption.waiting,
            generation=self._log.generation,
            settings=self._settings,
            batch=self.preflight.told,
            counts_from=self._start.counts_from,
            goes_on=self._start.goes_on,
        )

    async def _beat(self, request: Beat, call: IncomingCall) -> BeatAnswer:
        holder = self._slots.of_peer(call.peer)
        if holder is None or holder.grant.uid != request.uid:
            return BeatAnswer(unknown=True, finished=self._finished.is_set())
        holder.status = fields_of(request)
        newest = self._rounds.round_of(ExpertId.parse(request.uid).stage)
        serving = request.state in ("serving", "unknown")
        return BeatAnswer(
            self._log.generation,
            finished=self._finished.is_set(),
            move=holder.state == "leaving",
            behind=serving and newest is not None and request.round < newest[0],
            notice=self._reach.notice_for(call.peer),
            failed=self._farewell.said_to(request.uid),
        )

    async def _left(self, request: Leave, call: IncomingCall) -> Done:
        self._gone(call.peer, for_good=True)
        return Done()

    async def _stepped(self, request: ReportStep, call: IncomingCall) -> ReportHeard:
        if not self._parameters.run_locally:
            self._evaluating.prepare()
        self._trainers.report(request)
        return ReportHeard(self._finished.is_set())

    async def _members(self, request: AskMembers, call: IncomingCall) -> Restore | StageMembers:
        stage = request.stage
        if stage not in self._config.stages:
            raise Refused(f"this run has no stage {stage!r}")
        if request.wait:
            holder = self._slots.of_peer(call.peer)
            uid = holder.grant.uid if holder else call.peer
            decision = await self._decided()
            holders = self._rounds.holders(stage)
            appointed = decision is not None and holders.appointed(uid)
            if not await holders.wait_for_donor(uid):
                return await self._restore(stage, decision if appointed else None)
        newest = self._rounds.round_of(stage)
        if newest is None:  # a server that holds one can say so with `wait`
            return StageMembers((), -1, "")
        return StageMembers(tuple(self._rounds.holders(stage).hops.values()), *newest)

    async def _restore(self, stage: str, decision: ResumeDecision | None) -> Restore:
        """What a server is told that is to bring a stage back: from where, and what our mirror has."""
        oldest, oldest_copy, mark = self._log.first_generation, self._log.first_generation, ""
        if decision is not None:
            state, mark = decision.states[stage], decision.mark
            oldest = state.generation if state else self._log.generation
            oldest_copy = state.generation if state else max(self._start.oldest, self._start.over + 1)
        copy = None if mark else await self._mirror.newest(stage, oldest_copy)
        own = Hop("mirror.0.0.0", PeerAddress(self._peer.identity.peer, self._peer.host, self._peer.maddrs))
        mirror = None if copy is None else Mirrored(copy.generation, copy.round, copy.digest, own)
        return Restore(oldest, mark, mirror)

    def _died(self, peer: str, silent: bool) -> None:
        """A link ended without a word of leaving before."""
        holder = self._slots.of_peer(peer)
        if holder is not None:
            fields = {"uid": holder.grant.uid, "peer": peer, "epoch": holder.grant.epoch}
            self._sink.write({"event": "fault", "kind": "server_died", **fields})
            self._gone(peer, for_good=not silent)

    def _gone(self, peer: str, *, for_good: bool = False) -> None:
        holder = self._slots.free(peer)
        if holder is None:
            return
        uid = holder.grant.uid
        logger.info("%s is gone", uid)
        if not self._slots.holders:
            self._empty.set()
        self._seen.gone(uid)
        self._reach.gone(peer)
        self._start.resumption.withdraw(uid)
        self._rounds.left(ExpertId.parse(uid).stage, uid, for_good=for_good)

    # what it does by itself

    async def _decided(self) -> ResumeDecision | None:
        """Where the run goes on, once; None when it begins anew or is still held in memory."""
        decision = await self._start.resumption.decided()
        if decision is not None and not self._start.appointed:
            self._start.appointed = True
            generation = self._log.new_generation()
            for stage, uid in decision.restorers.items():
                self._rounds.holders(stage).appoint(uid, generation)
        return decision

    async def _until_failure(self) -> None:
        """Raises ConfigError for a run that cannot work, RoleError when a child is given up."""
        noted = self._start.note_run(self._trainers.data_serves, self.preflight.opened, self._log)
        await asyncio.gather(self._keep_children(), self._check_start(), noted)

    async def _keep_children(self) -> None:
        """Start the data server where the run goes on. Raises RoleError when it or a trainer is given up."""
        try:
            task = await asyncio.to_thread(build_task, self._config)
            if task.plays:
                await asyncio.to_thread(check_play, self._config, task)
        except (TaskError, ModelError) as error:  # a restart cannot help
            raise ConfigError(str(error)) from error
        decision = await self._decided()
        await self._trainers.start(self._start.parts_for(decision), serve_data=not task.plays)
        await self._trainers.failure()

    async def _check_start(self) -> None:
        """Raises ConfigError before any server has joined; a run that goes on needs servers to know where."""
        resumes = self._start.resumption.waiting
        await self.preflight.check(None if resumes else self._trainers.data_serves)

    async def _training(self) -> None:
        """Until all rounds are committed, or the baseline has finished."""
        if self._parameters.run_locally:
            own, began = self._peer.identity.peer, self._log.generation
            samples = self._parameters.samples
            await self._trainers.run_baseline(own, began, samples, before=self._start.make_room)
        else:
            await self._rounds.finished.wait()
            await self._rounds.held()  # at once, unless the run was ended between its last round and its end

    async def _look_at_pipelines(self) -> None:
        while True:
            snapshot = self._slots.live(await self._watch.next_change())
            if self._parameters.run_locally:
                continue
            self._seen.tell(snapshot)
            self._trainers.want(snapshot.complete_pipelines())
            move = self._slots.next_move(snapshot)
            if move is not None:
                holder = self._slots.of_peer(move.server.peer_id)
                if holder is not None and holder.state == "held":
                    holder.enter("move")
                    logger.info("asking %s to move to stage %s", holder.grant.uid, move.target.stage)

    def _record(self, record: dict[str, Any]) -> None:
        self._sink.write(record)
        self._trainers.rounds.append(record)
        self._evaluating.ended(record)
        self._discarded.ended(record)

    async def _status(self, request: AskStatus, call: IncomingCall) -> StatusFigures:
        """Everything that the progress display and the monitor's table show."""
        newest = {stage: self._rounds.round_of(stage) for stage in self._config.stages}
        own = told_wait()
        figures = {
            "rounds": {stage: entry[0] if entry else None for stage, entry in newest.items()},
            "outer_steps": self._config.diloco.outer_steps,
            "servers": [h.status for h in self._slots.holders if h.status],
            "trainers": self._trainers.latest(),
            "ended_rounds": self._trainers.rounds[-8:],
            "evaluation": self._evaluating.latest,
            "waits": [*self._trainers.waits(), *([own.fields("client")] if own else [])],
            "unsaved": self._mirror.trouble,
            "finished": self._finished.is_set(),
        }
        return StatusFigures(figures)

    async def _finish(self) -> None:
        """All rounds are done: the model and the summary; let everybody go. RunFailed: it was not judged."""
        await self._trainers.stop()
        modules = await self._evaluating.modules()
        states = await collect_states(self._config, self._peer.transport, self._rounds)
        run = EndedRun(self._config, self._trainers, self._slots, self._peer.transport.traffic.bytes_out)
        async with self._evaluating.using_modules:
            summary, failure = await conclude(run, states, modules)
        self._log.finish()
        await asyncio.to_thread(note_end, self._config, self._log.generation)
        self._finished.set()
        with contextlib.suppress(SwarmError):  # for those who are not connected at this moment
            await self._peer.directory.announce_finished(time.time())
        logger.info("finished: %s", summary.line())
        if self._slots.holders:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._empty.wait(), FINISH_S)
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
