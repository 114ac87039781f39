"""What quantization costs in quality: float, after training, trained in one process, trained under DiLoCo.

    python benchmarks/quantization.py --json PATH [--quick] [--only digits,text] [--settings W8A8,W4A4]

Every way trains as many steps per replica on the same kind of batches from the same seeds; a quantized model
is compared with the float model of its own way, sample by sample on held-out data, over all seeds. Rounds
are the real ones, with four replicas over the in-memory transport. `--quick` is a try-out in minutes: models
that are far from trained, so no figures to quote.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantization_runs import after_training, diloco, one_process
from benchmarks.quantization_work import Digits, Effort, Score, Text, Work, paired
from benchmarks.report import describe, facts, write_json

FLOAT = "float"
SETTINGS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W2A2": (2, 2)}
WORKS: dict[str, type[Work]] = {"digits": Digits, "text": Text}
EFFORTS = {
    "digits": Effort(steps=600, inner_steps=20, judged=10_080, seeds=(0, 1, 2)),
    "text": Effort(steps=600, inner_steps=20, judged=400, seeds=(0, 1, 2)),
}
QUICK = {
    "digits": Effort(steps=100, inner_steps=20, judged=3_600, seeds=(0,)),
    "text": Effort(steps=60, inner_steps=20, judged=64, seeds=(0,)),
}
QUICK_SETTINGS, QUICK_DILOCO = ("W8A8", "W4A4"), ("W8A8",)

GOALS = {  # points of accuracy, or percent of loss, that a setting may be worse than float
    ("digits", "one process"): {"W8A8": 0.2, "W4A8": 0.3, "W4A4": 0.5, "W2A2": 4.0},
    ("digits", "DiLoCo"): {"W8A8": 0.3, "W4A8": 0.4, "W4A4": 0.75, "W2A2": 5.0},
    ("text", "one process"): {"W8A8": 0.2, "W4A8": 0.5},
    ("text", "DiLoCo"): {"W8A8": 0.2, "W4A8": 0.5},
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


def loss_against(row: Row, base: Row) -> tuple[float, float]:
    """(how much worse than float, half of the 95 % interval): points of accuracy, or percent of the loss."""
    difference, half = paired(base.scores, row.scores)
    return (-100 * difference, 100 * half) if row.work == "digits" else _percent(difference, half, base.mean)


def judged(row: Row, base: Row) -> dict[str, Any]:
    """The row as it is written, with its goal where it has one."""
    record = {"work": row.work, "way": row.way, "setting": row.setting, "value": row.mean, "s": row.seconds}
    if row is base:
        return record
    worse, half = loss_against(row, base)
    goal = GOALS.get((row.work, row.way), {}).get(row.setting)
    verdict = {} if goal is None else {"goal": goal, "good": worse <= goal}
    return {**record, "worse": worse, "interval": half, **verdict}


class Measurement:
    """All rows of one work."""

    def __init__(self, name: str, effort: Effort, settings: Sequence[str], of_diloco: Sequence[str]) -> None:
        self.name, self._effort, self._settings, self._of_diloco = name, effort, settings, of_diloco
        self.rows: dict[tuple[str, str], Row] = {}

    async def run(self, tell: Callable[[], None]) -> None:
        """Measure seed by seed; `tell` after each score."""
        for seed in self._effort.seeds:
            work = WORKS[self.name](self._effort, seed)
            trained = await self._score(work, "one process", FLOAT)
            for setting in self._settings:
                await self._score(work, "after training", setting, trained)
                await self._score(work, "one process", setting)
                tell()
            for setting in (FLOAT, *self._of_diloco) if self._of_diloco else ():
                await self._score(work, "DiLoCo", setting)
                tell()

    async def _score(self, work: Work, way: str, setting: str, trained: nn.Module | None = None) -> nn.Module:
        row = self.rows.setdefault((way, setting), Row(self.name, way, setting))
        quant = None if setting == FLOAT else section(setting)
        began = time.monotonic()
        if way == "DiLoCo":
            module = await diloco(work, quant)
        elif trained is not None and quant is not None:
            module = after_training(work, trained, quant)
        else:
            module = one_process(work, quant)
        row.seconds += time.monotonic() - began
        row.scores.append(work.judge(module))
        return module

    def records(self) -> list[dict[str, Any]]:
        """What has been measured so far; after training is compared with float of one process."""
        found = []
        for (way, _), row in self.rows.items():
            base = self.rows[("DiLoCo" if way == "DiLoCo" else "one process", FLOAT)]
            if row.scores and len(row.scores) == len(base.scores):
                found.append(judged(row, base))
        return found


def section(setting: str) -> dict[str, Any]:
    """The `quant` section of a setting."""
    weight, activation = SETTINGS[setting]
    return {"weight": {"bits": weight}, "activation": {"bits": activation}}


def table_of(name: str, records: Sequence[dict[str, Any]]) -> Table:
    """A line per row."""
    work = WORKS[name]
    unit = "points" if name == "digits" else "%"
    table = Table(title=work.name, title_justify="left", box=None)
    for column in ("way", "setting", work.metric, f"worse ({unit})", "goal", "", "s"):
        table.add_column(column)
    for record in records:
        worse = f"{record['worse']:+.2f} ± {record['interval']:.2f}" if "worse" in record else ""
        goal = f"<= {record['goal']}" if "goal" in record else ""
        verdict = "" if "good" not in record else "ok" if record["good"] else "MISSED"
        value = f"{record['value']:.4f}"
        table.add_row(record["way"], record["setting"], value, worse, goal, verdict, f"{record['s']:.0f}")
    return table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="a try-out in minutes")
    parser.add_argument("--only", default="digits,text", help="works (default: %(default)s)")
    parser.add_argument("--settings", help=f"of {', '.join(SETTINGS)} (default: all; --quick: W8A8, W4A4)")
    parser.add_argument("--seeds", type=int, help="how many (default: 3; --quick: 1)")
    parser.add_argument("--steps", type=int, help="inner steps per replica")
    return parser.parse_args(argv)


def effort_of(args: argparse.Namespace, name: str) -> Effort:
    """What the flags ask for."""
    base = (QUICK if args.quick else EFFORTS)[name]
    seeds = base.seeds if args.seeds is None else tuple(range(args.seeds))
    return Effort(args.steps or base.steps, base.inner_steps, base.judged, seeds)


def settings_of(args: argparse.Namespace, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Settings of one process, and those of DiLoCo."""
    if args.settings:
        chosen = tuple(args.settings.split(","))
        return chosen, chosen
    if args.quick:
        return QUICK_SETTINGS, QUICK_DILOCO if name == "digits" else ()
    return tuple(SETTINGS), tuple(SETTINGS)


async def measure(args: argparse.Namespace) -> int:
    """All works that were asked for; 1 when a goal was missed."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    about = facts()
    console.print(describe(about))
    measurements: list[Measurement] = []

    def save() -> None:
        records = [record for each in measurements for record in each.records()]
        write_json(args.json, about, {"quick": args.quick, "rows": records})

    for name in args.only.split(","):
        one, of_diloco = settings_of(args, name)
        measurement = Measurement(name, effort_of(args, name), one, of_diloco)
        measurements.append(measurement)
        await measurement.run(save)
        save()
        console.print(table_of(name, measurement.records()))
    good = all(record.get("good", True) for each in measurements for record in each.records())
    return 0 if good else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all goals were reached; 1: one was missed."""
    args = parse(argv)
    for given, known in ((args.only, WORKS), (args.settings or "W8A8", SETTINGS)):
        if not set(given.split(",")) <= set(known):
            sys.exit(f"{given}: known are {', '.join(known)}")

    return asyncio.run(measure(args))


def _percent(difference: float, half: float, base: float) -> tuple[float, float]:
    return 100 * difference / base, 100 * half / base


if __name__ == "__main__":
    sys.exit(main())
