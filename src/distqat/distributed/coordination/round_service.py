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
from distqat.distributed.coordination.tied_weight_rounds import TiedWeightRounds
from distqat.distributed.network.call_fields import Hop, take
from distqat.errors import Refused
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
LOST_S = 8.0  # how long those who held a stage have to come back, before it is restored from disk
DEAD_S = 1.5  # the same, where the last of them left or ended its streams: a dead process does not come back


@dataclass
class _Stage:
    """One stage: its table once round 0 exists, and who waits for what."""

    assembly: RoundAnswers | None = None
    members: dict[str, Hop] = field(default_factory=dict)
    waiting: dict[str, tuple[str, asyncio.Future[dict[str, Any]]]] = field(default_factory=dict)
    has_member: asyncio.Event = field(default_factory=asyncio.Event)
    lost_at: float = field(default_factory=lambda: time.monotonic())  # since when nobody holds its state
    patience_s: float = LOST_S  # after a start of the client they may well be there
    restorer: str | None = None  # who was asked to bring it back
    generation: int | None = None  # of the start of the client that appointed the restorer


class RoundService:
    """Rounds of all stages. `report` gets one record per ended round; `twins` hold copies of one weight."""

    def __init__(
        self,
        stages: list[str],
        options: DilocoOptions,
        log: CommitLog,
        report: Callable[[dict[str, Any]], None],
        twins: tuple[str, str] | None = None,
    ) -> None:
        self.finished = asyncio.Event()
        self._options = options
        self._log = log
        self._report = report
        self._stages = {stage: _Stage() for stage in stages}
        self._twins = TiedWeightRounds(twins)
        for stage in stages:
            newest = log.newest_round(stage)
            if newest is not None:
                self._begin(stage, *newest, settled_at=time.monotonic() + REJOIN_S)
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises what it met when a decision was to be carried out."""
        self._timer = asyncio.ensure_future(self._tick())

    def round_of(self, stage: str) -> tuple[int, str] | None:
        """The last committed round and its digest."""
        return self._log.newest_round(stage)

    def members(self, stage: str) -> dict[str, Hop]:
        """Who holds the committed state of a stage."""
        return dict(self._stages[stage].members)

    def zero(self, stage: str, digest: str) -> None:
        """The founder of a stage publishes round 0. The first one stands."""
        if self._log.commit_round(stage, 0, digest) != digest:
            raise Refused(f"stage {stage} has a round 0 of another founder; join it")
        if self._stages[stage].assembly is None:
            self._begin(stage, 0, digest)

    async def wait_for_donor(self, stage: str, uid: str) -> bool:
        """Wait until somebody holds the committed state of the stage: True.

        False asks `uid` to bring it back from disk: all who held it are gone, and did not come back in time.
        """
        own = self._stages[stage]
        while not own.members:
            if own.generation is not None and own.restorer == uid:
                return False
            gone_for = time.monotonic() - own.lost_at
            known = own.assembly is not None or own.generation is not None
            if known and gone_for > own.patience_s and own.restorer in (None, uid):
                own.restorer = uid
                return False
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(own.has_member.wait(), 0.5)
        return True

    def appoint(self, stage: str, uid: str, generation: int) -> None:
        """`uid` is to bring the stage back, in a generation that begins for all stages together."""
        self._stages[stage].restorer, self._stages[stage].generation = uid, generation

    def appointed(self, stage: str, uid: str) -> bool:
        """Whether `uid` is to bring the stage back and has not yet."""
        own = self._stages[stage]
        return own.generation is not None and own.restorer == uid

    @property
    def began(self) -> bool:
        """Whether any stage has a round 0."""
        return any(own.assembly is not None for own in self._stages.values())

    async def held(self) -> None:
        """Return when every stage has somebody who holds its committed state."""
        for own in self._stages.values():
            await own.has_member.wait()

    def restart(self, stage: str, uid: str, round: int, digest: str) -> int:
        """The restorer of a lost stage publishes the state that it found; the new generation."""
        own = self._stages[stage]
        if own.members or own.restorer not in (None, uid):
            raise Refused(f"stage {stage} is not lost; join it")
        generation = self._log.restart_stage(stage, round, digest, own.generation)
        if own.generation is None:
            logger.warning(
                "stage %s was lost and goes on from round %d, generation %d", stage, round, generation
            )
        else:
            logger.info("stage %s goes on from round %d, generation %d", stage, round, generation)
        own.restorer = own.generation = None
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
        own.members[hop.uid] = hop
        own.has_member.set()
        self._act(stage, actions)
        awaited = own.assembly.convener.awaits(hop.uid)
        told = {"round": round, "outer_steps": self._options.outer_steps}
        return {**told, "members": len(own.members), "awaited": awaited}

    def left(self, stage: str, uid: str, *, for_good: bool = False) -> None:
        """A server is gone, drained or moved; `for_good` if it left or died, and was not just silent."""
        own = self._stages[stage]
        was_last = list(own.members) == [uid]
        own.members.pop(uid, None)
        if own.restorer == uid:
            own.restorer = None
        if was_last:
            own.has_member.clear()
            own.lost_at = time.monotonic()
            own.patience_s = DEAD_S if for_good else LOST_S
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
            self._twins.told(stage, round, digest, str(fields["copy"]))
        return await self._answered(
            stage, uid, "vote", lambda assembly: assembly.voted(uid, digest, round, attempt, now)
        )

    def close(self) -> None:
        self._timer.cancel()

    # inside

    def _begin(self, stage: str, round: int, digest: str, *, settled_at: float = -math.inf) -> None:
        grace, exchange_s = RoundGrace(self._options.grace_spread), self._options.averaging_timeout
        convener = RoundConvener(round, digest, grace, exchange_s, settled_at)
        self._twins.forget(stage)
        self._stages[stage].assembly = RoundAnswers(convener, lambda round: self._log.digest(stage, round))
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
            return {"committed": reply.digest}
        if isinstance(reply, RoundDiscarded):
            return {"discarded": reply.reason}
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
                    self._stages[stage].members.pop(uid, None)
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
        self._twins.committed(stage, action.round, action.digest)
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
        hops = self._stages[stage].members
        return [
            {**hops[uid].fields(), "digest": offer.digest, "samples": offer.samples}
            for uid, offer in action.offers.items()
            if uid in hops
        ]

    def _copy(self, stage: str, action: ExchangeContributions) -> dict[str, Any]:
        """The other stage's copy of a tied weight that this attempt averages with, and who holds it."""
        copy = self._twins.offer(stage, action.round, action.attempt)
        if copy is None:
            return {}
        holders = [hop.fields() for hop in self._stages[copy.stage].members.values()]
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

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            for stage, own in self._stages.items():
                if own.assembly is not None:
                    self._act(stage, own.assembly.tick(time.monotonic()))


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
