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
from distqat.distributed.network.call_fields import Hop, take
from distqat.errors import Refused, RoleError
from distqat.failpoints import failpoint
from distqat.protocol.round_answers import Reply, RoundAnswers, RoundCommitted, RoundDiscarded
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

logger = logging.getLogger(__name__)

REJOIN_S = 3.0  # after a restart of the client the members need so long to find it
IN_A_ROUND = ("contribute", "vote")


@dataclass
class _Stage:
    """One stage: its table once round 0 exists, when that is due next, and who waits for what."""

    assembly: RoundAnswers | None = None
    holders: StageHolders = field(default_factory=StageHolders)
    waiting: dict[str, tuple[str, asyncio.Future[dict[str, Any]]]] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None


class RoundService:
    """Rounds of all stages. `report` gets one record per ended round.

    `tied`: two stages that hold copies of one weight.
    """

    def __init__(
        self,
        stages: list[str],
        options: DilocoOptions,
        log: CommitLog,
        report: Callable[[dict[str, Any]], None],
        tied: tuple[str, str] | None = None,
    ) -> None:
        self.finished = asyncio.Event()
        self._options = options
        self._log = log
        self._report = report
        self._stages = {stage: _Stage() for stage in stages}
        self._tied = TiedWeightRounds(tied)
        for stage in stages:
            newest = log.newest_round(stage)
            if newest is not None:
                self._begin(stage, *newest, settled_at=time.monotonic() + REJOIN_S)
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises what it met when a decision was to be carried out."""

    def round_of(self, stage: str) -> tuple[int, str] | None:
        """The last committed round and its digest."""
        return self._log.newest_round(stage)

    def zero(self, stage: str, digest: str) -> None:
        """The founder of a stage publishes round 0. The first one stands."""
        if self._log.commit_round(stage, 0, digest) != digest:
            raise Refused(f"stage {stage} has a round 0 of another founder; join it")
        if self._stages[stage].assembly is None:
            self._begin(stage, 0, digest)

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

    def restart(self, stage: str, uid: str, round: int, digest: str) -> int:
        """The restorer of a lost stage publishes the state that it found; the new generation."""
        holders = self._stages[stage].holders
        if not holders.may_restore(uid):
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
        return generation

    def join(self, stage: str, hop: Hop, round: int) -> dict[str, Any]:
        """A server holds the state of `round`; it is a member if that is the newest."""
        own = self._stages[stage]
        if own.assembly is None:
            return self._behind(stage)
        reply, actions = own.assembly.joined(hop.uid, round, time.monotonic())
        if reply is not None:
            return self._fields(stage, reply)
        own.holders.add(hop)
        self._act(stage, actions)
        awaited = own.assembly.convener.awaits(hop.uid)
        told = {"round": round, "outer_steps": self._options.outer_steps}
        return {**told, "members": len(own.holders.hops), "awaited": awaited}

    def left(self, stage: str, uid: str, *, for_good: bool = False) -> None:
        """A server is gone, drained or moved; `for_good` if it left or died, and was not just silent."""
        own = self._stages[stage]
        own.holders.left(uid, for_good=for_good)
        self._tell(stage, (uid,), {"behind": True})
        if own.assembly is not None:
            self._act(stage, own.assembly.left(uid, time.monotonic()))

    async def ready(self, stage: str, uid: str, round: int) -> dict[str, Any]:
        """Answered when the round opens, with its attempt and members; `behind` when it is over already."""
        now = time.monotonic()
        return await self._answered(stage, uid, "ready", lambda assembly: assembly.ready(uid, round, now))

    async def contribute(self, stage: str, uid: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Answered with the set of contributions to fetch."""
        offer = ContributionOffer(
            take(fields, "digest", str), take(fields, "samples", int), take(fields, "nbytes", int)
        )
        round, attempt, now = take(fields, "round", int), take(fields, "attempt", int), time.monotonic()
        return await self._answered(
            stage, uid, "contribute", lambda assembly: assembly.contributed(uid, offer, round, attempt, now)
        )

    async def vote(self, stage: str, uid: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Answered with the outcome of the round."""
        round, attempt, now = take(fields, "round", int), take(fields, "attempt", int), time.monotonic()
        digest = str(fields["digest"]) if fields.get("digest") else None
        if digest is not None and fields.get("copy"):
            self._tied.told(stage, round, digest, str(fields["copy"]))
        return await self._answered(
            stage, uid, "vote", lambda assembly: assembly.voted(uid, digest, round, attempt, now)
        )

    def close(self) -> None:
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

    def _behind(self, stage: str) -> dict[str, Any]:
        newest = self.round_of(stage)
        return {"behind": True, "round": newest[0] if newest else None}

    async def _answered(
        self, stage: str, uid: str, method: str, call: Callable[[RoundAnswers], tuple[Reply, list[Action]]]
    ) -> dict[str, Any]:
        own = self._stages[stage]
        if own.assembly is None:
            raise Refused(f"stage {stage} has no round 0 yet")
        reply, actions = call(own.assembly)
        if reply is not None:
            return self._fields(stage, reply)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        own.waiting[uid] = method, answer
        self._act(stage, actions)
        return await answer

    def _fields(self, stage: str, reply: Reply) -> dict[str, Any]:
        """A reply as fields."""
        if isinstance(reply, OpenRound):
            return {"round": reply.round, "attempt": reply.attempt, "members": list(reply.members)}
        if isinstance(reply, ExchangeContributions):
            return {"set": self._set(stage, reply), **self._copy(stage, reply)}
        if isinstance(reply, RoundCommitted):
            return {"committed": reply.committed}
        if isinstance(reply, RoundDiscarded):
            return {"discarded": reply.discarded}
        return self._behind(stage)

    def _act(self, stage: str, actions: list[Action]) -> None:
        """Carry out what the state machine has decided; it does not decide it again.

        So an error here (the log cannot be written) leaves the two apart: the client ends with it, and its
        next start takes up what the log holds.
        """
        try:
            self._carry_out(stage, actions)
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

    def _carry_out(self, stage: str, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, OpenRound):
                self._tell(stage, action.members, self._fields(stage, action), "ready")
            elif isinstance(action, ExchangeContributions):
                self._tell(stage, action.members, self._fields(stage, action), "contribute")
            elif isinstance(action, CommitRound):
                self._commit(stage, action)
            elif isinstance(action, TellBehind):
                for uid in action.members:
                    self._stages[stage].holders.hops.pop(uid, None)
                self._tell(stage, action.members, {"behind": True})
            elif isinstance(action, DiscardRound):
                logger.warning("Round %d of %s discarded: %s", action.round, stage, action.reason)
                self._tell(stage, action.members, {"discarded": action.reason}, *IN_A_ROUND)
                self._report(
                    _record(stage, action.round, len(action.members), action.duration_s, action.reason)
                )

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
        self._tell(stage, action.members, {"committed": action.digest}, *IN_A_ROUND)
        record = _record(stage, action.round, len(action.contributors), action.duration_s, None)
        self._report({**record, "bytes": action.nbytes, "digest": action.digest})
        self._check_finished()

    def _set(self, stage: str, action: ExchangeContributions) -> list[dict[str, Any]]:
        hops = self._stages[stage].holders.hops
        return [
            {**hops[uid].fields(), "digest": offer.digest, "samples": offer.samples}
            for uid, offer in action.offers.items()
            if uid in hops
        ]

    def _copy(self, stage: str, action: ExchangeContributions) -> dict[str, Any]:
        """The other stage's copy of a tied weight that this attempt averages with, and who holds it."""
        copy = self._tied.offer(stage, action.round, action.attempt)
        if copy is None:
            return {}
        holders = [hop.fields() for hop in self._stages[copy.stage].holders.hops.values()]
        return {"copy": {"round": copy.round, "digest": copy.digest, "members": holders}}

    def _tell(self, stage: str, members: tuple[str, ...], fields: dict[str, Any], *calls: str) -> None:
        """Answer the calls that wait: of those methods, of any if none is named."""
        waiting = self._stages[stage].waiting
        for uid in members:
            method, answer = waiting.get(uid, ("", None))
            if answer is None or (calls and method not in calls):
                continue
            del waiting[uid]
            if not answer.done():
                answer.set_result(fields)

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
