"""Inner steps at one stage: open, microbatches, prepare, commit or abort. PROTOCOL.md, an inner step."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from distqat.distributed.network.call_fields import Hop, parse_step, step_fields, take
from distqat.distributed.serving.attempt_state import OpenAttempt
from distqat.distributed.serving.compute_thread import ComputeThread, Priority
from distqat.distributed.serving.microbatches import Microbatches, about
from distqat.distributed.serving.replica import PreparedStep, StageReplica
from distqat.errors import Refused, StaleAttempt, SwarmError
from distqat.failpoints import failpoint
from distqat.protocol.prepared_outcome import ASK_AGAIN_S, PreparedOutcome
from distqat.protocol.step_attempts import StepId, Verdict
from distqat.protocol.step_lock import (
    Action,
    LockExpired,
    LockGrant,
    LockQuiet,
    LockRefused,
    ResolvePrepared,
    StepLock,
)
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.deadline import within
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import Transport

BROKEN_S = 1.0  # for the trainer to ask what became of its commit
COMMITS_REMEMBERED = 1024
ASK_TIMEOUT = 5.0
COMMIT_FIELDS = ("samples", "skip", "factor", "mark")


class StepService:
    """Serves the inner steps of one replica. All methods run on the event loop."""

    def __init__(
        self,
        replica: StageReplica,
        compute: ComputeThread,
        transport: Transport,
        *,
        uid: str,
        run: str,
        lease_s: float,
    ) -> None:
        self.samples = 0  # committed since the server started
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises what a commit met that could not be applied: half of it may be in the parameters."""
        self.on_commit: Callable[[int], None] = lambda samples: None
        self.on_mark: Callable[[str], None] = lambda mark: None  # a checkpoint step was just committed
        self.standing: Callable[[], dict[str, Any]] = dict  # what the answer to a commit tells besides
        self.journal: Callable[[StepId, str], None] = lambda id, outcome: None  # before anybody is told
        self.admit: Callable[[], None] = lambda: None  # raises Refused unless a step may begin now
        self.step_seconds: list[float] = []  # the last committed steps, with the frozen ones before each
        self._frozen_seconds = 0.0  # of frozen steps since the last that was applied
        self.counts = {"applied": 0, "skipped": 0, "frozen": 0, "aborted": 0}
        self._replica = replica
        self._compute = compute
        self._transport = transport
        self._uid = uid
        self._run = run
        self._windows = StepLock(lease_s=lease_s)
        self._work = Microbatches(replica, compute)
        self._granted: dict[StepId, asyncio.Future[None]] = {}
        self._open: OpenAttempt | None = None
        self._opened_at = 0.0
        self._answers: dict[StepId, asyncio.Future[Message]] = {}  # of the last commits
        self._asked: dict[StepId, dict[str, Any]] = {}  # what they were asked with
        self._quiet = asyncio.Event()
        self._ticker = asyncio.ensure_future(self._tick())
        self._undoing: set[asyncio.Future[Any]] = set()

    # the calls

    async def open(self, call: IncomingCall) -> Message:
        """Wait for the window of this replica; granted means that the attempt may send microbatches."""
        fields = call.message.fields
        id = parse_step(fields)
        route = tuple(Hop.parse(hop) for hop in take(fields, "route", list))
        position = next((i for i, hop in enumerate(route) if hop.uid == self._uid), None)
        if position is None:
            raise Refused(f"{self._uid} is not on the route of {id}")
        if self._open is not None and self._open.id == id:
            return Message({"calibrating": self._replica.calibrating})
        self.admit()
        granted = self._granted.setdefault(id, asyncio.get_running_loop().create_future())
        try:
            self._act(self._windows.request(id, time.monotonic()))
            await granted
        finally:
            self._granted.pop(id, None)
        if self._windows.holder != id:
            raise StaleAttempt(f"{id} lost the window of {self._uid} before it could begin")
        following = route[position + 1] if position + 1 < len(route) else None
        behind = len(route) - position - 1
        frozen = self._uid in fields.get("frozen", ())
        self._open = OpenAttempt(
            id=id,
            route=route,
            position=position,
            microbatches=take(fields, "microbatches", int),  # 0: as many as come before the prepare
            train=take(fields, "train", bool),
            hold=asyncio.Semaphore(behind + 2),
            next_link=None,
            frozen=frozen,
        )
        self._opened_at = time.monotonic()
        draw = fields.get("draw") or f"{id.trainer}|{id.step}"  # names the step over restarts of its trainer
        seed = f"{self._run}|{self._replica.stage}|{draw}"
        await self._compute.submit(
            Priority.CONTROL, "control", lambda: self._replica.begin(seed, frozen=frozen)
        )
        if following is not None:
            try:
                self._open.next_link = await self._transport.link(following.address)
            except SwarmError as error:
                await self._drop(id)
                raise about(error, following.uid) from error
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
            if self._open is attempt:
                raise
            raise StaleAttempt(f"{attempt.id} was aborted at {self._uid}") from None
        finally:
            attempt.running.discard(task)
            if self._open is attempt and self._windows.holder == attempt.id:
                self._windows.touch(attempt.id, time.monotonic())

    async def prepare(self, call: IncomingCall) -> Message:
        """Count and gradient norms; from here on only commit or abort end the step."""
        attempt = self._attempt_of(parse_step(call.message.fields))
        failpoint("stage.prepare")
        answer: PreparedStep = await self._compute.submit(Priority.CONTROL, "control", self._replica.prepare)
        expected = take(call.message.fields, "microbatches", int)
        if answer.count != expected:
            raise Refused(f"{self._uid} holds {answer.count} of {expected} microbatches of {attempt.id}")
        self._windows.prepare(attempt.id, time.monotonic())
        attempt.prepared = True
        return Message({}, {"norms": answer.norms})

    async def decide(self, call: IncomingCall) -> Message:
        """Record that the step is committed, and begin to apply it. Answered before it is applied."""
        await self._accept(call.message.fields)
        return Message()

    async def commit(self, call: IncomingCall) -> Message:
        """Apply the step, decided before or now; repeating it gets the same answer."""
        id = parse_step(call.message.fields)
        await self._accept(call.message.fields)
        answer = self._answers.get(id)
        if answer is None:
            raise StaleAttempt(f"{id} was committed at {self._uid} long ago")
        return await asyncio.shield(answer)

    async def _accept(self, fields: Mapping[str, Any]) -> None:
        """Returns once the step is decided here; StaleAttempt when it is over without a commit."""
        id = parse_step(fields)
        if self._windows.verdict(id) == "committed":
            return
        attempt = self._attempt_of(id)
        if not attempt.prepared:
            raise Refused(f"commit of {id} at {self._uid}: it was never prepared")
        asked = {key: fields[key] for key in COMMIT_FIELDS if key in fields}
        if not fields.get("unconfirmed"):
            self._decide(attempt, asked)
            return
        attempt.unconfirmed = asked
        await asyncio.shield(self._resolving(attempt))
        if self._windows.verdict(id) != "committed":
            raise StaleAttempt(f"{id} was aborted by a stage before {self._uid}")

    def _decide(self, attempt: OpenAttempt, asked: dict[str, Any]) -> None:
        take(asked, "samples", int), take(asked, "skip", bool), take(asked, "factor", float)
        self._windows.decide(attempt.id, time.monotonic())
        self._asked[attempt.id] = asked
        applying = asyncio.ensure_future(self._apply(attempt, asked))
        applying.add_done_callback(self._check_applied)
        attempt.applying = self._answers[attempt.id] = applying
        while len(self._answers) > COMMITS_REMEMBERED:
            forgotten = next(iter(self._answers))
            del self._answers[forgotten], self._asked[forgotten]

    async def _apply(self, attempt: OpenAttempt, asked: dict[str, Any]) -> Message:
        """A task of its own: it ends whole, also when whoever sent the commit dies in the middle of it."""
        failpoint("stage.commit.before_apply")
        id, samples, skip = attempt.id, take(asked, "samples", int), take(asked, "skip", bool)
        if attempt.train:
            factor = take(asked, "factor", float)
            step = await self._compute.submit(
                Priority.CONTROL, "optimizer", lambda: self._replica.commit(factor, skip=skip)
            )
        else:
            await self._compute.submit(Priority.CONTROL, "control", self._replica.commit_calibration)
            step, samples = self._replica.step, 0
        answer = Message({"step": step, **self.standing()})
        if self._open is attempt:
            self._open = None
        seconds = time.monotonic() - self._opened_at + self._frozen_seconds
        if attempt.train and attempt.frozen:
            self._frozen_seconds = seconds
            self.counts["frozen"] += 1
            self.journal(id, "frozen")
        elif attempt.train and not skip:
            self.samples += samples
            self.counts["applied"] += 1
            self.journal(id, "applied")
            self.step_seconds, self._frozen_seconds = [*self.step_seconds[-31:], seconds], 0.0
            self.on_commit(samples)
        elif attempt.train:
            self.counts["skipped"] += 1
            self.journal(id, "skipped")
        if attempt.train and not skip and asked.get("mark"):  # whole on all stages, frozen ones included
            self.on_mark(take(asked, "mark", str))
        failpoint("stage.commit.after_apply")
        self._act(self._windows.commit(id, time.monotonic()))
        return answer

    def _check_applied(self, applying: asyncio.Future[Message]) -> None:
        error = None if applying.cancelled() else applying.exception()
        if error is not None and not self.broken.done():
            # Its trainer hears of it before this server ends.
            asyncio.get_running_loop().call_later(BROKEN_S, self._break, error)

    def _break(self, error: BaseException) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)

    async def abort(self, call: IncomingCall) -> Message:
        """Undo the attempt; repeating it changes nothing."""
        await self._drop(parse_step(call.message.fields))
        return Message()

    async def evaluate(self, call: IncomingCall) -> Message:
        """Forward in eval mode through this stage and those behind it, outside any step."""
        fields, tensors = call.message.fields, dict(call.message.tensors)
        route = [Hop.parse(hop) for hop in take(fields, "route", list)]
        outputs = await self._compute.submit(
            Priority.FORWARD, "evaluate", lambda: self._replica.evaluate(tensors)
        )
        if not route:
            return Message(tensors=outputs.tensors)
        following = {**fields, "route": [hop.fields() for hop in route[1:]]}
        budget = take(fields, "budget", float)
        try:
            link = await self._transport.link(route[0].address)
            return await link.call("evaluate", outputs.message(following), timeout=budget, prompt=True)
        except SwarmError as error:
            raise about(error, route[0].uid) from error

    # what the server does with the window

    def gone(self, trainer: str, silent: bool = False) -> None:
        """A trainer's link is lost; it makes no difference here how."""
        self._act(self._windows.gone(trainer, time.monotonic()))

    async def pause(self) -> None:
        """Let the running step end, grant no other; returns between two inner steps."""
        self._quiet.clear()
        self._act(self._windows.pause(time.monotonic()))
        await self._quiet.wait()

    def refuse_waiting(self, error: SwarmError) -> None:
        """Nobody gets the window soon: those who wait for it may go elsewhere."""
        for id in self._windows.waiting:
            self._settle(id, error)
            self._act(self._windows.abort(id, time.monotonic()))

    def resume(self) -> None:
        self._act(self._windows.resume(time.monotonic()))

    def follow(self, lease_s: float) -> None:
        """How long a step may be silent from here on."""
        self._windows.lease_s = lease_s

    async def idle(self) -> None:
        """Return between two attempts."""
        while self._open is not None:  # noqa: ASYNC110  an attempt ends in many ways; this is asked once
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        self._ticker.cancel()
        attempt = self._open
        if attempt is None:
            return
        if attempt.resolving is not None:
            attempt.resolving.cancel()
        if attempt.applying is not None:
            await asyncio.wait({attempt.applying})
        else:
            await self._drop(attempt.id)

    # inside

    def _attempt_of(self, id: StepId) -> OpenAttempt:
        if self._open is None or self._open.id != id:
            raise StaleAttempt(f"{id} does not hold the window of {self._uid}")
        return self._open

    async def _drop(self, id: StepId) -> None:
        if self._windows.verdict(id) == "committed":
            raise StaleAttempt(f"{id} is committed at {self._uid} and cannot be aborted")
        if self._open is not None and self._open.id == id:
            attempt, self._open = self._open, None
            attempt.cancel()
            self.counts["aborted"] += 1
            await self._compute.submit(Priority.CONTROL, "control", self._replica.abort)
        self._act(self._windows.abort(id, time.monotonic()))

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, LockQuiet):
                self._quiet.set()
            elif isinstance(action, LockGrant):
                self._settle(action.id, None)
            elif isinstance(action, LockRefused):
                self._settle(action.id, StaleAttempt(f"{action.id} at {self._uid}: {action.reason}"))
            elif isinstance(action, LockExpired):
                self._undo(action.id, action.reason)
            elif (
                isinstance(action, ResolvePrepared) and self._open is not None and self._open.id == action.id
            ):
                self._resolving(self._open)

    def _settle(self, id: StepId, error: SwarmError | None) -> None:
        granted = self._granted.get(id)
        if granted is None or granted.done():
            return
        if error is None:
            granted.set_result(None)
        else:
            granted.set_exception(error)

    def _undo(self, id: StepId, reason: str) -> None:
        """The window passed on already: undo the work before the next attempt begins (jobs keep order)."""
        attempt = self._open
        if attempt is None or attempt.id != id:
            return
        self._open = None
        attempt.cancel()
        self.counts["aborted"] += 1
        self._later(self._compute.submit(Priority.CONTROL, "control", self._replica.abort))

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
            answers = await asyncio.gather(*(self._ask(hop, id) for hop in asked))
            if self._windows.verdict(id) != "undecided":
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

    async def _ask(self, hop: Hop, id: StepId) -> tuple[Verdict, dict[str, Any]]:
        if hop.uid == self._uid:
            return "unknown", {}
        with contextlib.suppress(SwarmError, asyncio.TimeoutError):
            link = await within(self._transport.link(hop.address, prompt=True), ASK_TIMEOUT)
            known = Message(step_fields(id))
            reply = await link.call("outcome", known, timeout=ASK_TIMEOUT, urgent=True, prompt=True)
            verdict = reply.fields.get("verdict")
            if verdict in ("committed", "aborted", "undecided"):
                return verdict, take(reply.fields, "commit", dict)
        return "unknown", {}

    async def outcome(self, call: IncomingCall) -> Message:
        """What became of a step here, at once; a commit with what was asked. No other ending follows it."""
        id = parse_step(call.message.fields)
        verdict = self._windows.verdict(id)
        if verdict == "committed" and id not in self._asked:
            verdict = "unknown"
        return Message({"verdict": verdict, "commit": self._asked.get(id, {})})

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._act(self._windows.tick(time.monotonic()))
