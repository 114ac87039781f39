"""One slot of the swarm for as long as a server holds it: found or join, serve, average, leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from distqat.codec import get_codec
from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_task, feeds_norms, quantization_lines
from distqat.distributed.assembly.tied_weights import twin_of
from distqat.distributed.network.call_fields import Hop
from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.distributed.network.role_peer import RolePeer
from distqat.distributed.serving.bootstrap import Bootstrap
from distqat.distributed.serving.checkpoint_loop import CheckpointLoop, StateToWrite
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.serving.compute_thread import ComputeThread, Priority
from distqat.distributed.serving.forward_precision import ForwardPrecision
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.serving.replica_state import moments, own_state
from distqat.distributed.serving.round_arithmetic import RoundArithmetic
from distqat.distributed.serving.round_member import RoundMember
from distqat.distributed.serving.round_member_parts import MemberParts
from distqat.distributed.serving.run_settings import take_over_again
from distqat.distributed.serving.server_status import ServerStatus
from distqat.distributed.serving.serving_lease import ServingLease
from distqat.distributed.serving.slot_request import GrantedSlot, ask_for_slot
from distqat.distributed.serving.step_service import StepService
from distqat.distributed.transfer.donor import DonatedMoments, DonatedState, Donor, upload_bucket
from distqat.distributed.transfer.snapshot_exchange import inner_state
from distqat.errors import BadFrame, Refused, RunFinished, SwarmError, Unreachable
from distqat.process import announce_ready, notice
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.deadline import within
from distqat.swarm.directory import keep_announced
from distqat.swarm.peer_link import PeerAddress
from distqat.swarm.tensor_frame import Message
from distqat.topology.snapshot import ServerState

logger = logging.getLogger(__name__)

BEAT_S = 1.0
DRAIN_S = 4.0


class HeldSlot:
    """One slot for as long as this server holds it."""

    def __init__(
        self,
        config: Config,
        peer: RolePeer,
        coordinator: CoordinatorLink,
        compute: ComputeThread,
        slot: GrantedSlot,
        device: torch.device,
        module: nn.Module,
    ) -> None:
        self._config = config
        self._peer = peer
        self._coordinator = coordinator
        self._compute = compute
        self._slot = slot
        self._uid = str(slot.expert)
        stage = slot.expert.stage
        self._hop = Hop(self._uid, PeerAddress(peer.identity.peer, peer.host, peer.maddrs))
        task = build_task(config) if stage == config.stages[-1] else None
        precision = ForwardPrecision.resolve(config.data.precision, device)
        self._replica = StageReplica(
            module,
            config.diloco,
            config.quant,
            stage=stage,
            device=device,
            precision=precision,
            task=task,
            activations=config.model_pipeline.activations,
        )
        for line in quantization_lines(config, stage, module):
            logger.info("%s: %s", stage, line)
        options = config.model_pipeline
        self.steps = StepService(
            self._replica,
            compute,
            peer.transport,
            uid=self._uid,
            run=config.experiment_prefix,
            lease_s=options.forward_timeout + options.backward_timeout,
        )
        self.telling = ServerStatus(config, peer, slot, self._replica, self.steps, compute, self._where)
        self.steps.journal = self.telling.journal
        self._parts = MemberParts(
            options=config.diloco,
            rounds=RoundArithmetic(
                config.diloco,
                get_codec(config.diloco.codec),
                module,
                config.quant.warmup,
                stands=feeds_norms(config, stage, module),
            ),
            steps=self.steps,
            compute=compute,
            transport=peer.transport,
            coordinator=coordinator,
            twin=twin_of(config, stage, module, peer.transport),
        )
        self._member: RoundMember | None = None
        self._saving: set[asyncio.Future[None]] = set()  # states on their way to the keeper
        self.steps.on_mark = self._marked
        self.steps.standing = self._standing
        self._state: ServerState = "joining"
        self._lease = ServingLease()
        self._resyncing: asyncio.Future[None] | None = None
        self.steps.admit = self._admit
        self._activated = asyncio.Event()
        self._heard = ""  # what the client had to tell the owner of this server
        self._failure = ""  # why the client says that the run cannot go on
        self._keeper = CheckpointLoop(config, stage, self._uid, slot.generation)
        self._donor = Donor(self._held, self._moments, upload_bucket(config.param_mirror.upload_rate))

    async def run(self) -> str:
        """Serve until the run is finished ("finished") or this server is to move ("moved")."""
        work: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(keep_announced(self.telling.announce)),
            asyncio.ensure_future(self._lease.watch(self._lease_over)),
            asyncio.ensure_future(self._beat()),
            asyncio.ensure_future(self._serve()),
            self.steps.broken,
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            return str(next(iter(done)).result())
        except Unreachable:  # some still have a connection: let their steps end
            await self.drain()
            raise
        except Refused as error:
            logger.warning("%s is lost: %s", self._uid, error)
            return "lost"
        except RunFinished:
            await self._keeper.finished()
            return "finished"
        finally:
            work += [self._resyncing] if self._resyncing is not None else []
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def drain(self) -> None:
        """Before leaving: take no more steps, say so, and let those end that have begun; in DRAIN_S at most.

        What the directory still says of us is a record that trainers do not route over.
        """
        self._state = "draining"
        with contextlib.suppress(asyncio.TimeoutError):
            await within(asyncio.gather(self._become("draining"), self.steps.idle()), DRAIN_S)

    async def close(self) -> None:
        """Undo an open attempt; what was committed is on disk when this returns."""
        self._donor.close()
        await self.steps.close()
        self.telling.event("closed", **self.steps.counts)
        if self._saving:  # the last round may not have been handed over yet
            await asyncio.wait(self._saving)
        await self._keeper.flush()

    async def _held(self, round: int) -> DonatedState:
        assert self._member is not None
        return DonatedState(await self._member.holding(round), self._replica.step)

    async def _moments(self) -> DonatedMoments:
        def copied() -> DonatedMoments:
            return DonatedMoments(inner_state(self._replica), self._replica.step)

        return await self._compute.submit(Priority.CONTROL, "round", copied)

    async def answer(self, call: IncomingCall) -> Message:
        """Route a call."""
        steps = self.steps
        if call.method == "status":
            return Message(self.telling.status())
        if call.method == "snapshot" and self._member is not None:
            return await self._donor.snapshot(call.message.fields)
        if call.method == "chunk":
            return await self._donor.chunk(call.message.fields)
        if call.method == "contribution" and self._member is not None:
            return await self._member.contribution(call)
        if call.method == "tied" and self._member is not None:
            return await self._member.tied(call)
        if call.method == "commit":
            reply = await steps.commit(call)
            if self._state == "calibrating" and not self._replica.calibrating:
                self._activated.set()
            return reply
        calls = {
            "open": steps.open,
            **dict.fromkeys(("train", "labels", "forward", "backward"), steps.microbatch),
            "prepare": steps.prepare,
            "decide": steps.decide,
            "abort": steps.abort,
            "outcome": steps.outcome,
            "evaluate": steps.evaluate,
        }
        if call.method not in calls:
            raise BadFrame(f"{self._uid} does not answer {call.method!r}")
        return await calls[call.method](call)

    def _admit(self) -> None:
        """Refused unless a step may begin now."""
        if self._shown_state == "unknown":
            raise Refused(
                f"{self._uid} has not heard from the client for {self._lease.silent_s:.0f} s and does not "
                "know what it missed; it takes no steps until the client answers"
            )
        if self._state not in ("calibrating", "serving"):
            raise Refused(f"{self._uid} is {self._state} and takes no steps")

    # the way to serving

    async def _serve(self) -> str:
        began = time.monotonic()
        arrival = Bootstrap(
            self._uid,
            self._replica,
            self._compute,
            self._keeper,
            self._peer.transport,
            self._coordinator,
            self._calibrate,
        )
        shared = await (arrival.found() if self._slot.founder else arrival.join())
        state_s = time.monotonic() - began
        self._member = RoundMember(
            self._hop, self._replica, shared, self._parts, self._round_ended, progress=arrival.progress
        )
        await self._member.catch_up()
        logger.info("%s serves from round %d on, digest %s", self._uid, shared.round, shared.digest[:12])
        self._save(moments, shared, None)
        await self._become("serving")
        logger.info("ReassignmentMonitorThread started for expert %s", self._uid)
        nbytes = sum(tensor.nbytes for tensor in shared.tensors().values())
        took = {"state_s": state_s, "serve_s": time.monotonic() - began, "bytes": nbytes}
        self.telling.event("join", round=shared.round, **took)
        announce_ready({"role": "server", **self.telling.who})
        await self._member.run()
        raise AssertionError("unreachable")

    async def _calibrate(self) -> None:
        await self._become("calibrating")
        await self._activated.wait()

    def _marked(self, mark: str) -> None:
        """A checkpoint step was committed: its state is copied before anything else runs on the replica."""
        if self._member is not None:
            progress = self._member.progress
            self._save(lambda replica: own_state(replica, progress), self._member.shared, mark)

    def _save(
        self, state_of: Callable[[StageReplica], dict[str, Tensor]], shared: CommittedState, mark: str | None
    ) -> None:
        step = self._replica.step
        private = self._compute.submit(Priority.CONTROL, "round", lambda: state_of(self._replica))

        async def hand_over() -> None:
            self._keeper.keep(StateToWrite(shared, await private, step, mark))

        saving = asyncio.ensure_future(hand_over())
        self._saving.add(saving)
        saving.add_done_callback(self._saving.discard)

    def _where(self) -> tuple[ServerState, CommittedState | None]:
        return self._shown_state, self._member.shared if self._member else None

    def _round_ended(self, record: dict[str, Any]) -> None:
        if record["committed"] and self._member is not None:
            self._save(moments, self._member.shared, None)
        self.telling.round_ended(record)

    def _standing(self) -> dict[str, Any]:
        """What a trainer hears at each commit, to know when to mark the next checkpoint step."""
        round = self._member.shared.round if self._member else 0
        return {
            "saved": self._keeper.saved,
            "round": round,
            "generation": self._keeper.generation,
            "phase": self._replica.moment.phase,
        }

    async def _become(self, state: ServerState) -> None:
        self._state = state
        with contextlib.suppress(SwarmError):
            await self.telling.announce()

    # its leave to serve

    @property
    def _shown_state(self) -> ServerState:
        takes_steps = self._state in ("calibrating", "serving")
        return "unknown" if takes_steps and self._lease.over else self._state

    def _lease_over(self, silent_s: float) -> None:
        if self._shown_state != "unknown":
            return
        logger.warning(
            "%s pauses: no answer of the client for %.1f s; it keeps its state", self._uid, silent_s
        )
        self.telling.event("lease", held=False, silent_s=silent_s)
        try:
            self._admit()
        except Refused as error:
            self.steps.refuse_waiting(error)

    async def _answered(self, asked: float, answer: dict[str, Any]) -> bool:
        """Take what the client said to a beat; False when the slot is somebody else's.

        Nobody serves with an anchor that the others do not have, and least of all after a silence.
        """
        if answer.get("unknown") and not await self._reclaim():
            return False
        if self._resyncing is not None and self._resyncing.done():
            self._resyncing.result()
            self._resyncing = None
        if answer.get("behind") and self._member is not None and self._resyncing is None:
            self._resyncing = asyncio.ensure_future(self._member.resync())
        if self._lease.over and self._resyncing is None:
            silent, paused = self._lease.silent_s, self._shown_state == "unknown"
            self._lease.confirm(asked)
            if paused and not self._lease.over:
                logger.info("%s serves again: the client answers, after %.1f s of silence", self._uid, silent)
                self.telling.event("lease", held=True, silent_s=silent)
                await self._become(self._state)
        elif self._resyncing is None:  # who is behind and cannot get what it missed stops serving in the end
            self._lease.renew(asked)
        return True

    async def _reclaim(self) -> bool:
        """The client does not know us (it restarted, or our link broke): keep the slot if it is free."""
        live = None
        if self._member is not None:
            shared = self._member.shared
            live = {"round": shared.round, "digest": shared.digest, "generation": self._keeper.generation}
        slot = await ask_for_slot(self._config, self._peer, self._coordinator, self._uid, live)
        # Who founded the stage keeps it: it is no founder any more once round 0 is in the log.
        if slot.expert != self._slot.expert or (slot.founder and not self._slot.founder):
            logger.warning("%s is somebody else's now", self._uid)
            return False
        logger.info("holding %s again, epoch %d", self._uid, slot.epoch)
        self._slot = self.telling.slot = slot
        self._keeper.generation = slot.generation
        await self._follow(take_over_again(self._config, slot.settings))
        if self._member is not None:
            await self._member.resync()
        return True

    def _hear_failure(self, why: str) -> None:
        if why and why != self._failure:
            notice(
                f"the run cannot go on: {why}; {self._uid} keeps its state and waits for its client to be "
                "started again"
            )
        self._failure = why

    async def _follow(self, config: Config) -> None:
        """Go on by another configuration of the run."""
        if config == self._config:
            return
        self._config, options = config, config.model_pipeline
        self.steps.follow(options.forward_timeout + options.backward_timeout)
        await self._compute.submit(
            Priority.CONTROL, "control", lambda: self._replica.follow(config.diloco, options.activations)
        )
        self._parts.follow(config.diloco)
        if self._member is not None:
            self._member.look_again()

    def _hear(self, sentence: str) -> None:
        if sentence and sentence != self._heard:
            notice(sentence)
        self._heard = sentence

    async def _beat(self) -> str:
        """Tell the client that we live; hear whether the run is finished or we are to move."""
        while True:
            asked = self._lease.now()
            answer = await self._coordinator.insist(
                "beat", {**self.telling.status(), "unsaved": self._keeper.trouble}
            )
            if answer.get("finished"):
                await self._keeper.finished()
                return "finished"
            self._hear_failure(str(answer.get("failed", "")))
            self._hear(str(answer.get("notice", "")))
            self._keeper.generation = int(answer.get("generation", self._keeper.generation))
            if not await self._answered(asked, answer):
                return "lost"
            if answer.get("move"):
                logger.info("asked to leave %s for a stage without a replica", self._uid)
                return "moved"
            await asyncio.sleep(BEAT_S / 10 if self._lease.over else BEAT_S)
