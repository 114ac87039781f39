"""Inner steps at one stage: open, microbatches, prepare, commit or abort. docs/protocol.md, an inner step.

The step lock says who may work here and how far that attempt is; `OpenAttempt` holds its work.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from distqat.distributed.serving.attempt_queue import AttemptQueue
from distqat.distributed.serving.attempt_state import OpenAttempt
from distqat.distributed.serving.attempt_work import PreparedStep
from distqat.distributed.serving.compute_thread import ComputeThread, Priority
from distqat.distributed.serving.microbatches import Microbatches, Work, about
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.serving.route_outcomes import ask_route
from distqat.distributed.serving.serving_observer import ServingObserver
from distqat.distributed.serving.step_tally import StepOutcome, StepTally
from distqat.errors import Refused, StaleAttempt, SwarmError
from distqat.failpoints import failpoint
from distqat.protocol.call_schema import Call
from distqat.protocol.calls.step_calls import (
    AbortStep,
    AskOutcome,
    AttemptOutcome,
    BackwardMicrobatch,
    CommitStep,
    CommitTerms,
    DecideStep,
    Done,
    EvaluateBatch,
    ForwardMicrobatch,
    OpenStep,
    PrepareStep,
    SendLabels,
    StageStanding,
    StepOpened,
    TrainMicrobatch,
)
from distqat.protocol.prepared_outcome import ASK_AGAIN_S, PreparedOutcome
from distqat.protocol.step_attempts import StepId
from distqat.protocol.step_lock import StepLock
from distqat.swarm.call_messages import Handler
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import Transport

BROKEN_S = 1.0  # for the trainer to ask what became of its commit
COMMITS_REMEMBERED = 1024


@dataclass(frozen=True)
class _Commit:
    """A commit that is decided: its terms, and its answer once it is applied."""

    terms: CommitTerms
    applying: asyncio.Future[StageStanding]


class StepService:
    """Serves the inner steps of one replica. All methods run on the event loop."""

    def __init__(
        self,
        replica: StageReplica,
        compute: ComputeThread,
        transport: Transport,
        observer: ServingObserver,
        *,
        uid: str,
        run: str,
        lease_s: float,
    ) -> None:
        """`uid` is the replica's, `run` the run's name; a step may be silent for `lease_s` seconds."""
        self.tally = StepTally()
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises what a commit met that could not be applied: half of it may be in the parameters."""
        work = Microbatches(replica, compute, transport)
        microbatch_calls = (TrainMicrobatch, SendLabels, ForwardMicrobatch, BackwardMicrobatch)
        self.handlers: dict[type[Call[Any]], Handler] = {
            OpenStep: self.open,
            **dict.fromkeys(microbatch_calls, self.microbatch),
            PrepareStep: self.prepare,
            DecideStep: self.decide,
            CommitStep: self.commit,
            AbortStep: self.abort,
            AskOutcome: self.outcome,
            EvaluateBatch: work.evaluate,
        }
        self._replica = replica
        self._compute = compute
        self._transport = transport
        self._observer = observer
        self._uid = uid
        self._run = run
        self._work = work
        self._lock = StepLock(lease_s=lease_s)
        self.attempts = AttemptQueue(self._lock, uid, self._undo, self._resolving)
        self._commits: dict[StepId, _Commit] = {}  # the last ones

    # the calls

    async def open(self, request: OpenStep, call: IncomingCall) -> StepOpened:
        """Wait for the lock of this replica; granted means that the attempt may send microbatches."""
        id, attempt = request.id, OpenAttempt.of(request, self._uid)
        if self.attempts.current is not None and self._lock.holder == id:
            return StepOpened(self._replica.calibrating)
        self._observer.admit()
        await self.attempts.enter(attempt)
        draw = request.draw or f"{id.trainer}|{id.step}"  # names the step over restarts of its trainer
        seed = f"{self._run}|{self._replica.stage}|{draw}"
        await self._on_replica(lambda: self._replica.begin(seed, frozen=attempt.frozen))
        if attempt.following is not None:
            try:
                attempt.next_link = await self._transport.link(attempt.following.address)
            except SwarmError as error:
                await self.attempts.drop(id)
                raise about(error, attempt.following.uid) from error
        return StepOpened(self._replica.calibrating)

    async def microbatch(self, request: Work | SendLabels, call: IncomingCall) -> Message:
        """Work on one microbatch of the open attempt, or its labels."""
        attempt = self.attempts.work_of(request.id)
        task = asyncio.current_task()
        assert task is not None
        attempt.running.add(task)
        try:
            return await self._work.run(attempt, request, call.message)
        except asyncio.CancelledError:
            if self.attempts.current is attempt:
                raise
            raise StaleAttempt(f"{attempt.id} was aborted at {self._uid}") from None
        finally:
            attempt.running.discard(task)
            if self._lock.holder == attempt.id:
                self._lock.touch(attempt.id, time.monotonic())

    async def prepare(self, request: PrepareStep, call: IncomingCall) -> Message:
        """Count and gradient norms; from here on only commit or abort end the step."""
        attempt = self.attempts.work_of(request.id)
        failpoint("stage.prepare")
        answer: PreparedStep = await self._on_replica(self._replica.prepare)
        expected = request.microbatches
        if answer.count != expected:
            raise Refused(f"{self._uid} holds {answer.count} of {expected} microbatches of {attempt.id}")
        self._lock.prepare(attempt.id, time.monotonic())
        return Message({}, {"norms": answer.norms})

    async def decide(self, request: DecideStep, call: IncomingCall) -> Done:
        """Record that the step is committed, and begin to apply it. Answered before it is applied."""
        await self._accept(request)
        return Done()

    async def commit(self, request: CommitStep, call: IncomingCall) -> StageStanding:
        """Apply the step, decided before or now; repeating it gets the same answer."""
        id = request.id
        await self._accept(request)
        if id not in self._commits:
            raise StaleAttempt(f"{id} was committed at {self._uid} long ago")
        return await asyncio.shield(self._commits[id].applying)

    async def abort(self, request: AbortStep, call: IncomingCall) -> Done:
        """Undo the attempt; repeating it changes nothing."""
        await self.attempts.drop(request.id)
        return Done()

    async def outcome(self, request: AskOutcome, call: IncomingCall) -> AttemptOutcome:
        """What became of a step here, at once; a commit with what was asked. No other ending follows it."""
        verdict = self._lock.verdict(request.id)
        if verdict != "committed":
            return AttemptOutcome(verdict)
        commit = self._commits.get(request.id)
        return AttemptOutcome("unknown") if commit is None else AttemptOutcome(verdict, commit.terms)

    def follow(self, lease_s: float) -> None:
        """How many seconds a step may be silent from here on."""
        self._lock.lease_s = lease_s

    async def close(self) -> None:
        """Let a decided commit be applied; undo any other attempt."""
        attempt = self.attempts.current
        if attempt is not None:
            if attempt.resolving is not None:
                attempt.resolving.cancel()
            if attempt.id in self._commits:
                await asyncio.wait({self._commits[attempt.id].applying})
            else:
                await self.attempts.drop(attempt.id)
        self.attempts.close()

    # a commit

    async def _accept(self, request: DecideStep | CommitStep) -> None:
        """Returns once the step is decided here; StaleAttempt when it is over without a commit."""
        id = request.id
        if self._lock.verdict(id) == "committed":
            return
        attempt = self.attempts.work_of(id)
        if not self._lock.prepared:
            raise Refused(f"commit of {id} at {self._uid}: it was never prepared")
        if not request.unconfirmed:
            self._decide(attempt, request.terms)
            return
        attempt.unconfirmed = request.terms
        await asyncio.shield(self._resolving(attempt))
        if self._lock.verdict(id) != "committed":
            raise StaleAttempt(f"{id} was aborted by a stage before {self._uid}")

    def _decide(self, attempt: OpenAttempt, terms: CommitTerms) -> None:
        self._lock.decide(attempt.id, time.monotonic())
        applying = asyncio.ensure_future(self._apply(attempt, terms))
        applying.add_done_callback(self._check_applied)
        self._commits[attempt.id] = _Commit(terms, applying)
        while len(self._commits) > COMMITS_REMEMBERED:
            del self._commits[next(iter(self._commits))]

    async def _apply(self, attempt: OpenAttempt, terms: CommitTerms) -> StageStanding:
        """A task of its own: it ends whole, also when whoever sent the commit dies in the middle of it."""
        failpoint("stage.commit.before_apply")
        id, samples, skip = attempt.id, terms.samples, terms.skip
        outcome: StepOutcome = "frozen" if attempt.frozen else "skipped" if skip else "applied"
        if attempt.train:
            step = await self._compute.submit(
                Priority.CONTROL, "optimizer", lambda: self._replica.commit(terms.factor, skip=skip)
            )
        else:
            await self._on_replica(self._replica.commit_calibration)
            step, outcome = self._replica.step, "calibrated"
        answer = self._observer.standing(step)
        self.tally.ended(outcome, samples, time.monotonic() - attempt.began)
        marks = attempt.train and not skip  # whole on all stages, frozen ones included
        self._observer.step_ended(id, outcome, samples, terms.mark if marks else "")
        failpoint("stage.commit.after_apply")
        self.attempts.committed(id)
        return answer

    def _check_applied(self, applying: asyncio.Future[StageStanding]) -> None:
        error = None if applying.cancelled() else applying.exception()
        if error is not None and not self.broken.done():
            # Its trainer hears of it before this server ends.
            asyncio.get_running_loop().call_later(BROKEN_S, self._break, error)

    def _break(self, error: BaseException) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)

    # a prepared step whose trainer is silent

    def _resolving(self, attempt: OpenAttempt) -> asyncio.Future[None]:
        if attempt.resolving is None or attempt.resolving.done():
            attempt.resolving = asyncio.ensure_future(self._resolve(attempt))
        return attempt.resolving

    async def _resolve(self, attempt: OpenAttempt) -> None:
        """End a prepared step as the first stage of its route that can be reached decides or has decided."""
        id, rule = attempt.id, PreparedOutcome(attempt.position)
        asked = attempt.route if attempt.position else ()  # the first stage decides by itself
        while True:
            told = attempt.unconfirmed
            answers = await ask_route(self._transport, asked, id, self._uid)
            if self._lock.verdict(id) != "undecided":
                return  # its own commit or abort came while it asked
            rule.told = told is not None
            conclusion = rule.conclude([verdict for verdict, _ in answers])
            if conclusion == "commit":
                terms = next((terms for _, terms in answers if terms is not None), told)
                assert terms is not None, "a commit is concluded from what somebody said"
                self._decide(attempt, terms)
                return
            if conclusion == "abort":
                await self.attempts.drop(id)
                return
            await asyncio.sleep(ASK_AGAIN_S)

    def _undo(self) -> asyncio.Future[None]:
        self.tally.counts["aborted"] += 1
        return self._on_replica(self._replica.abort)

    def _on_replica(self, job: Any) -> asyncio.Future[Any]:
        return self._compute.submit(Priority.CONTROL, "control", job)
