"""Where a run goes on after its client has started: decided once, from what the servers say they hold.

docs/operating.md, resume: with one replica per stage from the newest checkpoint step that all have,
else from the newest committed round of every stage. Who still holds a stage in memory needs no disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from distqat.checkpoint.checkpoint_steps import newest_common
from distqat.process import waiting
from distqat.protocol.calls.slot_calls import RequestSlot, StagesOnDisk
from distqat.topology.expert import ExpertId

logger = logging.getLogger(__name__)

RECLAIM_S = 3.0  # how long servers that kept their state have to find a client that started again
SETTLE_S = 1.5  # how long further replicas have to say what they hold, once every stage has one


@dataclass(frozen=True)
class HeldState:
    """A state that a server can bring back; `mark` names a checkpoint step."""

    generation: int
    round: int
    digest: str
    step: int = 0
    mark: str = ""


@dataclass(frozen=True)
class HeldStates:
    """What one server holds of its stage, newest first."""

    stage: str
    rounds: tuple[HeldState, ...]
    marks: tuple[HeldState, ...]

    @classmethod
    def of(cls, stage: str, request: RequestSlot, *, oldest: int, finished: bool) -> HeldStates:
        """From a request for a slot. States of runs before `oldest`, or that came to their end, do not count.

        With `finished` those of a finished run do count: it is resumed for more rounds.
        """
        live, held = request.live, request.held
        if live is not None:
            return cls(stage, (HeldState(live.generation, live.round, live.digest),), ())
        if held is None:
            return cls(stage, (), ())
        over, on_disk = -1 if finished else held.finished, held.stages.get(stage, StagesOnDisk())
        rounds = [HeldState(*state) for state in on_disk.rounds]
        marks = [HeldState(g, r, digest, step, mark) for mark, g, r, digest, step in on_disk.marks]

        def counts(state: HeldState) -> bool:
            return state.generation >= oldest and state.generation > over

        return cls(stage, tuple(filter(counts, rounds)), tuple(filter(counts, marks)))


@dataclass(frozen=True)
class ResumeDecision:
    """Who brings each stage back, and to what: a mark for all, or each its newest round (None: none)."""

    mark: str
    restorers: dict[str, str]
    states: dict[str, HeldState | None]

    def describe(self) -> str:
        """One sentence for the log."""
        rounds = ", ".join(f"{s} {'anew' if h is None else h.round}" for s, h in self.states.items())
        step = f"checkpoint step {self.mark}" if self.mark else "the newest round of every stage"
        return f"{step} (rounds: {rounds})"


def decide(
    stages: Sequence[str], offers: Mapping[str, HeldStates], parts: Iterable[str]
) -> ResumeDecision | None:
    """The decision, or None while a stage has no server. `parts` are the marks that trainers have written.

    A mark counts only with one replica per stage: with more, what the others did since is not in it.
    """
    by_stage = {stage: {uid: o for uid, o in offers.items() if o.stage == stage} for stage in stages}
    if not all(by_stage.values()):
        return None
    mark = None
    if all(len(group) == 1 for group in by_stage.values()):
        marks = {stage: next(iter(group.values())).marks for stage, group in by_stage.items()}
        mark = newest_common(marks, list(parts))
    restorers: dict[str, str] = {}
    states: dict[str, HeldState | None] = {}
    for stage, group in by_stage.items():
        best = max(group, key=lambda uid: _newest(group[uid]))
        restorers[stage] = best
        marked = [held for held in group[best].marks if held.mark == mark]
        states[stage] = marked[0] if marked else next(iter(group[best].rounds), None)
    return ResumeDecision(mark or "", restorers, states)


def _newest(offer: HeldStates) -> tuple[int, int]:
    return (offer.rounds[0].generation, offer.rounds[0].round) if offer.rounds else (-1, -1)


@dataclass
class ResumeQuestion:
    """From the start of the client until it is known where the run goes on.

    `waiting` is true while that is open: no stage is founded or restored meanwhile.
    """

    stages: Sequence[str]
    parts: Sequence[str]  # marks of trainers, newest first
    expected: int  # servers that are known to come; fewer are waited for only shortly
    waiting: bool
    decision: ResumeDecision | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _offers: dict[str, HeldStates] = field(default_factory=dict)
    _changed_at: float = field(default_factory=time.monotonic)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        if not self.waiting:
            self.over.set()

    def offer(self, uid: str, offer: HeldStates, *, founded: bool) -> None:
        """A server got slot `uid` and said what it holds; `founded`: some stage began anew already."""
        if self.over.is_set() and not self.waiting and offer.rounds and not founded and not self.decision:
            self.waiting = True  # no log, but servers can prove a round: go on from there
            self.over.clear()
        self._offers[uid] = offer
        self._note_change()

    def withdraw(self, uid: str) -> None:
        """Its server is gone."""
        self._offers.pop(uid, None)
        self._note_change()

    def cancel(self) -> None:
        """Somebody still holds the run in memory, or it begins anew: nothing is to be decided."""
        self.waiting = False
        self.over.set()
        self._changed.set()

    async def decided(self) -> ResumeDecision | None:
        """Wait for the decision; None when there was nothing to decide."""
        if not self.over.is_set():
            with waiting("servers") as wait:
                while not self.over.is_set():
                    self._changed.clear()
                    left_s = self._decide_if_settled()
                    wait.what = self._missing()
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), left_s)
        return self.decision

    def _note_change(self) -> None:
        self._changed_at = time.monotonic()
        self._changed.set()

    def _decide_if_settled(self) -> float | None:
        """Seconds until it is settled, if no other server says what it holds; None: a stage has nobody."""
        decision = decide(self.stages, self._offers, self.parts)
        if decision is None:
            return None
        left_s = self._changed_at + SETTLE_S - time.monotonic()
        if left_s <= 0 or len(self._offers) >= self.expected:
            logger.info("the run goes on from %s", decision.describe())
            self.decision = decision
            self.cancel()
        return left_s

    def _missing(self) -> str:
        held = {offer.stage for offer in self._offers.values()}
        nobody = ", ".join(stage for stage in self.stages if stage not in held)
        return f"servers that say what they hold of the run, to go on from there: nobody serves {nobody}"


def stage_of(uid: str) -> str:
    """`front` of `front.0.0.1`."""
    return ExpertId.parse(uid).stage
