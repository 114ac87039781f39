"""Inner steps at one stage: open, microbatches, prepare, commit or abort. docs/protocol.md, an inner step.

The step lock says who may work here and how far that attempt is; `OpenAttempt` holds its work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distqat.distributed.network.call_fields import parse_step, take
from distqat.distributed.serving.attempt_state import OpenAttempt
from distqat.distributed.serving.compute_thread import ComputeThread, Priority
from distqat.distributed.serving.microbatches import Microbatches, about
from distqat.distributed.serving.replica import PreparedStep, StageReplica
from distqat.distributed.serving.route_outcomes import ask_route
from distqat.distributed.serving.serving_observer import ServingObserver
from distqat.distributed.serving.step_tally import StepOutcome, StepTally
from distqat.errors import Refused, StaleAttempt, SwarmError
from distqat.failpoints import failpoint
from distqat.protocol.prepared_outcome import ASK_AGAIN_S, PreparedOutcome
from distqat.protocol.step_attempts import StepId
from distqat.protocol.step_lock import (
    Action,
    LockExpired,
    LockGrant,
    LockQuiet,
    LockRefused,
    ResolvePrepared,
    StepLock,
)
from distqat.swarm.incoming_call import Answer, IncomingCall
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import Transport

BROKEN_S = 1.0  # for the trainer to ask what became of its commit
COMMITS_REMEMBERED = 1024
COMMIT_FIELDS = ("samples", "skip", "factor", "mark")


@dataclass(frozen=True)
class _Commit:
    """A commit that is decided: what it was asked with, and its answer once it is applied."""

    asked: dict[str, Any]
    applying: asyncio.Future[Message]


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
        self.calls: dict[str, Answer] = {
            "open": self.open,
            **dict.fromkeys(("train", "labels", "forward", "backward"), self.microbatch),
            "prepare": self.prepare,
            "decide": self.decide,
            "commit": self.commit,
            "abort": self.abort,
            "outcome": self.outcome,
            "evaluate": work.evaluate,
        }
        self._replica = replica
        self._compute = compute
        self._transport = transport
        self._observer = observer
        self._uid = uid
        self._run = run
        self._work = work
        self._lock = StepLock(lease_s=lease_s)
        self._granted: dict[StepId, asyncio.Future[None]] = {}
        self._attempt: OpenAttempt | None = None  # the work of the lock's holder, once that has begun
        self._commits: dict[StepId, _Commit] = {}  # the last ones
        self._quiet = asyncio.Event()
        self._free = asyncio.Event()  # set while no attempt is at work
        self._free.set()
        self._timer: asyncio.TimerHandle | None = None

    # the calls

    async def open(self, call: IncomingCall) -> Message:
        """Wait for the lock of this replica; granted means that the attempt may send microbatches."""
        fields = call.message.fields
        id = parse_step(fields)
        attempt = OpenAttempt.parse(id, fields, self._uid)
        if self._attempt is not None and self._lock.holder == id:
            return Message({"calibrating": self._replica.calibrating})
        self._observer.admit()
        granted = self._granted.setdefault(id, asyncio.get_running_loop().create_future())
        try:
            self._act(self._lock.request(id, time.monotonic()))
            await granted
        finally:
            self._granted.pop(id, None)
        if self._lock.holder != id:
            raise StaleAttempt(f"{id} lost the lock of {self._uid} before it could begin")
        self._attempt, attempt.began = attempt, time.monotonic()
        self._free.clear()
        draw = fields.get("draw") or f"{id.trainer}|{id.step}"  # names the step over restarts of its trainer
        seed = f"{self._run}|{self._replica.stage}|{draw}"
        await self._on_replica(lambda: self._replica.begin(seed, frozen=attempt.frozen))
        if attempt.following is not None:
            try:
                attempt.next_link = await self._transport.link(attempt.following.address)
            except SwarmError as error:
                await self._drop(id)
                raise about(error, attempt.following.uid) from error
        return Message({"calibrating": self._replica.calibrating})

    async def microbatch(self, call: IncomingCall) -> Message:
        """`train`, `labels`, `forward` or `backward` of one microbatch of the open attempt."""
        attempt = self._attempt_of(parse_step(call.message.fields))
        task = asyncio.current_task()
        assert task is not None
        attempt.running.add(task)
        try:
            return await self._work.run(call.method, attempt, call.message)
        except asyncio.CancelledError:
            if self._attempt is attempt:
                raise
            raise StaleAttempt(f"{attempt.id} was aborted at {self._uid}") from None
        finally:
            attempt.running.discard(task)
            if self._lock.holder == attempt.id:
                self._lock.touch(attempt.id, time.monotonic())

    async def prepare(self, call: IncomingCall) -> Message:
        """Count and gradient norms; from here on only commit or abort end the step."""
        attempt = self._attempt_of(parse_step(call.message.fields))
        failpoint("stage.prepare")
        answer: PreparedStep = await self._on_replica(self._replica.prepare)
        expected = take(call.message.fields, "microbatches", int)
        if answer.count != expected:
            raise Refused(f"{self._uid} holds {answer.count} of {expected} microbatches of {attempt.id}")
        self._lock.prepare(attempt.id, time.monotonic())
        return Message({}, {"norms": answer.norms})

    async def decide(self, call: IncomingCall) -> Message:
        """Record that the step is committed, and begin to apply it. Answered before it is applied."""
        await self._accept(call.message.fields)
        return Message()

    async def commit(self, call: IncomingCall) -> Message:
        """Apply the step, decided before or now; repeating it gets the same answer."""
        id = parse_step(call.message.fields)
        await self._accept(call.message.fields)
        if id not in self._commits:
            raise StaleAttempt(f"{id} was committed at {self._uid} long ago")
        return await asyncio.shield(self._commits[id].applying)

    async def abort(self, call: IncomingCall) -> Message:
        """Undo the attempt; repeating it changes nothing."""
        await self._drop(parse_step(call.message.fields))
        return Message()

    async def outcome(self, call: IncomingCall) -> Message:
        """What became of a step here, at once; a commit with what was asked. No other ending follows it."""
        id = parse_step(call.message.fields)
        verdict, commit = self._lock.verdict(id), self._commits.get(id)
        if verdict == "committed" and commit is None:
            verdict = "unknown"
        return Message({"verdict": verdict, "commit": commit.asked if commit else {}})

    # what the server does with the lock

    def gone(self, trainer: str, silent: bool = False) -> None:
        """A trainer's link is lost; it makes no difference here how."""
        self._act(self._lock.gone(trainer, time.monotonic()))

    async def pause(self) -> None:
        """Let the running step end, grant no other; returns between two inner steps."""
        self._quiet.clear()
        self._act(self._lock.pause(time.monotonic()))
        await self._quiet.wait()

    def resume(self) -> None:
        """Grant steps again after `pause`."""
        self._act(self._lock.resume(time.monotonic()))

    def refuse_waiting(self, error: SwarmError) -> None:
        """Nobody gets the lock soon: those who wait for it may go elsewhere."""
        for id in self._lock.waiting:
            self._settle(id, error)
            self._act(self._lock.abort(id, time.monotonic()))

    def follow(self, lease_s: float) -> None:
        """How many seconds a step may be silent from here on."""
        self._lock.lease_s = lease_s

    async def idle(self) -> None:
        """Return between two attempts."""
        await self._free.wait()

    async def close(self) -> None:
        """Let a decided commit be applied; undo any other attempt."""
        if self._attempt is not None:
            if self._attempt.resolving is not None:
                self._attempt.resolving.cancel()
            if self._attempt.id in self._commits:
                await asyncio.wait({self._commits[self._attempt.id].applying})
            else:
                await self._drop(self._attempt.id)
        if self._timer is not None:
            self._timer.cancel()

    # a commit

    async def _accept(self, fields: Mapping[str, Any]) -> None:
        """Returns once the step is decided here; StaleAttempt when it is over without a commit."""
        id = parse_step(fields)
        if self._lock.verdict(id) == "committed":
            return
        attempt = self._attempt_of(id)
        if not self._lock.prepared:
            raise Refused(f"commit of {id} at {self._uid}: it was never prepared")
        asked = {key: fields[key] for key in COMMIT_FIELDS if key in fields}
        if not fields.get("unconfirmed"):
            self._decide(attempt, asked)
            return
        attempt.unconfirmed = asked
        await asyncio.shield(self._resolving(attempt))
        if self._lock.verdict(id) != "committed":
            raise StaleAttempt(f"{id} was aborted by a stage before {self._uid}")

    def _decide(self, attempt: OpenAttempt, asked: dict[str, Any]) -> None:
        take(asked, "samples", int), take(asked, "skip", bool), take(asked, "factor", float)
        self._lock.decide(attempt.id, time.monotonic())
        applying = asyncio.ensure_future(self._apply(attempt, asked))
        applying.add_done_callback(self._check_applied)
        self._commits[attempt.id] = _Commit(asked, applying)
        while len(self._commits) > COMMITS_REMEMBERED:
            del self._commits[next(iter(self._commits))]

    async def _apply(self, attempt: OpenAttempt, asked: dict[str, Any]) -> Message:
        """A task of its own: it ends whole, also when whoever sent the commit dies in the middle of it."""
        failpoint("stage.commit.before_apply")
        id, samples, skip = attempt.id, take(asked, "samples", int), take(asked, "skip", bool)
        outcome: StepOutcome = "frozen" if attempt.frozen else "skipped" if skip else "applied"
        if attempt.train:
            factor = take(asked, "factor", float)
            step = await self._compute.submit(
                Priority.CONTROL, "optimizer", lambda: self._replica.commit(factor, skip=skip)
            )
        else:
            await self._on_replica(self._replica.commit_calibration)
            step, outcome = self._replica.step, "calibrated"
        answer = Message({"step": step, **self._observer.commit_fields()})
        self.tally.ended(outcome, samples, time.monotonic() - attempt.began)
        marks = attempt.train and not skip and asked.get("mark")  # whole on all stages, frozen ones included
        self._observer.step_ended(id, outcome, samples, take(asked, "mark", str) if marks else "")
        failpoint("stage.commit.after_apply")
        self._over()
        self._act(self._lock.commit(id, time.monotonic()))
        return answer

    def _check_applied(self, applying: asyncio.Future[Message]) -> None:
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
                found = [fields for verdict, fields in answers if verdict == "committed"]
                self._decide(attempt, found[0] if found else told or {})
                return
            if conclusion == "abort":
                await self._drop(id)
                return
            await asyncio.sleep(ASK_AGAIN_S)

    # the lock

    def _attempt_of(self, id: StepId) -> OpenAttempt:
        if self._attempt is None or self._lock.holder != id:
            raise StaleAttempt(f"{id} does not hold the lock of {self._uid}")
        return self._attempt

    async def _drop(self, id: StepId) -> None:
        actions = self._lock.abort(id, time.monotonic())
        undone = self._undo(id)
        self._act(actions)
        if undone is not None:
            await undone

    def _undo(self, id: StepId) -> asyncio.Future[None] | None:
        """Undo the work of an attempt that has lost the lock.

        The lock may pass on at once: jobs keep their order, so this is done before the next attempt begins.
        """
        attempt = self._attempt
        if attempt is None or attempt.id != id:
            return None
        self._over()
        attempt.cancel()
        self.tally.counts["aborted"] += 1
        return self._on_replica(self._replica.abort)

    def _over(self) -> None:
        self._attempt = None
        self._free.set()

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, LockQuiet):
                self._quiet.set()
            elif isinstance(action, LockGrant):
                self._settle(action.id, None)
            elif isinstance(action, LockRefused):
                self._settle(action.id, StaleAttempt(f"{action.id} at {self._uid}: {action.reason}"))
            elif isinstance(action, LockExpired):
                self._undo(action.id)
            elif isinstance(action, ResolvePrepared) and self._attempt is not None:
                self._resolving(self._attempt)
        self._set_timer()

    def _settle(self, id: StepId, error: SwarmError | None) -> None:
        granted = self._granted.get(id)
        if granted is None or granted.done():
            return
        if error is None:
            granted.set_result(None)
        else:
            granted.set_exception(error)

    def _set_timer(self) -> None:
        """Look at the lock again when its holder will have been silent for too long."""
        if self._timer is not None:
            self._timer.cancel()
        deadline, loop = self._lock.next_deadline, asyncio.get_running_loop()
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        self._timer = None if wait is None else loop.call_later(wait, self._tick)

    def _tick(self) -> None:
        self._act(self._lock.tick(time.monotonic()))

    def _on_replica(self, job: Any) -> asyncio.Future[Any]:
        return self._compute.submit(Priority.CONTROL, "control", job)
