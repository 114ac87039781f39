"""Planted bugs, one at a time: real code or a role of the world, bent. The checks must find them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.simulation.calls import Reply
from tests.simulation.rounds import STAGE, Client, Server, digest_of
from tests.simulation.stage import Stage
from tests.simulation.steps import Replica, Trainer
from tests.simulation.swarm import Swarm

from distqat.protocol.round_convener import Action, CommitRound, RoundConvener
from distqat.protocol.step_attempts import StepId, Verdict
from distqat.protocol.step_lock import StepLock


class SkipsTheVote(Client):
    def serve_vote(self, source: str, reply: Reply, round: int, attempt: int, digest: str | None) -> None:
        convener = self.assembly.convener
        if digest is not None and convener.phase == "voting":
            for uid in convener._present():  # the first result is everybody's
                convener._votes[uid] = digest
        super().serve_vote(source, reply, round, attempt, digest)


class NoMajority(RoundConvener):
    def _end_if_due(self, now: float) -> list[Action]:
        votes = [vote for vote in self._votes.values() if vote is not None]
        return [self._commit(votes[0], now)] if votes else super()._end_if_due(now)  # type: ignore[list-item]


class CommitsWithoutMajority(Client):
    def make_assembly(self, convener: RoundConvener) -> Any:
        bent = NoMajority(
            convener.round, convener.digest, convener.grace, convener.exchange_s, convener.settled_at
        )
        return super().make_assembly(bent)


class LogsAfterTelling(Client):
    def record(self, action: CommitRound) -> None:
        self.commits.append((self.log.generation, action, self.attempt))
        self.note(self.log.generation, action.round, action.digest)
        self.after(0.05, lambda: self.log.commit_round(STAGE, action.round, action.digest) and None)


class GrantsASlotTwice(Client):
    def grant(self, source: str, holding: str | None) -> tuple[str, int]:
        uid, epoch = super().grant(source, holding)
        return (holding, epoch) if holding is not None else (uid, epoch)


class ForgetsTheAnchor(Server):
    def take(self, generation: int, round: int, anchor: str, momentum: str) -> None:
        joins = self.attempt is None and self.result is None and self.calls_fetch
        super().take(generation, round, self.anchor or digest_of("its own") if joins else anchor, momentum)

    calls_fetch = False

    def fetch(self, snapshot: tuple[int, int, str, str] | None) -> None:
        self.calls_fetch = True
        super().fetch(snapshot)
        self.calls_fetch = False


class ServesStale(Server):
    @property
    def serving(self) -> bool:
        return self.alive and self.member and self.attempt is None


class MovesTheMomentum(Server):
    def discarded(self) -> None:
        super().discarded()
        self.momentum = digest_of("moved", self.momentum)


class AppliesEveryCommit(Replica):
    def on_commit(self, source: str, id: StepId) -> None:
        if id in self.applied:
            self.ended.append((id, "applied"))
        super().on_commit(source, id)


class ReusesStepIds(Trainer):
    def make_id(self) -> StepId:
        return StepId(self.name, 1, self.step, self.attempt)  # its incarnation does not count its lives


class EarlyRelease(StepLock):
    def tick(self, now: float) -> list[Any]:
        """Silence ends a prepared step, too, without asking anybody."""
        holder = self._holder
        if holder is None or now < self._deadline - self.lease_s * 0.8 or self.state == "decided":
            return super().tick(now)
        return [*self._expire(holder, "early"), *self._advance(now)]


class ReleasesEarly(Replica):
    def make_lock(self) -> StepLock:
        return EarlyRelease(lease_s=3.0)


class WordDoesNotBind(Replica):
    """Asked for an outcome that is open, it says no, and may commit all the same."""

    def verdict(self, id: StepId) -> Verdict:
        known = super().verdict(id)
        return "aborted" if known == "undecided" else known


class LeavesWork(Replica):
    def drop(self, id: StepId, why: str) -> None:
        """What an attempt did is not undone."""


BUGS: Mapping[str, tuple[type[Swarm] | type[Stage], dict[str, type]]] = {
    "the vote is skipped": (Stage, {"client": SkipsTheVote}),
    "a commit without a majority": (Stage, {"client": CommitsWithoutMajority}),
    "the log is written after telling": (Stage, {"client": LogsAfterTelling}),
    "one slot is granted twice": (Stage, {"client": GrantsASlotTwice}),
    "a joiner forgets the anchor": (Stage, {"server": ForgetsTheAnchor}),
    "a stale member serves": (Stage, {"server": ServesStale}),
    "a discarded round moves the momentum": (Stage, {"server": MovesTheMomentum}),
    "a repeated commit is applied again": (Swarm, {"replica": AppliesEveryCommit}),
    "a step id is used again": (Swarm, {"trainer": ReusesStepIds}),
    "a lease is released early": (Swarm, {"replica": ReleasesEarly}),
    "an aborted outcome does not bind": (Swarm, {"replica": WordDoesNotBind}),
    "aborted work is not undone": (Swarm, {"replica": LeavesWork}),
}
