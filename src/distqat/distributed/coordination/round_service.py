"""The shell of the conveners: answers members' calls, writes commits to the log, tells everybody."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distqat.diloco.options import DilocoOptions
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.stage_holders import StageHolders
from distqat.distributed.coordination.tied_weight_rounds import TiedWeightRounds
from distqat.errors import Refused, RoleError
from distqat.failpoints import failpoint
from distqat.protocol.call_schema import Call
from distqat.protocol.calls.round_calls import (
    Contribute,
    ContributionSet,
    CopyHolders,
    FoundStage,
    JoinStage,
    ReadyForRound,
    RestartStage,
    SetMember,
    StageJoined,
    StageRestarted,
    VoteOnResult,
)
from distqat.protocol.calls.step_calls import Done
from distqat.protocol.hop import Hop
from distqat.protocol.round_answers import Reply, RoundAnswers, RoundCommitted, RoundDiscarded, RoundMissed
from distqat.protocol.round_convener import (
    Action,
    CommitRound,
    ContributionOffer,
    DiscardRound,
    ExchangeContributions,
    OpenRound,
    RoundConvener,
    TellBehind,
)
from distqat.protocol.round_grace import RoundGrace
from distqat.swarm.call_messages import Handler
from distqat.swarm.incoming_call import IncomingCall
from distqat.topology.expert import ExpertId

logger = logging.getLogger(__name__)

REJOIN_S = 3.0  # after a restart of the client the members need so long to find it
IN_A_ROUND = (Contribute, VoteOnResult)
Answer = OpenRound | ContributionSet | RoundCommitted | RoundDiscarded | RoundMissed


@dataclass
class _Stage:
    """One stage: its table once round 0 exists, when that is due next, and who waits for what."""

    assembly: RoundAnswers | None = None
    holders: StageHolders = field(default_factory=StageHolders)
    waiting: dict[str, tuple[type[Call[Any]], asyncio.Future[Any]]] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None


class RoundService:
    """Rounds of all stages. `report` gets one record per ended round.

    `hop_of` says which slot a peer holds, and where it is; `tied` are two stages that hold copies of one
    weight.
    """

    def __init__(
        self,
        stages: list[str],
        options: DilocoOptions,
        log: CommitLog,
        report: Callable[[dict[str, Any]], None],
        hop_of: Callable[[str], Hop | None],
        tied: tuple[str, str] | None = None,
    ) -> None:
        self.finished = asyncio.Event()
        self._options = options
        self._log = log
        self._report = report
        self._stages = {stage: _Stage() for stage in stages}
        self._hop_of = hop_of
        self._tied = TiedWeightRounds(tied)
        self.handlers: dict[type[Call[Any]], Handler] = {
            FoundStage: self.found,
            RestartStage: self.restart,
            JoinStage: self.join,
            ReadyForRound: self.ready,
            Contribute: self.contribute,
            VoteOnResult: self.vote,
        }
        for stage in stages:
            newest = log.newest_round(stage)
            if newest is not None:
                self._begin(stage, *newest, settled_at=time.monotonic() + REJOIN_S)
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises what it met when a decision was to be carried out."""

    def round_of(self, stage: str) -> tuple[int, str] | None:
        """The last committed round and its digest."""
        return self._log.newest_round(stage)

    async def found(self, request: FoundStage, call: IncomingCall) -> Done:
        """The founder of a stage publishes round 0. The first one stands. Raises Refused."""
        own = self._stage_of(request.stage, request.uid, call.peer)[0]
        if self._log.commit_round(request.stage, 0, request.digest) != request.digest:
            raise Refused(f"stage {request.stage} has a round 0 of another founder; join it")
        if own.assembly is None:
            self._begin(request.stage, 0, request.digest)
        return Done()

    def holders(self, stage: str) -> StageHolders:
        """Who holds a stage; who waits for that, or is to bring it back, asks there."""
        return self._stages[stage].holders

    @property
    def began(self) -> bool:
        """Whether any stage has a round 0."""
        return any(own.assembly is not None for own in self._stages.values())

    async def held(self) -> None:
        """Return when every stage has somebody who holds its committed state."""
        for own in self._stages.values():
            await own.holders.held()

    async def restart(self, request: RestartStage, call: IncomingCall) -> StageRestarted:
        """The restorer of a lost stage publishes the state that it found. Raises Refused."""
        stage, round, digest = request.stage, request.round, request.digest
        holders = self._stage_of(stage, request.uid, call.peer)[0].holders
        if not holders.may_restore(request.uid):
            raise Refused(f"stage {stage} is not lost; join it")
        generation = self._log.restart_stage(stage, round, digest, holders.generation)
        if holders.generation is None:
            logger.warning(
                "stage %s was lost and goes on from round %d, generation %d", stage, round, generation
            )
        else:
            logger.info("stage %s goes on from round %d, generation %d", stage, round, generation)
        holders.restored()
        self._begin(stage, round, digest)
        return StageRestarted(generation)

    async def join(self, request: JoinStage, call: IncomingCall) -> StageJoined | RoundMissed:
        """A server holds the state of a round; it is a member if that is the newest. Raises Refused."""
        own, hop = self._stage_of(request.stage, request.hop.uid, call.peer)
        if own.assembly is None:
            return RoundMissed()
        reply, actions = own.assembly.joined(hop.uid, request.round, time.monotonic())
        if reply is not None:
            return RoundMissed()
        own.holders.add(hop)
        self._act(request.stage, actions)
        awaited = own.assembly.convener.awaits(hop.uid)
        return StageJoined(request.round, self._options.outer_steps, len(own.holders.hops), awaited)

    def left(self, stage: str, uid: str, *, for_good: bool = False) -> None:
        """A server is gone, drained or moved; `for_good` if it left or died, and was not just silent."""
        own = self._stages.get(stage)
        if own is None:  # a stage that this run does not have
            return
        own.holders.left(uid, for_good=for_good)
        self._tell(stage, (uid,), RoundMissed())
        if own.assembly is not None:
            self._act(stage, own.assembly.left(uid, time.monotonic()))

    async def ready(self, request: ReadyForRound, call: IncomingCall) -> Answer:
        """Answered when the round opens, or at once when it is over. Raises Refused."""
        own, table = self._table(request, call)
        reply, actions = table.ready(request.uid, request.round, time.monotonic())
        return await self._answered(own, request, reply, actions)

    async def contribute(self, request: Contribute, call: IncomingCall) -> Answer:
        """Answered with the set of contributions to fetch. Raises Refused."""
        own, table = self._table(request, call)
        offer = ContributionOffer(request.digest, request.samples, request.nbytes)
        attempt, now = request.attempt, time.monotonic()
        reply, actions = table.contributed(request.uid, offer, request.round, attempt, now)
        return await self._answered(own, request, reply, actions)

    async def vote(self, request: VoteOnResult, call: IncomingCall) -> Answer:
        """Answered with the outcome of the round. Raises Refused."""
        (own, table), digest = self._table(request, call), request.digest or None
        if digest is not None and request.copy:
            self._tied.told(request.stage, request.round, digest, request.copy)
        attempt, now = request.attempt, time.monotonic()
        reply, actions = table.voted(request.uid, digest, request.round, attempt, now)
        return await self._answered(own, request, reply, actions)

    def close(self) -> None:
        """Stops the timers; who still waits hears nothing more."""
        for own in self._stages.values():
            if own.timer is not None:
                own.timer.cancel()

    # inside

    def _begin(self, stage: str, round: int, digest: str, *, settled_at: float = -math.inf) -> None:
        grace, exchange_s = RoundGrace(self._options.grace_spread), self._options.averaging_timeout
        convener = RoundConvener(round, digest, grace, exchange_s, settled_at)
        self._tied.forget(stage)
        own = self._stages[stage]
        own.assembly = RoundAnswers(convener, lambda round: self._log.digest(stage, round))
        own.holders.begin()
        self._set_timer(stage, own.assembly)
        self._check_finished()

    def _stage_of(self, stage: str, uid: str, peer: str) -> tuple[_Stage, Hop]:
        """The stage, and the slot that a peer holds there. Raises Refused unless it is `uid`."""
        hop = self._hop_of(peer)
        if hop is None or hop.uid != uid or ExpertId.parse(uid).stage != stage:
            raise Refused(f"{peer} does not hold slot {uid}; ask for a slot again")
        return self._stages[stage], hop

    def _table(
        self, request: ReadyForRound | Contribute | VoteOnResult, call: IncomingCall
    ) -> tuple[_Stage, RoundAnswers]:
        own = self._stage_of(request.stage, request.uid, call.peer)[0]
        if own.assembly is None:
            raise Refused(f"stage {request.stage} has no round 0 yet")
        return own, own.assembly

    async def _answered(
        self,
        own: _Stage,
        request: ReadyForRound | Contribute | VoteOnResult,
        reply: Reply,
        actions: list[Action],
    ) -> Answer:
        """The reply, or what an action answers with, now or later."""
        if reply is not None:
            return self._set(request.stage, reply) if isinstance(reply, ExchangeContributions) else reply
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        own.waiting[request.uid] = type(request), answer
        self._act(request.stage, actions)
        return await answer

    def _act(self, stage: str, actions: list[Action]) -> None:
        """Carry out what the state machine has decided; it does not decide it again.

        So an error here (the log cannot be written) leaves the two apart: the client ends with it, and its
        next start takes up what the log holds.
        """
        try:
            for action in actions:
                if isinstance(action, OpenRound):
                    self._tell(stage, action.members, action, ReadyForRound)
                elif isinstance(action, ExchangeContributions):
                    self._tell(stage, action.members, self._set(stage, action), Contribute)
                elif isinstance(action, CommitRound):
                    self._commit(stage, action)
                elif isinstance(action, TellBehind):
                    for uid in action.members:
                        self._stages[stage].holders.hops.pop(uid, None)
                    self._tell(stage, action.members, RoundMissed())
                elif isinstance(action, DiscardRound):
                    self._discard(stage, action)
        except BaseException as error:
            if not self.broken.done():
                self.broken.set_exception(error)
            raise
        assembly = self._stages[stage].assembly
        if assembly is not None:
            self._set_timer(stage, assembly)

    def _set_timer(self, stage: str, assembly: RoundAnswers) -> None:
        """What the table does by itself it does when its deadline comes; every call may have moved that."""
        own, deadline = self._stages[stage], assembly.convener.next_deadline
        if own.timer is not None:
            own.timer.cancel()
            own.timer = None
        if deadline is not None:
            loop, left_s = asyncio.get_running_loop(), deadline - time.monotonic()
            own.timer = loop.call_later(max(0.0, left_s), self._time_has_come, stage, assembly)

    def _time_has_come(self, stage: str, assembly: RoundAnswers) -> None:
        with contextlib.suppress(RoleError):  # `broken` carries it
            self._act(stage, assembly.tick(time.monotonic()))

    def _discard(self, stage: str, action: DiscardRound) -> None:
        logger.warning("Round %d of %s discarded: %s", action.round, stage, action.reason)
        self._tell(stage, action.members, RoundDiscarded(action.reason), *IN_A_ROUND)
        self._report(_record(stage, action.round, len(action.members), action.duration_s, action.reason))

    def _commit(self, stage: str, action: CommitRound) -> None:
        failpoint("round.before_log")
        self._log.commit_round(stage, action.round, action.digest)
        failpoint("round.after_log")
        self._tied.committed(stage, action.round, action.digest)
        logger.info(
            "Round %d of %s committed by %d members in %.2f s, %.2f MB, digest %s",
            action.round,
            stage,
            len(action.contributors),
            action.duration_s,
            action.nbytes / 1e6,
            action.digest[:12],
        )
        self._tell(stage, action.members, RoundCommitted(action.digest), *IN_A_ROUND)
        record = _record(stage, action.round, len(action.contributors), action.duration_s, None)
        self._report({**record, "bytes": action.nbytes, "digest": action.digest})
        self._check_finished()

    def _set(self, stage: str, action: ExchangeContributions) -> ContributionSet:
        """What to fetch, and the other stage's copy of a tied weight that this attempt averages with."""
        hops = self._stages[stage].holders.hops
        contributions = tuple(
            SetMember(hops[uid], offer.digest, offer.samples)
            for uid, offer in action.offers.items()
            if uid in hops
        )
        copy = self._tied.offer(stage, action.round, action.attempt)
        if copy is None:
            return ContributionSet(contributions)
        holders = tuple(self._stages[copy.stage].holders.hops.values())
        return ContributionSet(contributions, CopyHolders(copy.round, copy.digest, holders))

    def _tell(self, stage: str, members: tuple[str, ...], said: Answer, *calls: type[Call[Any]]) -> None:
        """Answer those of `members` that wait for one of `calls`, for any if none is named."""
        waiting = self._stages[stage].waiting
        for uid in members:
            if uid in waiting and (not calls or waiting[uid][0] in calls):
                answer = waiting.pop(uid)[1]
                if not answer.done():
                    answer.set_result(said)

    def _check_finished(self) -> None:
        newest = [self.round_of(stage) for stage in self._stages]
        if all(entry is not None and entry[0] >= self._options.outer_steps for entry in newest):
            self.finished.set()


def _record(stage: str, round: int, members: int, duration_s: float, reason: str | None) -> dict[str, Any]:
    return {
        "event": "round",
        "stage": stage,
        "round": round,
        "members": members,
        "duration_s": duration_s,
        "committed": reason is None,
        "reason": reason,
    }
