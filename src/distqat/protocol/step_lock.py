"""The step lock: a replica serves one trainer's step at a time, first come, first served, under a lease.

A pure state machine: events are methods that carry `now` (monotonic seconds), answers are actions for the
shell. What a peer does wrong raises Refused, StaleAttempt or Busy and changes nothing; what only our own
code can do wrong raises RuntimeError.

TRANSITIONS is what it runs on; a lock that becomes idle is granted to the next who waits.

`verdict` says what became of an attempt; what it says once of a commit or an abort it says for good.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from distqat.errors import Busy, Refused, StaleAttempt
from distqat.protocol.step_attempts import AttemptEndings, StepId, TrainerLife, Verdict


@dataclass(frozen=True)
class LockGrant:
    """`id` holds the lock; without `touch` or another event of its own it expires at `deadline`."""

    id: StepId
    deadline: float


@dataclass(frozen=True)
class LockExpired:
    """`id` has lost the lock before its prepare: discard its work as in an abort."""

    id: StepId
    reason: str


@dataclass(frozen=True)
class LockRefused:
    """`id` waited and will never be granted: answer its caller."""

    id: StepId
    reason: str


@dataclass(frozen=True)
class ResolvePrepared:
    """`id` is prepared and its trainer silent or gone: ask its route, as `prepared_outcome` says."""

    id: StepId


@dataclass(frozen=True)
class LockQuiet:
    """Paused, and nobody holds the lock: the replica is between two inner steps."""


Action = LockGrant | LockExpired | LockRefused | ResolvePrepared | LockQuiet


LockState = Literal["idle", "held", "prepared", "decided"]
TRANSITIONS: dict[tuple[LockState, str], LockState] = {
    ("idle", "grant"): "held",  # to the first who waits, unless paused
    ("held", "prepare"): "prepared",
    ("held", "abort"): "idle",
    ("held", "expire"): "idle",  # silent for a lease, its trainer gone, or a newer attempt came
    ("prepared", "prepare"): "prepared",
    ("prepared", "resolve"): "prepared",  # its trainer is silent, gone or in a newer life: ask the route
    ("prepared", "decide"): "decided",
    ("prepared", "abort"): "idle",
    ("prepared", "expire"): "idle",  # a newer attempt of the same life came
    ("decided", "prepare"): "decided",
    ("decided", "decide"): "decided",
    ("decided", "resolve"): "decided",  # it is being applied: there is nothing to ask
    ("decided", "commit"): "idle",
}
"""What an event of the holder makes of the lock; any other event is an error of our own code."""


class StepLock:
    """Who may work on one replica. At most one holder; waiters are granted in the order of their requests."""

    def __init__(self, *, lease_s: float, max_waiting: int = 64) -> None:
        if lease_s <= 0 or max_waiting < 1:
            raise ValueError(f"lease_s {lease_s} and max_waiting {max_waiting} must be positive")
        self.lease_s = lease_s
        self._max_waiting = max_waiting
        self._holder: StepId | None = None
        self.state: LockState = "idle"
        self._endings = AttemptEndings()
        self._deadline = 0.0
        self._waiting: list[StepId] = []
        self._paused = False
        self._quiet_said = False
        self._trainers: dict[str, TrainerLife] = {}

    @property
    def holder(self) -> StepId | None:
        """Who holds the lock."""
        return self._holder

    @property
    def prepared(self) -> bool:
        """Whether the holder is prepared, so that only a commit or an abort ends it."""
        return self.state in ("prepared", "decided")

    @property
    def paused(self) -> bool:
        """Whether nothing new is granted."""
        return self._paused

    @property
    def waiting(self) -> tuple[StepId, ...]:
        """Who waits, next first."""
        return tuple(self._waiting)

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest; None while nobody holds the lock."""
        return self._deadline if self._holder else None

    def request(self, id: StepId, now: float) -> list[Action]:
        """`id` wants the lock. A repetition by the holder is granted again, by a waiter it changes nothing.

        A newer attempt ends the older one of its step, a newer life of a trainer ends the older life; only a
        prepared step of an older life is kept, to be resolved. StaleAttempt when `id` is over; Busy when too
        many wait.
        """
        if id == self._holder:
            self._deadline = now + self.lease_s
            return [LockGrant(id, self._deadline)]
        if id in self._waiting:
            return []
        self._check_alive(id)
        kept = [other for other in self._waiting if not id.supersedes(other)]
        if len(kept) >= self._max_waiting:
            raise Busy(f"{len(kept)} steps wait for this replica; {id} should take another or retry later")
        trainer = self._trainers.get(id.trainer)
        if trainer is None or trainer.life < id.life:
            self._trainers[id.trainer] = trainer = TrainerLife(id.life)
        trainer.close(id.step, id.attempt - 1)
        actions: list[Action] = [LockRefused(o, f"{id} came") for o in self._waiting if o not in kept]
        self._waiting = [*kept, id]
        holder = self._holder
        if holder is not None and id.supersedes(holder):
            if self.state != "held" and holder.life < id.life:
                actions += self._resolve(holder)
            elif self.state != "decided":
                actions += self._expire(holder, f"{id} came")
        return actions + self._advance(now)

    def touch(self, id: StepId, now: float) -> None:
        """Work for `id` arrived: its lease starts again."""
        self._check_holds(id, "touch")
        self._deadline = now + self.lease_s

    def prepare(self, id: StepId, now: float) -> None:
        """`id` is complete here; from now on it ends by commit or abort only, never by silence."""
        self.touch(id, now)
        self._enter("prepare")

    def decide(self, id: StepId, now: float) -> None:
        """The commit of `id` is accepted: whatever comes now, it ends by `commit`. May be repeated."""
        if self._endings.verdict(id) == "committed":
            return
        self._check_holds(id, "commit")
        if self.state == "held":
            raise Refused(f"commit of {id} in state {self._state()}: it was never prepared")
        self._enter("decide")
        self._deadline = now + self.lease_s
        self._endings.add(id, "committed")

    def verdict(self, id: StepId) -> Verdict:
        """What became of `id` here. An ending binds: an aborted attempt is never committed afterwards."""
        return "undecided" if id == self._holder and self.state != "decided" else self._endings.verdict(id)

    def commit(self, id: StepId, now: float) -> list[Action]:
        """`id` is applied: release the lock. A repeated commit of the trainer's last step does nothing."""
        trainer = self._trainers.get(id.trainer)
        if trainer and trainer.life == id.life and trainer.committed == (id.step, id.attempt):
            return []
        self._check_holds(id, "commit")
        self.decide(id, now)
        self._release("commit")
        late: list[StepId] = []
        if trainer and trainer.life == id.life:
            trainer.commit(id.step, id.attempt)
            late = [other for other in self._of(id.trainer) if other.step <= id.step]
        return self._drop(late, f"{id} is committed") + self._advance(now)

    def abort(self, id: StepId, now: float) -> list[Action]:
        """`id` is over without effect, holding, waiting or not yet seen. May be repeated."""
        if self._endings.verdict(id) == "committed":
            raise StaleAttempt(f"abort of {id} in state {self._state()}: it is committed here")
        trainer = self._trainers.setdefault(id.trainer, TrainerLife(id.life))
        if trainer.life < id.life:
            trainer = self._trainers[id.trainer] = TrainerLife(id.life)
        if trainer.life == id.life:
            if trainer.committed == (id.step, id.attempt):
                raise StaleAttempt(f"abort of {id} in state {self._state()}: it is committed here")
            trainer.close(id.step, id.attempt)
        self._endings.add(id, "aborted")
        if id == self._holder:
            self._release("abort")
        self._waiting = [other for other in self._waiting if other != id]
        return self._advance(now)

    def gone(self, trainer: str, now: float) -> list[Action]:
        """The trainer's link ended without BYE: its waiters leave, its open step ends or is resolved."""
        actions = self._drop(self._of(trainer), "its trainer is gone")
        holder = self._holder
        if holder is not None and holder.trainer == trainer:
            actions += (
                self._expire(holder, "its trainer is gone") if self.state == "held" else self._resolve(holder)
            )
        return actions + self._advance(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed: a holder that was silent for a lease loses the lock, or is to be resolved."""
        holder = self._holder
        if holder is None or now < self._deadline:
            return []
        if self.state != "held":
            self._deadline = now + self.lease_s
            return self._resolve(holder)
        return self._expire(holder, f"silent for {self.lease_s:g} s") + self._advance(now)

    def pause(self, now: float) -> list[Action]:
        """Grant nothing new (an outer round begins); Quiet follows as soon as nobody holds the lock."""
        if self._paused:
            raise RuntimeError(f"pause in state {self._state()}")
        self._paused, self._quiet_said = True, False
        return self._advance(now)

    def resume(self, now: float) -> list[Action]:
        """Go on granting."""
        if not self._paused:
            raise RuntimeError(f"resume in state {self._state()}")
        self._paused = False
        return self._advance(now)

    def _advance(self, now: float) -> list[Action]:
        if self._holder is not None:
            return []
        if self._paused:
            said, self._quiet_said = self._quiet_said, True
            return [] if said else [LockQuiet()]
        if not self._waiting:
            return []
        self._enter("grant")
        self._holder, self._deadline = self._waiting.pop(0), now + self.lease_s
        return [LockGrant(self._holder, self._deadline)]

    def _resolve(self, holder: StepId) -> list[Action]:
        self._enter("resolve")
        return [] if self.state == "decided" else [ResolvePrepared(holder)]

    def _expire(self, holder: StepId, reason: str) -> list[Action]:
        self._close(holder)
        self._endings.add(holder, "aborted")
        self._release("expire")
        return [LockExpired(holder, reason)]

    def _release(self, event: str) -> None:
        self._enter(event)
        self._holder = None

    def _enter(self, event: str) -> None:
        if (self.state, event) not in TRANSITIONS:
            raise RuntimeError(f"{event} in state {self._state()}")
        self.state = TRANSITIONS[self.state, event]

    def _drop(self, ids: Iterable[StepId], reason: str) -> list[Action]:
        gone = list(ids)
        for id in gone:
            self._close(id)
            self._endings.add(id, "aborted")
            self._waiting.remove(id)
        return [LockRefused(id, reason) for id in gone]

    def _close(self, id: StepId) -> None:
        trainer = self._trainers[id.trainer]
        if trainer.life == id.life:
            trainer.close(id.step, id.attempt)

    def _of(self, trainer: str) -> list[StepId]:
        return [id for id in self._waiting if id.trainer == trainer]

    def _check_alive(self, id: StepId) -> None:
        trainer = self._trainers.get(id.trainer)
        if trainer is not None and trainer.is_over(id):
            raise StaleAttempt(f"{id} is over here; drop it")

    def _check_holds(self, id: StepId, event: str) -> None:
        if id == self._holder:
            return
        self._check_alive(id)
        raise Refused(f"{event} of {id} in state {self._state()}")

    def _state(self) -> str:
        paused = ", paused" if self._paused else ""
        if self._holder is None:
            return f"idle{paused}"
        return f"{self.state} by {self._holder}{paused}"
