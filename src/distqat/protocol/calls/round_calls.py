"""The calls of the outer rounds: members of a stage to the client that convenes them, and to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from distqat.errors import BadContribution, Refused, StageUnavailable
from distqat.protocol.call_schema import CLIENT, FLAT, SERVER, Call, Count, Name
from distqat.protocol.calls.step_calls import Done
from distqat.protocol.convener_actions import OpenRound
from distqat.protocol.hop import Hop
from distqat.protocol.round_answers import RoundCommitted, RoundDiscarded, RoundMissed


@dataclass(frozen=True)
class FoundStage(Call[Done], method="zero", served_by=(CLIENT,), raises=(Refused,)):
    """The founder of a stage publishes round 0. The first one stands."""

    stage: Name
    uid: Name
    digest: Name


@dataclass(frozen=True)
class StageRestarted:
    """The stage goes on from that state."""

    generation: Count


@dataclass(frozen=True)
class RestartStage(Call[StageRestarted], method="restart", served_by=(CLIENT,), raises=(Refused,)):
    """The restorer of a lost stage publishes the state that it found."""

    stage: Name
    uid: Name
    round: Count
    digest: Name


@dataclass(frozen=True)
class StageJoined:
    """You are a member from the next opening on."""

    round: Count
    outer_steps: Count
    members: Count  # how many there are
    awaited: bool = True  # the next opening waits for you; if not, be ready at once


@dataclass(frozen=True)
class JoinStage(Call[RoundMissed | StageJoined], method="joined", served_by=(CLIENT,), raises=(Refused,)):
    """A server holds the committed state of a round and can give it to others."""

    stage: Name
    hop: Annotated[Hop, FLAT]
    round: Count


@dataclass(frozen=True)
class ReadyForRound(Call[RoundMissed | OpenRound], method="ready", served_by=(CLIENT,), raises=(Refused,)):
    """A member has taken its inner steps since `round`. Answered when the next round opens."""

    stage: Name
    uid: Name
    round: Count


@dataclass(frozen=True)
class SetMember:
    """One contribution to fetch, and from whom."""

    hop: Annotated[Hop, FLAT]
    digest: Name
    samples: Count


@dataclass(frozen=True)
class CopyHolders:
    """Another stage's copy of a tied weight, and who holds it."""

    round: Count
    digest: Name
    members: tuple[Hop, ...]


@dataclass(frozen=True)
class ContributionSet:
    """The contributions of an attempt, in the order in which to add them."""

    set: tuple[SetMember, ...]
    copy: CopyHolders | None = None  # what a tied weight is averaged with


@dataclass(frozen=True)
class Contribute(
    Call[RoundMissed | ContributionSet | RoundCommitted | RoundDiscarded],
    method="contribute",
    served_by=(CLIENT,),
    raises=(Refused,),
):
    """A member has encoded its pseudo-gradient and serves it. Answered with the set, or what became of it."""

    stage: Name
    uid: Name
    round: Count
    attempt: Count
    digest: Name
    samples: Count  # committed ones that the pseudo-gradient holds
    nbytes: Count


@dataclass(frozen=True)
class VoteOnResult(
    Call[RoundMissed | RoundCommitted | RoundDiscarded], method="vote", served_by=(CLIENT,), raises=(Refused,)
):
    """A member's vote for a result. Answered with the outcome of the attempt."""

    stage: Name
    uid: Name
    round: Count
    attempt: Count
    digest: Name | None = None  # none: the set could not be fetched or verified
    copy: Name = ""  # digest of the tied weight in the result


@dataclass(frozen=True)
class FetchContribution(
    Call[Done],
    method="contribution",
    served_by=(SERVER,),
    tensors=("", "the encoded pseudo-gradient"),
    raises=(BadContribution,),
):
    """A member's contribution to an attempt, for another member; waits until it is encoded."""

    round: Count
    attempt: Count


@dataclass(frozen=True)
class FetchTiedWeight(
    Call[Done],
    method="tied",
    served_by=(SERVER,),
    tensors=("", "the copy, by the names that both stages know"),
    raises=(StageUnavailable,),
):
    """The copy of a tied weight after a committed round; waits while that is about to be adopted."""

    round: Count
