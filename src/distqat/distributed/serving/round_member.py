"""The side of a replica in outer rounds: ready, contribute, vote, merge, catching up. docs/protocol.md."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from distqat.distributed.serving.committed_state import CommittedState, ReplicaWeights, as_local
from distqat.distributed.serving.hosted_replica import HostedReplica
from distqat.distributed.serving.replica_state import ReplicaProgress
from distqat.distributed.serving.round_arithmetic import RoundArithmetic
from distqat.distributed.serving.round_exchange import RoundExchange
from distqat.distributed.serving.serving_observer import ServingObserver
from distqat.distributed.serving.step_service import StepService
from distqat.distributed.training.weight_watch import WeightWatch
from distqat.distributed.transfer.snapshot_exchange import FetchedState, StageLost, fetch_newest
from distqat.distributed.transfer.tied_weight_exchange import TiedWeightExchange
from distqat.errors import BadFrame, SwarmError
from distqat.failpoints import failpoint
from distqat.process import waiting
from distqat.protocol.calls.round_calls import (
    ContributionSet,
    FetchTiedWeight,
    JoinStage,
    RestartStage,
    StageJoined,
)
from distqat.protocol.calls.slot_calls import AskMembers, Restore
from distqat.protocol.convener_actions import OpenRound
from distqat.protocol.round_answers import RoundCommitted, RoundMissed
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.tensor_frame import Message

logger = logging.getLogger(__name__)

ALONE_HOLD_S = 5.0


class RoundMember:
    """Takes one replica through its rounds. `committed` is the committed state that it serves with."""

    def __init__(
        self,
        host: HostedReplica,
        steps: StepService,
        rounds: RoundArithmetic,
        committed: CommittedState,
        observer: ServingObserver,
        tied: TiedWeightExchange | None = None,
        progress: ReplicaProgress = ReplicaProgress(),  # noqa: B008  frozen
    ) -> None:
        self.committed = committed
        self.exchange = RoundExchange(host, rounds, tied)
        self._host = host
        self._attempts = steps.attempts  # paused by whoever has the lock
        self._tally = steps.tally
        self._rounds = rounds
        self._observer = observer
        self._tied = tied
        self._watch = WeightWatch(host.stage)
        self._since = progress.since  # inner steps since the last commit or discard
        self._samples = progress.samples  # committed samples that the next delta holds
        self._alone = False  # whether the last opening found no other member
        self._unaveraged = 0  # inner steps that no committed round holds: they would die with this replica
        self._due = asyncio.Event()
        self._advanced = asyncio.Event()  # set, and replaced, at each new committed state
        self._lock = asyncio.Lock()  # one round, or one re-sync, at a time
        if tied is not None:
            tied.keep(committed)
        self.look_again()
        self._rearm()

    @property
    def progress(self) -> ReplicaProgress:
        """How far it is on the way to its next round."""
        return ReplicaProgress(self._since, self._samples)

    async def run(self) -> None:
        """Round after round; after the last one of the run only steps go on, until the client says more."""
        while True:
            while self.committed.round >= self._rounds.options.outer_steps:
                await self._advanced.wait()
            await self._due.wait()
            await self._one_round()

    async def holding(self, round: int) -> CommittedState:
        """The committed state of `round` or a later one; waits while this replica is about to adopt it."""
        while self.committed.round < round:
            await self._advanced.wait()
        return self.committed

    async def tied(self, request: FetchTiedWeight, call: IncomingCall) -> Message:
        """Our copy of a weight that another stage holds as well, after a round that is committed."""
        if self._tied is None:
            raise BadFrame(f"{self._host.uid} has no weight that is kept tied to another stage's")
        await self.holding(request.round)
        return self._tied.give(request.round)

    def step_applied(self, samples: int) -> None:
        """The replica has taken an inner step on `samples` samples."""
        self._since += 1
        self._unaveraged += 1
        self._samples += samples
        if self._in_step:
            self._due.set()

    @property
    def _in_step(self) -> bool:
        return self._since >= self._rounds.inner_steps(self.committed.round)

    async def resync(self) -> None:
        """Outside a round: be a member again, with what was missed, between two inner steps."""
        known = self.committed.round
        async with self._lock:
            # The round that was under way has ended here as well; for the others it may be over for long.
            if self.committed.round > known and not await self._is_behind():
                return
            async with self._attempts.paused():
                await self.catch_up()

    async def _one_round(self) -> None:
        async with self._lock, self._attempts.paused():
            try:
                opened = await self._until_open()
                if isinstance(opened, RoundMissed):
                    await self.catch_up()
                else:
                    self._alone = len(opened.members) == 1
                    await self._take_part(opened.round, opened.attempt)
            except SwarmError as error:
                round = self.committed.round + 1
                logger.warning("round %d at %s: %s; inner steps go on", round, self._host.uid, error)
                self.exchange.end_if_repeated(error, round)
                self._postpone()

    async def _until_open(self) -> RoundMissed | OpenRound:
        """Hold for about one median step; then go on with inner steps until the round opens.

        Who is alone has nobody to wait for but the client: it holds, so that a round stands between the same
        two steps in every run and a resumed run has the bits of one that was never interrupted.
        """
        ready = asyncio.ensure_future(self.exchange.ready(self.committed.round))
        failpoint("round.gathering")
        hold = self._tally.median_s if self._in_step else 0.0
        hold = max(hold, ALONE_HOLD_S) if self._in_step and self._alone else hold
        done, _ = await asyncio.wait({ready}, timeout=hold)
        if not done:
            self._attempts.resume()
            await asyncio.wait({ready})
            await self._attempts.pause()
        return await ready

    async def _take_part(self, round: int, attempt: int) -> None:
        """From the opening to the outcome."""
        began, uid = time.monotonic(), self._host.uid
        base = await self._weights()
        if not base.finite():
            logger.warning("round %d: the weights of %s are not finite", round, uid)
            await self._back_to(self.committed)
            base = await self._weights()
        samples, since, averaged = self._samples, self._since, self._unaveraged
        sent = await self._host.between_steps(lambda: self._rounds.contribution(self.committed, base))
        own = self.exchange.publish(round, attempt, sent, samples)
        if self._rounds.options.overlap:
            self._attempts.resume()
        failpoint("round.before_contribute")
        answer = await self.exchange.contribute(own)
        result, members = None, list[str]()
        if isinstance(answer, ContributionSet):
            members = [member.hop.uid for member in answer.set]
            result = await self.exchange.result(own, self.committed, answer)
            failpoint("round.before_vote")
            answer = await self.exchange.vote(own, result)
        await self._attempts.pause()
        digest = answer.committed if isinstance(answer, RoundCommitted) else None
        ours = result is not None and digest == result.digest
        if isinstance(answer, RoundMissed):
            await self.catch_up()
        elif digest is None:
            self._postpone()
        elif result is None or not ours:
            logger.warning("round %d: %s has another result than the group; re-syncing", round, uid)
            await self.catch_up()
        elif uid in members and members.index(uid) in result.refused:
            logger.warning("round %d left out what %s sent; it goes back to the anchor", round, uid)
            await self._back_to(result)
            averaged = 0
        else:
            averaged = averaged if uid in members else 0
            await self._adopt(result, base if uid in members else as_local(self.committed), (samples, since))
            self._unaveraged -= averaged
        seen = await self._seen(tells=members[:1] in ([], [uid])) if digest else {}
        self._observer.round_ended(
            {
                "event": "round",
                "round": self.committed.round if digest else round,  # later, if it had to catch up
                "committed": digest is not None,
                "digest": self.committed.digest if digest else None,
                "steps": averaged if ours else 0,
                "duration_s": time.monotonic() - began,
                **({"weights": seen} if seen else {}),
            }
        )

    async def _seen(self, *, tells: bool) -> dict[str, Any]:
        """How well codes hold the weights now; one member of a round `tells` the person at the terminal."""
        return await self._host.between_steps(
            lambda: self._watch.look(self._host.replica.module, tells=tells)
        )

    async def _weights(self) -> ReplicaWeights:
        return await self._host.between_steps(lambda: ReplicaWeights.of(self._host.replica.module))

    async def _adopt(self, result: CommittedState, base: ReplicaWeights, spent: tuple[int, int]) -> None:
        """Swap anchor, outer state and round number, and merge the weights, between two inner steps."""
        failpoint("round.before_merge")
        replica = self._host.replica

        def merge() -> None:
            merged = self._rounds.merge(result, ReplicaWeights.of(replica.module), base)
            if merged.weights is result.anchor:  # the sum was not finite
                replica.restart(merged.load)
            else:
                merged.load(replica.module)

        await self._host.between_steps(merge)
        samples, since = spent
        self._samples, self._since = self._samples - samples, self._since - since
        self._advance(result)

    async def _back_to(self, committed: CommittedState) -> None:
        """Weights and inner moments go back to the anchor: ours are not finite, or were refused."""
        await self._host.between_steps(lambda: self._host.replica.restart(as_local(committed).load))
        self._samples = self._since = self._unaveraged = 0
        self._advance(committed)

    def _advance(self, committed: CommittedState) -> None:
        if committed is not self.committed:
            self.exchange.committed()
            self.committed = committed
            if self._tied is not None:
                self._tied.keep(committed)
            self.look_again()
        self._rearm()

    def look_again(self) -> None:
        """Whoever waits for a round, or takes a step, sees what is so now."""
        replica, rounds = self._host.replica, self._rounds
        replica.measuring = rounds.measuring(self.committed.round)
        replica.in_float = rounds.in_float(self.committed)
        replica.counting = rounds.counting(self.committed.round)
        replica.most_steps = rounds.steps_by(self.committed.round)
        self._advanced.set()
        self._advanced = asyncio.Event()

    async def catch_up(self) -> None:
        """After a missed commit: take the committed state and keep the local work, then be a member again."""
        coordinator, stage = self._host.coordinator, self._host.stage
        while True:
            fetched = await self._fetch_newest() if await self._is_behind() else None
            if fetched is not None:
                old = as_local(self.committed)
                await self._adopt(fetched.shared, old, (self._samples, self._since))
                self._due.set()  # out of step: ready for the next opening, with what is done by then
            answer = await coordinator.insist(JoinStage(stage, self._host.hop, self.committed.round))
            if isinstance(answer, StageJoined):
                self._alone = answer.members == 1
                if not answer.awaited:  # a joiner takes part in the next opening, as it is then
                    self._due.set()
                return

    async def _fetch_newest(self) -> FetchedState | None:
        """The state that we missed; if those who had it are gone, ours is the newest that is left."""
        coordinator, uid, stage = self._host.coordinator, self._host.uid, self._host.stage
        round, digest = self.committed.round, self.committed.digest
        try:
            with waiting(f"the committed state of stage {stage}, from a replica or a checkpoint"):
                return await fetch_newest(
                    self._host.transport, coordinator, stage, own_uid=uid, unless=digest, moments=False
                )
        except StageLost:
            await coordinator.insist(RestartStage(stage, uid, round, digest))
            return None

    async def _is_behind(self) -> bool:
        """Whether the committed state is another than ours: newer, or of a later generation."""
        known = await self._host.coordinator.insist(AskMembers(self._host.stage))
        return isinstance(known, Restore) or known.digest != self.committed.digest

    def _postpone(self) -> None:
        """The next attempt comes after as many inner steps again; its delta spans both."""
        self._since = 0
        self._rearm()

    def _rearm(self) -> None:
        self._due.clear()
        if self._in_step:
            self._due.set()
