"""The ledger of inner steps. Pure. At every stage

    sent = applied + skipped + frozen + aborted + lost + rolled_back

Two sources that know nothing of each other are compared. A *trainer* writes each attempt with its id, its
route and its end: `step` (with the replicas that did not answer the commit, `lost`) or `abort`. A *server*
writes a line for each step that it has applied (`applied`, `skipped`; `frozen` in a step that trains other
stages) before it answers the commit, and a count with every round and at its orderly end.

What is verified, also for a replica that was killed (its lines are in the kernel before anybody hears of
them, so SIGKILL does not take them; a power cut may):

- no (trainer, life, step) is applied twice at a stage, by whichever replicas and attempts;
- no aborted attempt was applied anywhere; every answered commit stands in the journal of who answered it;
- every journalled step is told by its trainer, but the last one of a trainer that died before it could;
- a server's count of applied steps equals its journal (a live one's count at its last record, as told).

What is inferred for a replica that is gone:

- `rolled_back`: the last steps that it applied and that no committed round of its holds. It dies with them. A
  death after the commit of a round and before the record of it counts that round's steps too: an upper bound.
- `lost`: the trainer got no answer to the commit. Whether the dead one had applied it (the journal tells) is
  all the same: nobody has it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from distqat.drill.step_journal import (
    APPLIED,
    FROZEN,
    SKIPPED,
    Attempt,
    Imbalance,
    JournalLine,
    Record,
    attempt_of,
    name_of,
    read_journals,
    stage_of,
)


@dataclass
class StageLedger:
    """Attempts that were sent to one stage, and how they ended."""

    sent: int = 0
    applied: int = 0  # and standing
    skipped: int = 0  # by all stages together, after an overflow
    frozen: int = 0  # took part in a step that trained others
    aborted: int = 0
    lost: int = 0  # no answer to the commit, by a replica that is gone
    rolled_back: int = 0  # applied by a replica that is gone, after its last round
    unreported: int = 0  # of those sent: known from journals only, their trainer died before it told

    @property
    def balanced(self) -> bool:
        """Whether every attempt that was sent has ended in exactly one way."""
        ended = self.applied + self.skipped + self.frozen + self.aborted + self.lost + self.rolled_back
        return self.sent == ended


@dataclass
class StepLedger:
    """The ledger of a run."""

    stages: dict[str, StageLedger] = field(default_factory=dict)
    problems: list[Imbalance] = field(default_factory=list)
    applied_twice: int = 0

    @property
    def balanced(self) -> bool:
        """No problem, and the sum holds at every stage."""
        return not self.problems and all(stage.balanced for stage in self.stages.values())


def check_ledger(
    trainers: Iterable[Record],
    servers: Iterable[Record],
    gone: Collection[str] = (),
    left: Collection[str] = (),
) -> StepLedger:
    """Balance what trainers sent against what servers applied.

    Args:
        trainers: records of all trainers. servers: of all servers, those of one process in their order.
        gone: peer ids of servers that died, with what they had. left: of those that ended in order; a commit
            may have found them gone already.
    """
    ledger = StepLedger()
    lines = read_journals(servers, gone, ledger.problems)
    at_stage: dict[str, dict[Attempt, list[JournalLine]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        at_stage[line.stage][line.id].append(line)
    _no_step_twice(lines, ledger)
    told = [record for record in trainers if record.get("id") and record.get("event") in ("step", "abort")]
    _no_record_twice(told, ledger.problems)
    for record in told:
        id = attempt_of(record)
        for uid, peer in zip(record["route"], record["peers"], strict=True):
            stage = stage_of(uid)
            own = ledger.stages.setdefault(stage, StageLedger())
            own.sent += 1
            entries = at_stage[stage].pop(id, [])
            if record["event"] == "abort":
                _end_of_abort(own, id, entries, stage, ledger.problems)
            else:
                _end_of_step(own, record, (uid, peer), entries, (gone, left), ledger.problems)
    _untold(ledger, at_stage, told)
    return ledger


def _no_step_twice(lines: Iterable[JournalLine], ledger: StepLedger) -> None:
    by_step: dict[tuple[str, tuple[str, int, int]], list[JournalLine]] = defaultdict(list)
    for line in lines:
        if line.outcome == APPLIED:
            by_step[line.stage, line.id[:3]].append(line)
    for (stage, _), each in by_step.items():
        if len(each) > 1:
            ledger.applied_twice += 1
            by = " and ".join(f"{line.uid} of {line.peer} (attempt {line.id[3]})" for line in each)
            ledger.problems.append(
                Imbalance(stage, name_of(each[0].id), f"applied {len(each)} times: by {by}")
            )


def _no_record_twice(told: Iterable[Record], problems: list[Imbalance]) -> None:
    seen: set[tuple[str, int, int]] = set()
    for record in told:
        id = attempt_of(record)
        if record["event"] == "step":
            if id[:3] in seen:
                problems.append(Imbalance("trainer", name_of(id), "its trainer tells of two commits"))
            seen.add(id[:3])


def _end_of_abort(
    own: StageLedger, id: Attempt, entries: list[JournalLine], stage: str, problems: list[Imbalance]
) -> None:
    if not entries:
        own.aborted += 1
    for line in entries:
        problems.append(Imbalance(stage, name_of(id), f"aborted, and {line.outcome} by {line.uid}"))


def _end_of_step(
    own: StageLedger,
    record: Record,
    at: tuple[str, str],
    entries: list[JournalLine],
    ended: tuple[Collection[str], Collection[str]],
    problems: list[Imbalance],
) -> None:
    """Count a committed step at one stage."""
    id, (uid, peer), (gone, left) = attempt_of(record), at, ended
    stage, lost = stage_of(uid), uid in record.get("lost", ())
    expected = SKIPPED if record.get("skipped") else APPLIED
    expected = FROZEN if uid in record.get("frozen", ()) else expected
    line = next((line for line in entries if line.peer == peer), None)
    for other in entries:
        if other.peer != peer:
            problems.append(Imbalance(stage, name_of(id), f"{other.outcome} by {other.peer}, sent to {peer}"))
    if line is not None and line.outcome != expected:
        problems.append(
            Imbalance(stage, name_of(id), f"{line.outcome} by {uid}, its trainer says {expected}")
        )
    elif lost and (line is None or peer in gone):
        own.lost += 1
        if peer not in gone and peer not in left:
            problems.append(Imbalance(stage, name_of(id), f"lost at {uid}, whose replica did not die"))
    elif line is None:
        problems.append(Imbalance(stage, name_of(id), f"answered by {uid}, and not in its journal"))
    elif line.outcome == SKIPPED:
        own.skipped += 1
    elif line.outcome == FROZEN:
        own.frozen += 1
    elif line.rolled_back:
        own.rolled_back += 1
    else:
        own.applied += 1


def _untold(
    ledger: StepLedger, at_stage: Mapping[str, Mapping[Attempt, list[JournalLine]]], told: Iterable[Record]
) -> None:
    """Journalled steps without a trainer's record: fine for the last one of a trainer's life."""
    newest = _newest([*map(attempt_of, told), *(id for rest in at_stage.values() for id in rest)])
    for stage, rest in at_stage.items():
        own = ledger.stages.setdefault(stage, StageLedger())
        for id, entries in rest.items():
            for line in entries[:1]:
                own.sent += 1
                own.unreported += 1
                own.skipped += line.outcome == SKIPPED
                own.frozen += line.outcome == FROZEN
                own.rolled_back += line.rolled_back
                own.applied += line.outcome == APPLIED and not line.rolled_back
                if id[2] < newest[id[:2]]:
                    what = f"{line.outcome} by {line.uid}, and its trainer never tells"
                    ledger.problems.append(Imbalance(stage, name_of(id), what))


def _newest(ids: Iterable[Attempt]) -> dict[tuple[str, int], int]:
    """By life of a trainer the newest step that anybody knows of."""
    newest: dict[tuple[str, int], int] = {}
    for trainer, life, step, _ in ids:
        newest[trainer, life] = max(step, newest.get((trainer, life), -1))
    return newest
