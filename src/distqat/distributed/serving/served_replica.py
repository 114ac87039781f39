"""The replica of a held slot at work: it gets its state, answers calls, averages, and is written to disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from distqat.codec import get_codec
from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_task, feeds_norms, quantization_lines
from distqat.distributed.assembly.starting_weights import load_start
from distqat.distributed.assembly.teacher_model import check_founder
from distqat.distributed.assembly.tied_weights import exchange_of
from distqat.distributed.serving.bootstrap import Bootstrap
from distqat.distributed.serving.checkpoint_loop import CheckpointLoop, StateToWrite
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.serving.compute_thread import Priority
from distqat.distributed.serving.forward_precision import ForwardPrecision
from distqat.distributed.serving.hosted_replica import HostedReplica
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.serving.replica_state import moments, own_state
from distqat.distributed.serving.round_arithmetic import RoundArithmetic
from distqat.distributed.serving.round_member import RoundMember
from distqat.distributed.serving.server_process import ServerProcess
from distqat.distributed.serving.server_status import ServerStatus
from distqat.distributed.serving.serving_observer import ServingObserver
from distqat.distributed.serving.slot_state import SlotState
from distqat.distributed.serving.step_service import StepService
from distqat.distributed.serving.step_tally import StepOutcome
from distqat.distributed.transfer.donor import DonatedMoments, DonatedState, Donor, upload_bucket
from distqat.distributed.transfer.snapshot_exchange import inner_state
from distqat.errors import StageUnavailable, SwarmError
from distqat.process import announce_ready
from distqat.protocol.call_schema import SERVER, Call
from distqat.protocol.calls.round_calls import FetchContribution, FetchTiedWeight
from distqat.protocol.calls.slot_calls import AskStatus, StatusFigures
from distqat.protocol.calls.step_calls import StageStanding
from distqat.protocol.hop import Hop, PeerAddress
from distqat.protocol.step_attempts import StepId
from distqat.swarm.call_messages import CallHandlers, Handler
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.tensor_frame import Message
from distqat.topology.snapshot import ServerState

logger = logging.getLogger(__name__)


class ServedReplica(ServingObserver):
    """Steps, rounds, checkpoints and donations of one replica, from its first state on."""

    def __init__(self, config: Config, server: ServerProcess, slot: SlotState, module: nn.Module) -> None:
        stage, peer, options = slot.granted.expert.stage, server.peer, config.model_pipeline
        replica = StageReplica(
            module,
            config.diloco,
            config.quant,
            stage=stage,
            precision=ForwardPrecision.resolve(config.data.precision, server.device),
            task=build_task(config) if stage == config.stages[-1] else None,
            activations=options.activations,
        )
        for line in quantization_lines(config, stage, module):
            logger.info("%s: %s", stage, line)
        hop = Hop(slot.uid, PeerAddress(peer.identity.peer, peer.host, peer.maddrs))
        self.host = HostedReplica(hop, replica, server.compute, peer.transport, server.coordinator)
        self.steps = StepService(
            replica,
            server.compute,
            peer.transport,
            self,
            uid=slot.uid,
            run=config.experiment_prefix,
            lease_s=options.forward_timeout + options.backward_timeout,
        )
        self.checkpoints = CheckpointLoop(config, stage, slot.uid)
        self.status = ServerStatus(server, config, slot, replica, self.steps.tally, lambda: self.committed)
        self.member: RoundMember | None = None
        """Takes part in rounds, once there is a committed state."""
        self._slot = slot
        self._rounds = RoundArithmetic(
            config.diloco,
            get_codec(config.diloco.codec),
            module,
            config.quant.schedule,
            stands=feeds_norms(config, stage, module),
        )
        self._tied = exchange_of(config, stage, module, peer.transport)
        self._calibrated = asyncio.Event()
        self._prepare = partial(_prepare, config, stage, module)
        self._donor = Donor(self._held, self._moments, upload_bucket(config.param_mirror.upload_rate))
        handlers: dict[type[Call[Any]], Handler] = {
            **self.steps.handlers,
            **self._donor.handlers,
            AskStatus: self._status,
            FetchContribution: self._contribution,
            FetchTiedWeight: self._tied_weight,
        }
        self._handlers = CallHandlers(slot.uid, handlers, SERVER)

    @property
    def committed(self) -> CommittedState | None:
        """The committed state that it serves with; None before the first."""
        return self.member.committed if self.member is not None else None

    async def answer(self, call: IncomingCall) -> Message:
        """Answer a call. Raises BadFrame for one that is not answered here, or not yet."""
        return await self._handlers.answer(call)

    async def serve(self) -> None:
        """Get the state, then serve until cancelled. Raises RunFailed."""
        began, uid = time.monotonic(), self.host.uid
        bootstrap = Bootstrap(self.host, self._slot, self.checkpoints, self._calibrate, prepare=self._prepare)
        committed = await (bootstrap.found() if self._slot.granted.founder else bootstrap.join())
        state_s = time.monotonic() - began
        self.member = member = RoundMember(
            self.host, self.steps, self._rounds, committed, self, self._tied, bootstrap.progress
        )
        await member.catch_up()
        committed = member.committed
        logger.info("%s serves from round %d on, digest %s", uid, committed.round, committed.digest[:12])
        self._save(moments, member)
        await self.become("serving")
        logger.info("ReassignmentMonitorThread started for expert %s", uid)
        nbytes = sum(tensor.nbytes for tensor in committed.tensors().values())
        took = {"state_s": state_s, "serve_s": time.monotonic() - began, "bytes": nbytes}
        self.status.event("join", round=committed.round, **took)
        announce_ready({"role": "server", **self.status.who})
        await member.run()

    async def become(self, state: ServerState) -> None:
        """Go over to a state, and say so in the directory."""
        self._slot.state = state
        with contextlib.suppress(SwarmError):
            await self.status.announce()

    async def follow(self, config: Config) -> None:
        """Go on by another configuration of the run."""
        options = config.model_pipeline
        self.steps.follow(options.forward_timeout + options.backward_timeout)
        await self.host.compute.submit(
            Priority.CONTROL,
            "control",
            lambda: self.host.replica.follow(config.diloco, options.activations),
        )
        self._rounds.options = config.diloco
        if self._tied is not None:
            self._tied.timeout_s = config.diloco.averaging_timeout
        if self.member is not None:
            self.member.look_again()

    async def close(self) -> None:
        """Undo an open attempt; what was committed is on disk when this returns."""
        self._donor.close()
        await self.steps.close()
        self.status.event("closed", **self.steps.tally.counts)
        await self.checkpoints.flush()

    # what steps and rounds tell

    def admit(self) -> None:
        """Raises where the slot takes no new steps now."""
        self._slot.admit()

    def standing(self, step: int) -> StageStanding:
        """With what a trainer needs to know when to mark the next checkpoint step."""
        return StageStanding(
            step,
            saved=self.checkpoints.saved,
            round=self.committed.round if self.committed else 0,
            generation=self._slot.generation,
            phase=self.host.replica.moment.phase,
        )

    def step_ended(self, id: StepId, outcome: StepOutcome, samples: int, mark: str) -> None:
        """Counts and writes down a step that ended here; a mark makes it a checkpoint step."""
        member = self.member
        if outcome == "calibrated":
            if not self.host.replica.calibrating:
                self._calibrated.set()
            return
        self.status.journal(id, outcome)
        if member is None:
            return
        if outcome == "applied":
            member.step_applied(samples)
        if mark:  # copied before anything else runs on the replica
            progress = member.progress
            self._save(lambda replica: own_state(replica, progress), member, mark)

    def round_ended(self, record: dict[str, Any]) -> None:
        """Writes the round down, and its state if it was committed."""
        if record["committed"] and self.member is not None:
            self._save(moments, self.member)
        self.status.round_ended(record)

    # inside

    async def _calibrate(self) -> None:
        await self.become("calibrating")
        await self._calibrated.wait()

    def _save(
        self, own: Callable[[StageReplica], dict[str, Tensor]], member: RoundMember, mark: str | None = None
    ) -> None:
        """Write the committed state, and what `own` copies of the replica between two steps."""
        replica = self.host.replica
        copying = self.host.compute.submit(Priority.CONTROL, "round", lambda: own(replica))
        generation = self._slot.generation
        self.checkpoints.save(StateToWrite(member.committed, copying, replica.step, generation, mark))

    async def _status(self, request: AskStatus, call: IncomingCall) -> StatusFigures:
        return StatusFigures(self.status.status())

    async def _contribution(self, request: FetchContribution, call: IncomingCall) -> Message:
        return await self._membership().exchange.contribution(request, call)

    async def _tied_weight(self, request: FetchTiedWeight, call: IncomingCall) -> Message:
        return await self._membership().tied(request, call)

    async def _held(self, round: int) -> DonatedState:
        return DonatedState(await self._membership().holding(round), self.host.replica.step)

    def _membership(self) -> RoundMember:
        if self.member is None:
            raise StageUnavailable(f"{self.host.uid} has no committed state yet")
        return self.member

    async def _moments(self) -> DonatedMoments:
        replica = self.host.replica
        return await self.host.between_steps(lambda: DonatedMoments(inner_state(replica), replica.step))


def _prepare(config: Config, stage: str, module: nn.Module) -> None:
    check_founder(config, module)
    load_start(config, {stage: module})
