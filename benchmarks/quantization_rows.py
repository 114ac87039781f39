"""Rows of benchmarks/quantization.py: scores of one way and setting over all seeds, and how they compare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import stdev
from typing import Any

from benchmarks.quantization_work import Score, paired

FLOAT = "float"
ONE, AFTER, BREVITAS, DILOCO, PROCESSES = "one process", "after training", "Brevitas", "DiLoCo", "processes"
START, DISTILLED = "from the first step", "distilled"
WAYS = (ONE, AFTER, START, DISTILLED, BREVITAS, DILOCO, PROCESSES)

GOALS = {  # points of accuracy, or percent of loss, that a setting may be worse than float
    ("digits", ONE): {"W8A8": 0.1, "W4A8": 0.1, "W4A4": 0.2, "W2A2": 1.5},
    ("digits", DILOCO): {"W8A8": 0.15, "W4A8": 0.15, "W4A4": 0.4, "W2A2": 3.0},
    ("text", ONE): {"W8A8": 0.1, "W4A8": 1.0, "W4A4": 3.0},
    ("text", DILOCO): {"W8A8": 0.1, "W4A8": 1.0, "W4A4": 3.0},
}
RECOVERED = {("text", "W4A16"): 0.7}
"""The share of what quantizing after training loses that training with quantization gets back."""
STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided 95 % quantiles of Student's t for a mean over so many seeds."""


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
    told |= over_seeds(row, base)
    goal = GOALS.get((row.work, row.way), {}).get(row.setting)
    if goal is not None:
        told |= {"goal": goal, "good": lost <= goal}
    after = rows.get((AFTER, row.setting))
    if row.way in (ONE, START, DISTILLED) and after is not None and after.scores:
        told |= beside_after_training(row, after, base)
    theirs = rows.get((BREVITAS, row.setting)) if row.way == ONE else None
    if theirs is not None and theirs.scores:
        lost, half = worse(row, theirs)
        told |= {"than_brevitas": lost, "than_brevitas_interval": half, "good_beside_brevitas": lost <= half}
    return told


def over_seeds(row: Row, base: Row) -> dict[str, Any]:
    """What every seed lost, and half of the 95 % interval of their mean: chance between seeds."""
    lost = [
        worse(Row(row.work, row.way, row.setting, [own]), Row(row.work, base.way, base.setting, [its]))[0]
        for own, its in zip(row.scores, base.scores, strict=False)
    ]
    told: dict[str, Any] = {"worse_by_seed": lost}
    if len(lost) in STUDENT_95:
        told["interval_over_seeds"] = STUDENT_95[len(lost)] * stdev(lost) / math.sqrt(len(lost))
    return told


def beside_after_training(row: Row, after: Row, base: Row) -> dict[str, Any]:
    """Whether no seed is worse than quantized after training, and how much of that loss is got back."""
    own, theirs = over_seeds(row, base)["worse_by_seed"], over_seeds(after, base)["worse_by_seed"]
    pairs = list(zip(own, theirs, strict=False))
    told: dict[str, Any] = {"never_worse_than_after": all(a <= b for a, b in pairs)}
    lost = sum(b for _, b in pairs)
    if lost > 0:
        told["recovered"] = 1 - sum(a for a, _ in pairs) / lost
        goal = RECOVERED.get((row.work, row.setting))
        if goal is not None and row.way == ONE:
            told |= {"recovered_goal": goal, "good": told["recovered"] >= goal}
    return told


def _base(row: Row, rows: Rows) -> Row | None:
    if row.way == PROCESSES:
        return rows.get((DILOCO, row.setting))
    if row.setting == FLOAT:
        return None
    return rows.get((DILOCO if row.way == DILOCO else ONE, FLOAT))


def _percent(difference: float, half: float, base: float) -> tuple[float, float]:
    return 100 * difference / base, 100 * half / base
