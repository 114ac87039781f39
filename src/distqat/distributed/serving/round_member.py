"""A replica's side of the outer rounds: ready, contribute, fetch, vote, merge (PROTOCOL.md)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from torch import Tensor

from distqat.diloco.options import DilocoOptions
from distqat.diloco.tensor_digest import state_digest
from distqat.distributed.network.call_fields import Hop, take
from distqat.distributed.serving.committed_state import (
    CommittedState,
    ReplicaWeights,
    as_local,
)
from distqat.distributed.serving.compute_thread import Priority
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.serving.replica_state import ReplicaProgress
from distqat.distributed.serving.round_member_parts import MemberParts
from distqat.distributed.serving.step_pause import StepPause
from distqat.distributed.transfer.snapshot_exchange import FetchedState, StageLost, fetch_newest
from distqat.errors import BadContribution, BadFrame, RemoteFault, RunFailed, SwarmError
from distqat.failpoints import failpoint
from distqat.failures import Repeats
from distqat.process import waiting
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.tensor_frame import Message

logger = logging.getLogger(__name__)

Named = dict[str, Tensor]


@dataclass(frozen=True)
class _Published:
    """Our own contribution to one attempt at a round."""

    round: int
    attempt: int
    tensors: Named
    digest: str
    samples: int


class RoundMember:
    """Takes one replica through its rounds. `shared` is the committed state that it serves with."""

    def __init__(
        self,
        hop: Hop,
        replica: StageReplica,
        shared: CommittedState,
        parts: MemberParts,
        on_round: Callable[[dict[str, Any]], None],
        *,
        progress: ReplicaProgress = ReplicaProgress(),  # noqa: B008  frozen
    ) -> None:
        self.shared = shared
        self._hop = hop
        self._replica = replica
        self._parts = parts
        self._on_round = on_round
        self._since = progress.since  # inner steps since the last commit or discard
        self._samples = progress.samples  # committed samples that the next delta holds
        self._alone = False  # whether the last opening found no other member
        self._unaveraged = 0  # inner steps that no committed round holds: they would die with this replica
        self._due = asyncio.Event()
        self._published: _Published | None = None
        self._publication = asyncio.Event()
        self._advanced = asyncio.Event()  # set, and replaced, at each new committed state
        self._lock = asyncio.Lock()  # one round, or one re-sync, at a time
        self._repeats = Repeats()  # of exceptions elsewhere, since the last committed round
        self._pause = StepPause(parts.steps)  # of whoever has the lock
        parts.steps.on_commit = self._step_committed
        if parts.twin is not None:
            parts.twin.keep(shared)
        self.look_again()
        self._rearm()

    @property
    def _options(self) -> DilocoOptions:
        return self._parts.options

    @property
    def progress(self) -> ReplicaProgress:
        """How far it is on the way to its next round."""
        return ReplicaProgress(self._since, self._samples)

    async def run(self) -> None:
        """Round after round; after the last one of the run only steps go on, until the client says more."""
        while True:
            while self.shared.round >= self._options.outer_steps:
                await self._advanced.wait()
            await self._due.wait()
            await self._one_round()

    async def contribution(self, call: IncomingCall) -> Message:
        """Our encoded contribution, for another member."""
        fields = call.message.fields
        failpoint("round.sending")
        wanted = take(fields, "round", int), take(fields, "attempt", int)
        while self._published is None or (self._published.round, self._published.attempt) < wanted:
            self._publication.clear()
            await self._publication.wait()
        if (self._published.round, self._published.attempt) != wanted:
            raise BadContribution(f"the contribution to round {wanted[0]} attempt {wanted[1]} is gone")
        return Message({}, self._published.tensors)

    async def holding(self, round: int) -> CommittedState:
        """The committed state of `round` or a later one; waits while this replica is about to adopt it."""
        while self.shared.round < round:
            await self._advanced.wait()
        return self.shared

    async def tied(self, call: IncomingCall) -> Message:
        """Our copy of a weight that another stage holds as well, after a round that is committed."""
        round, twin = take(call.message.fields, "round", int), self._parts.twin
        if twin is None:
            raise BadFrame(f"{self._hop.uid} has no weight that is kept tied to another stage's")
        await self.holding(round)
        return twin.give(round)

    def _step_committed(self, samples: int) -> None:
        self._since += 1
        self._unaveraged += 1
        self._samples += samples
        if self._in_step:
            self._due.set()

    @property
    def _in_step(self) -> bool:
        return self._since >= self._parts.rounds.inner_steps(self.shared.round)

    async def resync(self) -> None:
        """Outside a round: be a member again, with what was missed, between two inner steps."""
        known = self.shared.round
        async with self._lock:
            # The round that was under way has ended here as well; for the others it may be over for long.
            if self.shared.round > known and not await self._is_behind():
                return
            async with self._pause:
                await self.catch_up()

    async def _one_round(self) -> None:
        async with self._lock, self._pause:
            try:
                opened = await self._until_open()
                if opened.get("behind"):
                    await self.catch_up()
                else:
                    self._alone = len(take(opened, "members", list)) == 1
                    await self._take_part(take(opened, "round", int), take(opened, "attempt", int))
            except SwarmError as error:
                logger.warning(
                    "round %d at %s: %s; inner steps go on", self.shared.round + 1, self._hop.uid, error
                )
                self._end_if_repeated(error)
                self._postpone()

    async def _until_open(self) -> dict[str, Any]:
        """Hold for about one median step; then go on with inner steps until the round opens.

        Who is alone has nobody to wait for but the client: it holds, so that a round stands between the same
        two steps in every run and a resumed run has the bits of one that was never interrupted.
        """
        fields = {"stage": self._replica.stage, "uid": self._hop.uid, "round": self.shared.round}
        ready = asyncio.ensure_future(self._parts.coordinator.call("ready", fields, timeout=READY_TIMEOUT))
        failpoint("round.gathering")
        hold = median(self._parts.steps.step_seconds or [0.0]) if self._in_step else 0.0
        hold = max(hold, ALONE_HOLD_S) if self._in_step and self._alone else hold
        done, _ = await asyncio.wait({ready}, timeout=hold)
        if not done:
            self._pause.let_go()
            await asyncio.wait({ready})
            await self._pause.take()
        return await ready

    async def _take_part(self, round: int, attempt: int) -> None:
        """From the opening to the outcome."""
        began = time.monotonic()
        base: ReplicaWeights = await self._compute(lambda: ReplicaWeights.of(self._replica.module))
        if not base.finite():
            logger.warning("round %d: the weights of %s are not finite", round, self._hop.uid)
            await self._back_to(self.shared)
            base = await self._compute(lambda: ReplicaWeights.of(self._replica.module))
        samples, since, averaged = self._samples, self._since, self._unaveraged
        sent: Named = await self._compute(lambda: self._parts.rounds.contribution(self.shared, base))
        own = _Published(round, attempt, sent, state_digest(sent), samples)
        self._published = own
        self._publication.set()
        if self._options.overlap:
            self._pause.let_go()
        failpoint("round.before_contribute")
        answer = await self._contribute(own)
        result, included, answered = None, False, answer.get("set", [])
        if "set" in answer:
            result, included = await self._result(own, answered, answer.get("copy"))
            failpoint("round.before_vote")
            answer = await self._vote(own, result)
        await self._pause.take()
        committed = answer.get("committed")
        if answer.get("behind"):
            await self.catch_up()
        elif committed is None:
            self._postpone()
        elif result is not None and committed == result.digest and self._left_out(result, answered):
            logger.warning("round %d left out what %s sent; it goes back to the anchor", round, self._hop.uid)
            await self._back_to(result)
            averaged = 0
        elif result is not None and committed == result.digest:
            await self._adopt(result, base if included else as_local(self.shared), (samples, since))
            averaged = averaged if included else 0
            self._unaveraged -= averaged
        else:
            logger.warning("round %d: %s has another result than the group; re-syncing", round, self._hop.uid)
            await self.catch_up()
        self._on_round(
            {
                "event": "round",
                "round": self.shared.round if committed else round,  # later, if it had to catch up
                "committed": committed is not None,
                "digest": self.shared.digest if committed else None,
                "steps": averaged if result is not None and committed == result.digest else 0,
                "duration_s": time.monotonic() - began,
            }
        )

    async def _result(
        self, own: _Published, members: list[Any], copy: Any = None
    ) -> tuple[CommittedState | None, bool]:
        """Fetch and decode the agreed set in its order; None if it cannot be had or verified.

        `copy` tells where another stage's copy of a tied weight is that this attempt averages with.
        """
        included = any(take(member, "uid", str) == self._hop.uid for member in members)
        try:
            sets = await asyncio.gather(*(self._fetch(own, member) for member in members))
            counts = [take(member, "samples", int) for member in members]
            twin = self._parts.twin
            copies = await twin.fetch(copy) if twin is not None and copy else None
            failpoint("round.reducing")
            return (
                await self._compute(lambda: self._parts.rounds.result(self.shared, sets, counts, copies)),
                included,
            )
        except SwarmError as error:
            logger.warning("round %d: no result here: %s", own.round, error)
            self._end_if_repeated(error)
            return None, included

    async def _fetch(self, own: _Published, member: Any) -> Named:
        hop, digest = Hop.parse(member), take(member, "digest", str)
        if hop.uid == self._hop.uid:
            return own.tensors
        link = await self._parts.transport.link(hop.address)
        fields = {"round": own.round, "attempt": own.attempt}
        timeout = self._options.averaging_timeout
        reply = await link.call("contribution", Message(fields), timeout=timeout)
        tensors = dict(reply.tensors)
        if state_digest(tensors) != digest:
            raise BadContribution(f"the contribution of {hop.uid} has another digest than it announced")
        return tensors

    async def _vote(self, own: _Published, result: CommittedState | None) -> dict[str, Any]:
        """Vote until the outcome is known: unknown is neither commit nor discard."""
        fields = {**self._round_fields(own), "digest": result.digest if result else None}
        if result is not None and self._parts.twin is not None:
            fields["copy"] = await asyncio.to_thread(self._parts.twin.digest, result)
        while True:
            try:
                return await self._parts.coordinator.call("vote", fields, timeout=READY_TIMEOUT)
            except SwarmError as error:
                logger.warning("the outcome of round %d is unknown (%s); asking again", own.round, error)
                self._end_if_repeated(error)
                await self._parts.coordinator.wait()
                await asyncio.sleep(ASK_AGAIN_S)  # it may answer that our slot is not ours just now

    async def _contribute(self, own: _Published) -> dict[str, Any]:
        nbytes = sum(tensor.nbytes for tensor in own.tensors.values())
        offer = {"digest": own.digest, "samples": own.samples, "nbytes": nbytes}
        fields, timeout = {**self._round_fields(own), **offer}, 3 * self._options.averaging_timeout
        return await self._parts.coordinator.call("contribute", fields, timeout=timeout)

    def _round_fields(self, own: _Published) -> dict[str, Any]:
        stage, uid = self._replica.stage, self._hop.uid
        return {"stage": stage, "uid": uid, "round": own.round, "attempt": own.attempt}

    async def _adopt(self, result: CommittedState, base: ReplicaWeights, spent: tuple[int, int]) -> None:
        """Swap anchor, outer state and round number, and merge the weights, between two inner steps."""
        failpoint("round.before_merge")

        def merge() -> None:
            merged = self._parts.rounds.merge(result, ReplicaWeights.of(self._replica.module), base)
            if merged.weights is result.anchor:  # the sum was not finite
                self._replica.restart(merged.load)
            else:
                merged.load(self._replica.module)

        await self._compute(merge)
        samples, since = spent
        self._samples, self._since = self._samples - samples, self._since - since
        self._advance(result)

    async def _back_to(self, shared: CommittedState) -> None:
        """Weights and inner moments go back to the anchor: ours are not finite, or were refused."""
        await self._compute(lambda: self._replica.restart(as_local(shared).load))
        self._samples = self._since = self._unaveraged = 0
        self._advance(shared)

    def _left_out(self, result: CommittedState, members: list[Any]) -> bool:
        """Whether our own contribution was in the set and not good enough for the result."""
        uids = [take(member, "uid", str) for member in members]
        return self._hop.uid in uids and uids.index(self._hop.uid) in result.refused

    def _end_if_repeated(self, error: SwarmError) -> None:
        """Raises RunFailed for an exception at the client or a member that has come again and again."""
        if isinstance(error, RemoteFault) and self._repeats.add((error.kind, error.place)):
            raise RunFailed(
                f"round {self.shared.round + 1} of {self._replica.stage} fails in the same way at every "
                f"attempt: {error.said}"
            )

    def _advance(self, shared: CommittedState) -> None:
        if shared is not self.shared:
            self._repeats.clear()
            self.shared = shared
            if self._parts.twin is not None:
                self._parts.twin.keep(shared)
            self.look_again()
        self._rearm()

    def look_again(self) -> None:
        """Whoever waits for a round, or takes a step, sees what is so now."""
        self._replica.measuring = self._parts.rounds.measuring(self.shared.round)
        self._advanced.set()
        self._advanced = asyncio.Event()

    async def catch_up(self) -> None:
        """After a missed commit: take the committed state and keep the local work, then be a member again."""
        stage = self._replica.stage
        while True:
            fetched = None
            if await self._is_behind():
                fetched = await self._fetch_newest(stage)
            if fetched is not None:
                old = as_local(self.shared)
                await self._adopt(fetched.shared, old, (self._samples, self._since))
                self._due.set()  # out of step: ready for the next opening, with what is done by then
            answer = await self._parts.coordinator.insist(
                "joined", {"stage": stage, **self._hop.fields(), "round": self.shared.round}
            )
            if not answer.get("behind"):
                self._alone = answer.get("members") == 1
                if not answer.get("awaited", True):  # a joiner takes part in the next opening, as it is then
                    self._due.set()
                return

    async def _fetch_newest(self, stage: str) -> FetchedState | None:
        """The state that we missed; if those who had it are gone, ours is the newest that is left."""
        coordinator, uid, round = self._parts.coordinator, self._hop.uid, self.shared.round
        try:
            with waiting(f"the committed state of stage {stage}, from a replica or a checkpoint"):
                return await fetch_newest(
                    self._parts.transport,
                    coordinator,
                    stage,
                    own_uid=uid,
                    unless=self.shared.digest,
                    moments=False,
                )
        except StageLost:
            fields = {"stage": stage, "uid": uid, "round": round, "digest": self.shared.digest}
            await coordinator.insist("restart", fields)
            return None

    async def _is_behind(self) -> bool:
        """Whether the committed state is another than ours: newer, or of a later generation."""
        known = await self._parts.coordinator.insist("members", {"stage": self._replica.stage})
        return take(known, "digest", str) != self.shared.digest

    def _postpone(self) -> None:
        """The next attempt comes after as many inner steps again; its delta spans both."""
        self._since = 0
        self._rearm()

    def _rearm(self) -> None:
        self._due.clear()
        if self._in_step:
            self._due.set()

    async def _compute(self, job: Callable[[], Any]) -> Any:
        return await self._parts.compute.submit(Priority.CONTROL, "round", job)


ALONE_HOLD_S = 5.0
ASK_AGAIN_S = 0.5
READY_TIMEOUT = 3600.0  # a round opens when its members are ready; a dead client ends the call at once
