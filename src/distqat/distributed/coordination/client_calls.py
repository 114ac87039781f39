"""What servers, trainers and monitors call the client for, and what each is answered."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from distqat.config import Config, agreement
from distqat.config.authority import run_settings
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.failure_broadcast import FailureBroadcast
from distqat.distributed.coordination.parameter_mirror import ParameterMirror
from distqat.distributed.coordination.periodic_evaluation import PeriodicEvaluation
from distqat.distributed.coordination.preflight import Preflight
from distqat.distributed.coordination.reachability import ReachabilityChecks
from distqat.distributed.coordination.resume_decision import ResumeDecision
from distqat.distributed.coordination.round_service import RoundService
from distqat.distributed.coordination.run_start import RunStart
from distqat.distributed.coordination.servers_seen import ServersSeen
from distqat.distributed.coordination.slot_grants import SlotGrants, check_agreement
from distqat.distributed.coordination.trainer_processes import TrainerProcesses
from distqat.distributed.network.role_peer import RolePeer
from distqat.errors import Refused
from distqat.failpoints import failpoint
from distqat.metrics import Sink
from distqat.process import (
    RoleParameters,
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
from distqat.swarm.directory import DirectoryWatch
from distqat.swarm.tensor_frame import Message
from distqat.topology.expert import ExpertId

logger = logging.getLogger(__name__)


@dataclass
class ClientParts:
    """What the client of a run works with: shared by who answers calls and who acts by itself."""

    config: Config
    parameters: RoleParameters
    peer: RolePeer
    sink: Sink
    log: CommitLog
    slots: SlotGrants
    rounds: RoundService
    mirror: ParameterMirror
    evaluating: PeriodicEvaluation
    watch: DirectoryWatch
    trainers: TrainerProcesses
    start: RunStart
    preflight: Preflight
    seen: ServersSeen = field(default_factory=ServersSeen)
    failure: FailureBroadcast = field(default_factory=FailureBroadcast)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    empty: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last server has given up its slot."""


class ClientCalls:
    """Answers calls, and hears of links that end."""

    def __init__(self, run: ClientParts) -> None:
        self._run = run
        self.reach = ReachabilityChecks(run.peer.transport, run.peer.host, run.slots, self._gone)
        self._agreements = {stage: agreement(run.config, stage) for stage in run.config.stages}
        self._settings = run_settings(run.config)
        self._handlers = CallHandlers(
            "the client",
            {
                RequestSlot: self._slot,
                Beat: self._beat,
                Leave: self._left,
                AskMembers: self._members,
                ReportUnreached: self.reach.heard,
                ReportStep: self._stepped,
                AskStatus: self._status,
                DescribeState: run.mirror.describe,
                FetchChunk: run.mirror.chunk,
                **run.rounds.handlers,
            },
            CLIENT,
        )

    async def answer(self, call: IncomingCall) -> Message:
        """Answers one call; errors of its handler travel back as they are."""
        failpoint(f"client.{call.method}")
        return await self._handlers.answer(call)

    async def _slot(self, request: RequestSlot, call: IncomingCall) -> RunOver | SlotWait | GrantedSlot:
        run = self._run
        peer, holding = call.peer, request.holding or None
        check_agreement(self._agreements, request.agreements, peer)
        if run.finished.is_set():
            return RunOver()
        address = request.hop.address
        if address.peer != peer:  # what is proven, and told to others, must be who calls
            raise Refused(f"{peer} asks for a slot in the name of {address.peer}")
        held_before = run.slots.held_before(peer, holding)
        await self.reach.prove(address, held_before=held_before)
        self._gone(peer)
        if not held_before and not await run.preflight.passed():
            return SlotWait("the client still looks at the model and the data")
        if not held_before:
            await run.start.holders_first()
        holder = run.slots.grant(peer, request.hop, run.watch.snapshot, holding)
        uid, stage = holder.grant.uid, ExpertId.parse(holder.grant.uid).stage
        logger.info("granted %s to %s, epoch %d", uid, peer, holder.grant.epoch)
        alone = len(run.slots.of_stage(stage)) == 1
        run.start.offered(uid, request, founded=run.rounds.began)
        return GrantedSlot(
            uid,
            holder.grant.epoch,
            founder=alone and run.rounds.round_of(stage) is None and not run.start.resumption.waiting,
            generation=run.log.generation,
            settings=self._settings,
            batch=run.preflight.told,
            counts_from=run.start.counts_from,
            goes_on=run.start.goes_on,
        )

    async def _beat(self, request: Beat, call: IncomingCall) -> BeatAnswer:
        run = self._run
        holder = run.slots.of_peer(call.peer)
        if holder is None or holder.grant.uid != request.uid:
            return BeatAnswer(unknown=True, finished=run.finished.is_set())
        holder.status = fields_of(request)
        newest = run.rounds.round_of(ExpertId.parse(request.uid).stage)
        serving = request.state in ("serving", "unknown")
        return BeatAnswer(
            run.log.generation,
            finished=run.finished.is_set(),
            move=holder.state == "leaving",
            behind=serving and newest is not None and request.round < newest[0],
            notice=self.reach.notice_for(call.peer),
            failed=run.failure.said_to(request.uid),
        )

    async def _left(self, request: Leave, call: IncomingCall) -> Done:
        self._gone(call.peer, for_good=True)
        return Done()

    async def _stepped(self, request: ReportStep, call: IncomingCall) -> ReportHeard:
        run = self._run
        run.trainers.report(request)
        if not run.parameters.run_locally:
            run.evaluating.prepare()
        return ReportHeard(run.finished.is_set())

    async def _members(self, request: AskMembers, call: IncomingCall) -> Restore | StageMembers:
        run = self._run
        stage = request.stage
        if stage not in run.config.stages:
            raise Refused(f"this run has no stage {stage!r}")
        if request.wait:
            holder = run.slots.of_peer(call.peer)
            uid = holder.grant.uid if holder else call.peer
            decision = await self.decided()
            holders = run.rounds.holders(stage)
            appointed = decision is not None and holders.appointed(uid)
            if not await holders.wait_for_donor(uid):
                return await self._restore(stage, decision if appointed else None)
        newest = run.rounds.round_of(stage)
        if newest is None:  # a server that holds one can say so with `wait`
            return StageMembers((), -1, "")
        return StageMembers(tuple(run.rounds.holders(stage).hops.values()), *newest)

    async def _restore(self, stage: str, decision: ResumeDecision | None) -> Restore:
        """What a server is told that is to bring a stage back: from where, and what our mirror has."""
        run = self._run
        oldest, oldest_copy, mark = run.log.first_generation, run.log.first_generation, ""
        if decision is not None:
            state, mark = decision.states[stage], decision.mark
            oldest = state.generation if state else run.log.generation
            oldest_copy = state.generation if state else max(run.start.oldest, run.start.over + 1)
        copy = None if mark else await run.mirror.newest(stage, oldest_copy)
        own = Hop(
            "mirror.0.0.0",
            PeerAddress(run.peer.identity.peer, run.peer.host, run.peer.maddrs),
        )
        mirror = None if copy is None else Mirrored(copy.generation, copy.round, copy.digest, own)
        return Restore(oldest, mark, mirror)

    def died(self, peer: str, silent: bool) -> None:
        """A link ended without a word of leaving before."""
        holder = self._run.slots.of_peer(peer)
        if holder is not None:
            fields = {"uid": holder.grant.uid, "peer": peer, "epoch": holder.grant.epoch}
            self._run.sink.write({"event": "fault", "kind": "server_died", **fields})
            self._gone(peer, for_good=not silent)

    def _gone(self, peer: str, *, for_good: bool = False) -> None:
        run = self._run
        holder = run.slots.free(peer)
        if holder is None:
            return
        uid = holder.grant.uid
        logger.info("%s is gone", uid)
        if not run.slots.holders:
            run.empty.set()
        run.seen.gone(uid)
        self.reach.gone(peer)
        run.start.resumption.withdraw(uid)
        run.rounds.left(ExpertId.parse(uid).stage, uid, for_good=for_good)

    async def decided(self) -> ResumeDecision | None:
        """Where the run goes on, once; None when it begins anew or is still held in memory."""
        run = self._run
        decision = await run.start.resumption.decided()
        if decision is not None and not run.start.appointed:
            run.start.appointed = True
            generation = run.log.new_generation()
            for stage, uid in decision.restorers.items():
                run.rounds.holders(stage).appoint(uid, generation)
        return decision

    async def _status(self, request: AskStatus, call: IncomingCall) -> StatusFigures:
        """Everything that the progress display and the monitor's table show."""
        run = self._run
        newest = {stage: run.rounds.round_of(stage) for stage in run.config.stages}
        own = told_wait()
        figures = {
            "rounds": {stage: entry[0] if entry else None for stage, entry in newest.items()},
            "outer_steps": run.config.diloco.outer_steps,
            "servers": [h.status for h in run.slots.holders if h.status],
            "trainers": run.trainers.latest(),
            "ended_rounds": run.trainers.rounds[-8:],
            "evaluation": run.evaluating.latest,
            "waits": [*run.trainers.waits(), *([own.fields("client")] if own else [])],
            "unsaved": run.mirror.trouble,
            "finished": run.finished.is_set(),
        }
        return StatusFigures(figures)
