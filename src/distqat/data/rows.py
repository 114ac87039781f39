"""Rows of a data set that know where they come from, and an account of those that were left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from typing_extensions import Self

from distqat.tasks.base import Sample


class Row(dict[str, Any]):
    """A sample with its origin: `train.jsonl, line 12`."""

    __slots__ = ("origin",)

    def __init__(self, fields: Mapping[str, Any], origin: str) -> None:
        super().__init__(fields)
        self.origin = origin


def origin_of(sample: object) -> str:
    """Where a sample comes from; empty where its source does not say."""
    return str(getattr(sample, "origin", ""))


def at(sample: object) -> str:
    """The origin of a sample as the beginning of a message about it; empty where its source does not say."""
    origin = origin_of(sample)
    return f"{origin}: " if origin else ""


class Rows(Protocol):
    """Rows of one split, in files that can be taken in another order. Iterating may raise DataError."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names, as far as they are known; empty where nothing says."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that `label` counts; empty where nothing says."""

    @property
    def files(self) -> int:
        """How many there are."""

    def of_file(self, number: int) -> Self:
        """The rows of one file."""

    def skip(self, count: int) -> Self:
        """Without the first `count` rows."""

    def take(self, count: int) -> Self:
        """The first `count` rows alone."""

    def __iter__(self) -> Iterator[Sample]:
        """Row by row, each time from the beginning."""


@dataclass
class LeftOut:
    """How many rows (or files) were read and how many of them were left out, by reason."""

    what: str = "rows"
    read: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    """Origin of the first one that was left out for a reason."""

    def leave(self, reason: str, origin: str = "") -> None:
        """Note one that is left out, and where it is."""
        if reason not in self.reasons:
            self.first[reason] = origin
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    @property
    def count(self) -> int:
        """All that were left out."""
        return sum(self.reasons.values())

    def __str__(self) -> str:
        """`3 of 600 rows left out: 2 without text (first: train.jsonl, line 451), 1 longer than 4 s`."""
        if not self.reasons:
            return f"none of {self.read:,} {self.what} left out"
        told = [
            f"{count:,} {reason}" + (f" (first: {self.first[reason]})" if self.first.get(reason) else "")
            for reason, count in dict(self.reasons).items()  # a copy: another thread may be reading on
        ]
        return f"{self.count:,} of {self.read:,} {self.what} left out: {', '.join(told)}"


@runtime_checkable
class Accounting(Protocol):
    """A source that says what it left out."""

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Of files and of rows, as far as they were read."""

    @property
    def complete(self) -> bool:
        """Whether all of them were."""


def account_of(source: object) -> dict[str, Any]:
    """What a source left out, as it travels and stands in `summary.json`; empty for one that does not say.

    By `files`, `rows` or `samples`: how many were read, and the reasons; `complete`; `line`, for people.
    """
    if not isinstance(source, Accounting):
        return {}
    parts = source.left_out
    told = {part.what: {"read": part.read, "left_out": dict(part.reasons)} for part in parts}
    so_far = "" if source.complete else ", so far"
    return {**told, "complete": source.complete, "line": "; ".join(map(str, parts)) + so_far}


def leaves_out(account: Mapping[str, Any]) -> bool:
    """Whether an account tells of anything that was left out."""
    return any(part.get("left_out") for part in account.values() if isinstance(part, Mapping))
