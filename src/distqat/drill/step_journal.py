"""What servers wrote of the steps that they applied, and what of it died with them. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Record = Mapping[str, Any]
Attempt = tuple[str, int, int, int]  # trainer, life, step, attempt
APPLIED, SKIPPED, FROZEN = "applied", "skipped", "frozen"


@dataclass(frozen=True)
class Imbalance:
    """Something that must not be: where, which step, and what."""

    stage: str
    id: str
    what: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.id}: {self.what}"


@dataclass(frozen=True)
class JournalLine:
    """One applied step in the journal of a server, or one that it skipped or took part in frozen."""

    stage: str
    uid: str
    peer: str
    id: Attempt
    outcome: str
    rolled_back: bool = False


def read_journals(
    servers: Iterable[Record], gone: Collection[str] = (), problems: list[Imbalance] | None = None
) -> list[JournalLine]:
    """What every server applied, in its order; the counts that it told are checked against it."""
    problems = [] if problems is None else problems
    journals: dict[tuple[str, str], list[JournalLine]] = defaultdict(list)  # by tenancy
    averaged: dict[tuple[str, str], int] = defaultdict(int)
    for record in servers:
        if not record.get("tenancy"):
            continue
        tenancy = str(record["peer"]), str(record["tenancy"])
        event = record["event"]
        if event in (APPLIED, SKIPPED, FROZEN):
            uid = str(record["uid"])
            journals[tenancy].append(JournalLine(stage_of(uid), uid, tenancy[0], attempt_of(record), event))
            continue
        if event == "round" and record.get("committed"):
            averaged[tenancy] += int(record.get("steps", 0))
        count = record.get(f"server_{APPLIED}", record.get(APPLIED))
        written = sum(line.outcome == APPLIED for line in journals[tenancy])
        if count is not None and int(count) != written:
            what = f"{tenancy[1]} of {tenancy[0]} counts {count} applied steps, its journal has {written}"
            problems.append(Imbalance(stage_of(str(record["uid"])), f"{event} record", what))
    found: list[JournalLine] = []
    for tenancy, lines in journals.items():
        found += _with_rolled_back(lines, averaged[tenancy]) if tenancy[0] in gone else lines
    return found


def _with_rolled_back(lines: list[JournalLine], averaged: int) -> list[JournalLine]:
    """Rounds hold the first steps of a journal; those behind them died with their replica."""
    marked, held = [], 0
    for line in lines:
        held += line.outcome == APPLIED
        over = line.outcome == APPLIED and held > averaged
        marked.append(replace(line, rolled_back=over))
    return marked


def attempt_of(record: Record) -> Attempt:
    """The attempt that a record is of."""
    trainer, life, step, attempt = record["id"]
    return str(trainer), int(life), int(step), int(attempt)


def stage_of(uid: str) -> str:
    """`front.0.1.0` -> `front`."""
    return uid.partition(".")[0]


def name_of(id: Attempt) -> str:
    """For people: who, which step, which attempt."""
    return f"step {id[2]} attempt {id[3]} of trainer {id[0]} (life {id[1]})"
