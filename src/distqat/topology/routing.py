"""Which replica of each stage a trainer's next step takes, by the trainer's own measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distqat.errors import StageUnavailable
from distqat.topology.expert import ExpertId
from distqat.topology.snapshot import ServerRecord, SwarmSnapshot


@dataclass(frozen=True)
class Route:
    """One replica per stage, in pipeline order, for one whole step."""

    servers: tuple[ServerRecord, ...]

    @property
    def experts(self) -> tuple[ExpertId, ...]:
        """The replicas of the route, in pipeline order."""
        return tuple(server.expert for server in self.servers)

    def __getitem__(self, stage: str) -> ServerRecord:
        for server in self.servers:
            if server.stage == stage:
                return server
        raise KeyError(stage)


@dataclass
class _Knowledge:
    """What this trainer knows about one holding of a slot."""

    record: ServerRecord
    samples_per_s: float | None = None
    failures: int = 0
    retry_at: float = 0.0
    failed_record_expiry: float = 0.0
    why: str = ""  # it failed last

    def aside(self, now: float) -> bool:
        """Set aside until its back-off is over and it has declared itself again since the failure."""
        if self.failures == 0:
            return False
        return now < self.retry_at or self.record.expires_at <= self.failed_record_expiry


class Router:
    """Chooses routes; learns from how steps went. Holds no clock: `now` is monotonic seconds.

    Trainers do not crowd: the replicas of a stage are dealt out over the complete pipelines, and a trainer
    takes those dealt to its own as long as one is usable, else any. Among its own a replica that was never
    measured is tried first; otherwise a stage stays with its replica until another is better by
    `hysteresis` (0.2: 20 %), so that noise does not make trainers hop. A failure sets a replica aside at
    once: a stale record costs one failed call. It comes back when its record has been renewed and an
    exponential back-off is over; a new holder of the slot (other peer or epoch) starts afresh.
    """

    def __init__(
        self,
        *,
        smoothing: float = 0.3,
        hysteresis: float = 0.2,
        backoff_s: float = 1.0,
        max_backoff_s: float = 60.0,
    ) -> None:
        if not 0 < smoothing <= 1:
            raise ValueError(f"smoothing {smoothing} is not in (0, 1]")
        self._smoothing = smoothing
        self._hysteresis = hysteresis
        self._backoff_s = backoff_s
        self._max_backoff_s = max_backoff_s
        self._known: dict[ExpertId, _Knowledge] = {}
        self._current: dict[str, ExpertId] = {}

    def choose(self, snapshot: SwarmSnapshot, preferred_index: int, now: float) -> Route:
        """The route of the next step; StageUnavailable names every stage that has no usable replica.

        `preferred_index` is the pipeline's id.
        """
        self._learn(snapshot)
        pipelines = max(1, len(snapshot.complete_pipelines()))
        chosen: list[ServerRecord] = []
        unavailable: list[str] = []
        for stage in snapshot.stages:
            dealt = snapshot.serving(stage)[preferred_index % pipelines :: pipelines]
            usable = [s for s in snapshot.serving(stage) if not self._known[s.expert].aside(now)]
            if usable:
                own = [server for server in usable if server in dealt]
                chosen.append(self._pick(stage, own or usable, preferred_index))
            else:
                unavailable.append(self._why_not(stage, snapshot))
        if unavailable:
            nobody = any(not snapshot.serving(stage) for stage in snapshot.stages)
            advice = ": start a server" if nobody else " again"
            raise StageUnavailable(
                f"no replica for stage {', '.join(unavailable)}; the step waits until one declares "
                f"itself{advice}"
            )
        return Route(tuple(chosen))

    def succeeded(self, expert: ExpertId, samples_per_s: float, now: float) -> None:
        """A step over `expert` was applied at this rate."""
        known = self._known.get(expert)
        if known is None:  # its record has vanished since; nothing to remember
            return
        known.failures, known.retry_at = 0, now
        before = known.samples_per_s
        known.samples_per_s = (
            samples_per_s if before is None else before + self._smoothing * (samples_per_s - before)
        )

    def failed(self, expert: ExpertId, now: float, why: str = "") -> None:
        """A call to `expert` failed: stay away until it declares itself again. `why` is for people."""
        known = self._known.get(expert)
        if known is None:
            return
        known.retry_at = now + min(self._backoff_s * 2.0 ** min(known.failures, 30), self._max_backoff_s)
        known.failures += 1
        known.why = why
        known.failed_record_expiry = known.record.expires_at
        if self._current.get(expert.stage) == expert:
            del self._current[expert.stage]

    def samples_per_s(self, expert: ExpertId) -> float | None:
        """The moving average of `expert`; None while it has not been measured."""
        known = self._known.get(expert)
        return known.samples_per_s if known else None

    def _learn(self, snapshot: SwarmSnapshot) -> None:
        """Take over the records; forget who left, and who was followed by another holder."""
        known: dict[ExpertId, _Knowledge] = {}
        for server in (s for stage in snapshot.stages for s in snapshot.replicas(stage)):
            before = self._known.get(server.expert)
            if before is None or _tenancy(before.record) != _tenancy(server):
                before = _Knowledge(server)
            before.record = server
            known[server.expert] = before
        self._known = known

    def _why_not(self, stage: str, snapshot: SwarmSnapshot) -> str:
        """A stage without a usable replica, and what happened to those that are set aside."""
        aside = [(str(s.expert), self._known[s.expert].why) for s in snapshot.serving(stage)]
        if not aside:
            return repr(stage)
        told = "; ".join(f"{uid}: {why}" for uid, why in aside if why)
        return f"{stage!r} ({len(aside)} set aside after failures{f': {told}' if told else ''})"

    def _pick(self, stage: str, usable: Sequence[ServerRecord], preferred_index: int) -> ServerRecord:
        start = preferred_index % len(usable)
        in_turn = [*usable[start:], *usable[:start]]
        rates = {server.expert: self._known[server.expert].samples_per_s for server in in_turn}
        current = self._current.get(stage)
        if current not in rates:
            current = in_turn[0].expert
        new = next((server for server in in_turn if rates[server.expert] is None), None)
        if new is not None:
            self._current[stage] = current
            return new
        best = max(in_turn, key=lambda server: rates[server.expert] or 0.0)
        if (rates[best.expert] or 0.0) > (1.0 + self._hysteresis) * (rates[current] or 0.0):
            current = best.expert
        self._current[stage] = current
        return next(server for server in in_turn if server.expert == current)


def _tenancy(server: ServerRecord) -> tuple[str, int]:
    return server.peer_id, server.epoch
