"""The verdict of a drill: invariants I1 to I4 over what the swarm wrote down."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distqat.drill.step_journal import stage_of
from distqat.drill.step_ledger import StepLedger, check_ledger
from distqat.metrics.record_files import read_records

Record = Mapping[str, Any]
Row = tuple[bool, str]
COMMIT_LOG = "commit_log.jsonl"
WINDOW = 20  # steps at either end whose mean loss is compared
ASTRAY = 1.5  # how much the loss may have grown


@dataclass
class Evidence:
    """What a swarm has written, and who of its servers died."""

    trainers: list[Record]
    servers: list[Record]
    log: list[Record]
    gone: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)  # in order

    @classmethod
    def read(cls, log_dir: Path, gone: Collection[str] = (), left: Collection[str] = ()) -> Evidence:
        """From the files of a run, while it goes on or after its end."""
        log = log_dir / COMMIT_LOG
        lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []
        trainers, servers = read_records(log_dir, "trainer"), read_records(log_dir, "server")
        return cls([*trainers], [*servers], [json.loads(line) for line in lines], set(gone), set(left))

    def ledger(self) -> StepLedger:
        """I2, in numbers."""
        return check_ledger(self.trainers, self.servers, self.gone, self.left)

    @property
    def steps(self) -> list[Record]:
        """Committed steps by time."""
        steps = [record for record in self.trainers if record.get("event") == "step"]
        return sorted(steps, key=lambda record: float(record["time"]))


def judge(evidence: Evidence) -> dict[str, Row]:
    """I1 to I4: whether each held, and the evidence in words."""
    return {
        "I1 replicas agree": digests_agree(evidence),
        "I2 steps count once": ledger_row(evidence.ledger()),
        "I3 rounds go forward": rounds_go_forward(evidence),
        "I4 all is finite": losses_are_finite(evidence),
    }


def digests_agree(evidence: Evidence) -> Row:
    """After every committed round each member that took it holds the digest that the log has."""
    logged: dict[tuple[str, int], set[str]] = defaultdict(set)
    for entry in evidence.log:
        if entry["kind"] in ("round", "restart"):
            logged[entry["stage"], entry["round"]].add(entry["digest"])
    checked, wrong = 0, []
    for record in _committed(evidence.servers):
        key = stage_of(record["uid"]), int(record["round"])
        checked += 1
        if record["digest"] not in logged[key]:
            wrong.append(f"round {key[1]} of {record['uid']}: {record['digest'][:12]} is not in the log")
    return not wrong, wrong[
        0
    ] if wrong else f"{checked} digests after {len(logged)} rounds, all as in the log"


def ledger_row(ledger: StepLedger) -> Row:
    """I2 in words."""
    if not ledger.stages:
        return False, "no step was sent"
    if ledger.problems:
        return False, f"{len(ledger.problems)} problems, the first: {ledger.problems[0]}"
    parts = [
        f"{stage}: {own.sent} sent = {own.applied} applied + {own.skipped} skipped + {own.aborted} aborted "
        f"+ {own.lost} lost + {own.rolled_back} rolled back"
        + (f" + {own.frozen} frozen" if own.frozen else "")
        for stage, own in ledger.stages.items()
    ]
    return ledger.balanced, "; ".join(parts)


def rounds_go_forward(evidence: Evidence) -> Row:
    """In the log each round follows the last (a restart of a lost stage aside), also for each server."""
    newest: dict[str, int] = {}
    restarts = 0
    for entry in evidence.log:
        if entry["kind"] not in ("round", "restart"):
            continue
        stage, number = str(entry["stage"]), int(entry["round"])
        restarts += entry["kind"] == "restart"
        if entry["kind"] == "round" and number != newest.get(stage, -1) + 1:
            return False, f"{stage}: round {number} was logged after {newest.get(stage)}"
        newest[stage] = number
    last: dict[str, int] = {}
    for record in _committed(evidence.servers):
        who, number = str(record["tenancy"]), int(record["round"])
        key = f"{record['peer']} {who}"
        if number <= last.get(key, -1) and not restarts:
            return False, f"{who}: round {number} after {last[key]}"
        last[key] = number
    told = ", ".join(f"{stage} at {number}" for stage, number in newest.items())
    return True, f"{told or 'no round yet'}; {restarts} restarts of a lost stage"


def losses_are_finite(evidence: Evidence) -> Row:
    """Every loss is a number, and the last are not above the first."""
    losses = [step["loss"] for step in evidence.steps if not step.get("skipped")]
    bad = sum(loss is None or not math.isfinite(loss) for loss in losses)
    if bad or not losses:
        return False, f"{bad} of {len(losses)} losses are no numbers"
    first, last = mean(losses[:WINDOW]), mean(losses[-WINDOW:])
    astray = len(losses) >= 10 * WINDOW and last > ASTRAY * first
    return not astray, f"{len(losses)} losses, {first:.4f} at first, {last:.4f} at last"


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def _committed(records: Iterable[Record]) -> list[Record]:
    return [
        record
        for record in records
        if record.get("event") == "round" and record.get("committed") and record.get("tenancy")
    ]
