"""What the convener of a stage tells its shell to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ContributionOffer:
    """What a member says of its encoded contribution; `samples` are those of its committed inner steps."""

    digest: str
    samples: int
    nbytes: int


@dataclass(frozen=True)
class OpenRound:
    """Tell `members` that round `round`, attempt `attempt`, takes their pseudo-gradients now."""

    round: int
    attempt: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class ExchangeContributions:
    """Tell `members` the set of contributions to fetch, in the order in which to add them."""

    round: int
    attempt: int
    members: tuple[str, ...]
    offers: Mapping[str, ContributionOffer]


@dataclass(frozen=True)
class CommitRound:
    """Log that round `round` ended with `digest`; then tell `members`. Who voted otherwise is stale."""

    round: int
    digest: str
    members: tuple[str, ...]
    contributors: tuple[str, ...]
    duration_s: float
    nbytes: int


@dataclass(frozen=True)
class DiscardRound:
    """Tell `members` that this attempt at round `round` changed nothing."""

    round: int
    attempt: int
    members: tuple[str, ...]
    reason: str
    duration_s: float


@dataclass(frozen=True)
class TellBehind:
    """Follows a Commit. Tell `members`, who are none any more, to fetch round `round` and to join again."""

    round: int
    members: tuple[str, ...]


Action = OpenRound | ExchangeContributions | CommitRound | DiscardRound | TellBehind
