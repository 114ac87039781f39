"""Rows of benchmarks/quantization.py: scores of one way and setting over all seeds, and how they compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.quantization_work import Score, paired

FLOAT = "float"
ONE, AFTER, BREVITAS, DILOCO, PROCESSES = "one process", "after training", "Brevitas", "DiLoCo", "processes"
WAYS = (ONE, AFTER, BREVITAS, DILOCO, PROCESSES)

GOALS = {  # points of accuracy, or percent of loss, that a setting may be worse than float
    ("digits", ONE): {"W8A8": 0.2, "W4A8": 0.3, "W4A4": 0.5, "W2A2": 4.0},
    ("digits", DILOCO): {"W8A8": 0.3, "W4A8": 0.4, "W4A4": 0.75, "W2A2": 5.0},
    ("text", ONE): {"W8A8": 0.2, "W4A8": 0.5},
    ("text", DILOCO): {"W8A8": 0.2, "W4A8": 0.5},
}


@dataclass
class Row:
    """One setting, one way, all seeds."""

    work: str
    way: str
    setting: str
    scores: list[Score] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        return sum(score.mean for score in self.scores) / len(self.scores)


Rows = Mapping[tuple[str, str], Row]


def worse(row: Row, base: Row) -> tuple[float, float]:
    """(how much worse than `base` at the seeds of both, half of its 95 % interval): points, or % of loss."""
    count = min(len(row.scores), len(base.scores))
    difference, half = paired(base.scores[:count], row.scores[:count])
    return (-100 * difference, 100 * half) if row.work == "digits" else _percent(difference, half, base.mean)


def record(row: Row, rows: Rows) -> dict[str, Any]:
    """The row as it is written, with its goal where it has one.

    Quantized rows are compared with float of their way (after training and Brevitas: of one process), real
    processes with the same setting in memory.
    """
    told = {
        "work": row.work,
        "way": row.way,
        "setting": row.setting,
        "value": row.mean,
        "values": [score.mean for score in row.scores],
        "s": row.seconds,
    }
    base = _base(row, rows)
    if base is None or not base.scores:
        return told
    lost, half = worse(row, base)
    told |= {"than": f"{base.way}, {base.setting}", "worse": lost, "interval": half}
    goal = GOALS.get((row.work, row.way), {}).get(row.setting)
    if goal is not None:
        told |= {"goal": goal, "good": lost <= goal}
    theirs = rows.get((BREVITAS, row.setting)) if row.way == ONE else None
    if theirs is not None and theirs.scores:
        lost, half = worse(row, theirs)
        told |= {"than_brevitas": lost, "than_brevitas_interval": half, "good_beside_brevitas": lost <= half}
    return told


def _base(row: Row, rows: Rows) -> Row | None:
    if row.way == PROCESSES:
        return rows.get((DILOCO, row.setting))
    if row.setting == FLOAT:
        return None
    return rows.get((DILOCO if row.way == DILOCO else ONE, FLOAT))


def _percent(difference: float, half: float, base: float) -> tuple[float, float]:
    return 100 * difference / base, 100 * half / base
