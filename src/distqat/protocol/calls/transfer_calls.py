"""The calls by which a committed state moves: a description of it, then its chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from distqat.errors import BadFrame, Busy, Refused, StageUnavailable
from distqat.protocol.call_schema import CLIENT, SERVER, Bounds, Call, Count, Name
from distqat.protocol.calls.step_calls import Done

StatePart = Literal["shared", "moments"]
"""What all replicas of a stage have in common, or the inner optimizer's moments of the donor alone."""
MAX_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class StateOffer:
    """A state that the donor hands out in chunks."""

    round: Count
    step: Count  # inner steps of the donor
    digest: Name
    chunk_bytes: Annotated[int, Bounds(16, MAX_CHUNK_BYTES)]


@dataclass(frozen=True)
class DescribeState(
    Call[StateOffer],
    method="snapshot",
    served_by=(SERVER, CLIENT),
    tensors=("", "`schema`: names, types and shapes as JSON; `hashes`: a sha256 per chunk"),
    raises=(StageUnavailable, Refused),
):
    """Freeze the committed state of a round, and say of what chunks it is made."""

    round: Count
    digest: Name
    part: StatePart = "shared"
    stage: Name = ""  # of the client's copies, which one


@dataclass(frozen=True)
class FetchChunk(
    Call[Done],
    method="chunk",
    served_by=(SERVER, CLIENT),
    tensors=("", "`bytes`, uint8"),
    raises=(StageUnavailable, Busy, BadFrame),
):
    """One chunk of a state that was described before."""

    digest: Name
    index: Count
    stage: Name = ""  # as in `snapshot`
