"""The calls of servers and trainers to the client: slots, signs of life, who holds a stage, reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from distqat.errors import ProtocolMismatch, Refused, Unreachable
from distqat.protocol.call_schema import (
    CLIENT,
    FLAT,
    OTHERS,
    SERVER,
    Bounds,
    Call,
    Count,
    Name,
    Positive,
    Text,
)
from distqat.protocol.calls.step_calls import Done
from distqat.protocol.hop import Hop
from distqat.topology.expert import ExpertId

Figures = Annotated[Mapping[str, Any], OTHERS]
MAX_FIGURES, MAX_FIGURE_NAME = 32, 128  # of a report
RECORD_FIELDS = frozenset({"event", "role", "time"})  # what the client's metrics file puts beside them
MAX_JSON, MAX_POSITION = 1 << 14, 1 << 20  # characters; a position alone is not shown to people


@dataclass(frozen=True)
class LiveState:
    """A committed state that a server holds in memory."""

    generation: Count
    round: Count
    digest: Name


@dataclass(frozen=True)
class StagesOnDisk:
    """What a host could bring back of one stage, newest first."""

    rounds: tuple[tuple[int, int, Name], ...] = ()  # generation, round, digest
    marks: tuple[tuple[Name, int, int, Name, int], ...] = ()  # mark, generation, round, digest, step


@dataclass(frozen=True)
class HeldOnDisk:
    """What a host could bring back of a run."""

    finished: Annotated[int, Bounds(-1)]  # generations up to this one are of a run that came to its end
    stages: Mapping[str, StagesOnDisk]


@dataclass(frozen=True)
class SlotWait:
    """Not yet: ask again."""

    wait: Text  # for what


@dataclass(frozen=True)
class RunOver:
    """The run is finished; there is nothing to serve."""

    finished: Literal[True] = True


@dataclass(frozen=True)
class GrantedSlot:
    """A slot. ValueError when `uid` names no replica."""

    uid: Name
    epoch: Count  # a newer one of the same slot ends this one
    founder: bool  # nobody holds a state of the stage: make it, and publish round 0
    generation: Count
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the client decides of the run, by key
    batch: Any = None  # shapes of the first batch, where servers check that their model takes it
    counts_from: Count = 0  # first generation of the run; states before it are another run's
    goes_on: bool = True  # the client goes on with a run that was there before

    def __post_init__(self) -> None:
        ExpertId.parse(self.uid)

    @property
    def expert(self) -> ExpertId:
        """The replica that the holder is."""
        return ExpertId.parse(self.uid)


@dataclass(frozen=True)
class RequestSlot(
    Call[RunOver | SlotWait | GrantedSlot],
    method="slot",
    served_by=(CLIENT,),
    raises=(ProtocolMismatch, Refused, Unreachable),
):
    """A server asks for a slot: the one that it holds, or where it is needed most."""

    hop: Annotated[Hop, FLAT]
    agreements: Mapping[str, Any] | None = None  # by stage, the settings in which replicas must agree
    holding: Name | None = None  # the slot that it would like to keep
    held: HeldOnDisk | None = None
    live: LiveState | None = None


@dataclass(frozen=True)
class BeatAnswer:
    """What a server should know now."""

    generation: Count | None = None
    unknown: bool = False  # the slot is not its: ask for it again
    finished: bool = False
    move: bool = False  # leave the slot, and ask for one of a stage without a replica
    behind: bool = False  # a newer round is committed
    notice: Text = ""  # a sentence for its owner
    failed: Text = ""  # why the run cannot go on


@dataclass(frozen=True)
class Beat(Call[BeatAnswer], method="beat", served_by=(CLIENT,)):
    """A server's sign of life, with the figures of `status` for people."""

    uid: Name
    state: Name
    round: Count
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Leave(Call[Done], method="leave", served_by=(CLIENT,)):
    """The server gives its slot back and ends."""


@dataclass(frozen=True)
class Mirrored(LiveState):
    """A state of which the client has a copy, and where it is fetched."""

    hop: Annotated[Hop, FLAT]


@dataclass(frozen=True)
class Restore:
    """Nobody holds the stage any more, and you are to bring it back."""

    oldest: int  # states of older generations belong to other runs
    mark: Name = ""  # the checkpoint step to go on from, where one was agreed on
    mirror: Mirrored | None = None
    restore: Literal[True] = True


@dataclass(frozen=True)
class StageMembers:
    """Who holds the committed state of a stage; round -1 and nobody while there is none."""

    members: tuple[Hop, ...]
    round: Annotated[int, Bounds(-1)]
    digest: Name


@dataclass(frozen=True)
class AskMembers(Call[Restore | StageMembers], method="members", served_by=(CLIENT,), raises=(Refused,)):
    """Who has the committed state of a stage, and its digest."""

    stage: Name
    wait: bool = False  # until somebody has it, or the asker is to bring it back


@dataclass(frozen=True)
class ReportUnreached(Call[Done], method="unreached", served_by=(CLIENT,)):
    """Peers that a server or trainer could not connect to, and why."""

    host: Name
    peers: Mapping[str, Text]


@dataclass(frozen=True)
class ReportHeard:
    """Whether the run is finished."""

    finished: bool = False


@dataclass(frozen=True)
class ReportStep(Call[ReportHeard], method="report", served_by=(CLIENT,), raises=(Refused,)):
    """A trainer tells of a batch that is committed. ValueError when its maps are not small JSON."""

    pipeline: Count
    step: Count
    loss: float
    samples: Count
    sps: float  # samples per second
    seconds: Positive = 0.0  # from begin to commit
    position: Mapping[str, Any] | None = None  # where its data go on, should it be started again
    progress: Mapping[str, Any] | None = None  # and its own counters
    account: Mapping[str, Any] | None = None  # what the data set leaves out
    tokens_per_s: float | None = None
    bytes_in: Count | None = None
    bytes_out: Count | None = None
    figures: Figures = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in RECORD_FIELDS & self.figures.keys():
            raise ValueError(f"field {name!r} is no figure of a report")
        if len(self.figures) > MAX_FIGURES or any(len(name) > MAX_FIGURE_NAME for name in self.figures):
            raise ValueError(
                f"a report has at most {MAX_FIGURES} figures, their names {MAX_FIGURE_NAME} characters"
            )
        _check_json("position", self.position, MAX_POSITION)
        shown = {"progress": self.progress, "account": self.account, **self.figures}
        for name, value in shown.items():
            _check_json(name, value, MAX_JSON)


def _check_json(name: str, value: Any, most: int) -> None:
    """ValueError unless it can be kept as JSON, in so many characters; a loss may be infinite or NaN."""
    try:
        size = len(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"field {name!r} cannot be kept as JSON: {error}") from error
    if size > most:
        raise ValueError(f"field {name!r} has {size} characters as JSON, more than {most}")


@dataclass(frozen=True)
class StatusFigures:
    """What people are shown: of a server what it does, of the client the run."""

    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class AskStatus(Call[StatusFigures], method="status", served_by=(SERVER, CLIENT)):
    """For the monitor's table and the progress display; nothing is decided by what it answers."""
