"""What quantization costs in quality: float, after training, trained in one process, trained under DiLoCo.

    python benchmarks/quantization.py --json PATH [--quick] [--only digits,text] [--settings W8A8,W4A4]
                                      [--ways "one process,DiLoCo"]

A quantized model is compared with the float model of its own way (same batches, steps and seeds), sample by
sample on held-out data, over all seeds. Rounds are the real ones, with four replicas over the in-memory
transport; one row comes from real processes. Where Brevitas is installed, it trains one-process rows too.
`--quick` is a try-out in minutes: models that are far from trained, so no figures to quote.
"""

from __future__ import annotations

from distqat.terminal import begin, unwinding

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("benchmarks/quantization.py", clean=False)

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantization_brevitas import trained_with_brevitas
from benchmarks.quantization_processes import processes
from benchmarks.quantization_rows import (
    AFTER,
    BREVITAS,
    DILOCO,
    FLOAT,
    GOALS,
    ONE,
    PROCESSES,
    START,
    WAYS,
    Row,
    record,
)
from benchmarks.quantization_runs import REPLICAS, after_training, diloco, one_process
from benchmarks.quantization_work import Digits, Effort, Text, Work
from benchmarks.report import describe, facts, output, write_json

SETTINGS: dict[str, dict[str, Any]] = {
    **{
        f"W{weight}A{activation}": {"weight": {"bits": weight}, "activation": {"bits": activation}}
        for weight, activation in ((8, 8), (4, 8), (4, 4), (3, 3), (2, 2))
    },
    **{
        f"W{bits}A16": {
            "weight": {"bits": bits, "granularity": "per_group", "group": 32},
            "activation": {"method": "none"},
        }
        for bits in (4, 3, 2)
    },
}
"""Sections `quant` by name; A16 is weight-only, per group of 32."""
WORKS: dict[str, type[Work]] = {"digits": Digits, "text": Text}
EFFORTS = {
    "digits": Effort(steps=1500, replica_steps=400, inner_steps=20, judged=10_080, seeds=(0, 1, 2)),
    "text": Effort(steps=1500, replica_steps=400, inner_steps=20, judged=400, seeds=(0, 1, 2)),
}
QUICK = {
    "digits": Effort(steps=100, replica_steps=100, inner_steps=20, judged=3_600, seeds=(0,)),
    "text": Effort(steps=60, replica_steps=60, inner_steps=20, judged=64, seeds=(0,)),
}
QUICK_SETTINGS, QUICK_DILOCO = ("W8A8", "W4A4"), ("W8A8",)


class Measurement:
    """All rows of one work."""

    def __init__(self, name: str, effort: Effort, plan: Mapping[str, Sequence[str]]) -> None:
        self.name, self._effort, self._plan = name, effort, plan
        self.rows: dict[tuple[str, str], Row] = {}

    async def run(self, tell: Callable[[str], None]) -> None:
        """Measure seed by seed, what is only for comparison last; `tell` after each score."""
        plan, seeds = self._plan, self._effort.seeds
        trained = {}
        for seed in seeds:
            trained[seed] = await self._score(seed, ONE, FLOAT, tell)
            for setting in SETTINGS:
                for way in (AFTER, ONE, START):
                    if setting in plan.get(way, ()):
                        await self._score(seed, way, setting, tell, trained[seed])
            for setting in (FLOAT, *plan[DILOCO]) if plan.get(DILOCO) else ():
                await self._score(seed, DILOCO, setting, tell)
        for setting in plan.get(PROCESSES, ()):
            await self._score(seeds[0], PROCESSES, setting, tell)
        for seed in seeds:
            for setting in plan.get(BREVITAS, ()):
                await self._score(seed, BREVITAS, setting, tell, trained[seed])

    async def _score(
        self,
        seed: int,
        way: str,
        setting: str,
        tell: Callable[[str], None],
        trained: nn.Module | None = None,
    ) -> nn.Module:
        effort = self._effort
        if way in (DILOCO, PROCESSES):
            effort = replace(effort, steps=effort.replica_steps)
        work = WORKS[self.name](effort, seed)
        warmup = {"float_share": 0.0} if way == START else {}
        quant = None if setting == FLOAT else section(setting, **warmup)
        began = time.monotonic()
        module = await made(work, way, quant, trained)
        seconds = time.monotonic() - began
        row = self.rows.setdefault((way, setting), Row(self.name, way, setting))
        row.seconds += seconds
        row.scores.append(work.judge(module))
        tell(f"{self.name}, seed {seed}, {way}, {setting}: {row.scores[-1].mean:.4f} ({seconds:.0f} s)")
        return module

    def records(self) -> list[dict[str, Any]]:
        """What has been measured so far."""
        return [record(row, self.rows) for row in self.rows.values() if row.scores]


async def made(work: Work, way: str, quant: Mapping[str, Any] | None, trained: nn.Module | None) -> nn.Module:
    """A model of `work`; `trained` is the float one, for ways that begin with it."""
    if way == DILOCO:
        return await diloco(work, quant)
    if way == PROCESSES:
        return await asyncio.to_thread(processes, work, quant, REPLICAS)
    if way in (ONE, START):
        return one_process(work, quant)
    assert quant is not None
    assert trained is not None
    calibrated = after_training(work, trained, quant)
    return trained_with_brevitas(work, calibrated, quant) if way == BREVITAS else calibrated


def section(setting: str, **warmup: Any) -> dict[str, Any]:
    """The `quant` section of a setting."""
    return {**SETTINGS[setting], "warmup": warmup} if warmup else dict(SETTINGS[setting])


def table_of(name: str, records: Sequence[dict[str, Any]]) -> Table:
    """A line per row."""
    work = WORKS[name]
    unit = "points" if name == "digits" else "%"
    table = Table(title=work.name, title_justify="left", box=None)
    columns = ("way", "setting", work.metric, f"worse ({unit})", "by seed", "over seeds", "goal", "")
    for column in (*columns, "never worse than after", "recovered", "worse than Brevitas", "s"):
        table.add_column(column)
    for each in records:
        lost = f"{each['worse']:+.2f} ± {each['interval']:.2f}" if "worse" in each else ""
        goal = f"<= {each['goal']}" if "goal" in each else ""
        verdict = "" if "good" not in each else "ok" if each["good"] else "MISSED"
        theirs = ""
        if "than_brevitas" in each:
            theirs = f"{each['than_brevitas']:+.2f} ± {each['than_brevitas_interval']:.2f}"
        value, seconds = f"{each['value']:.4f}", f"{each['s']:.0f}"
        seeds = " ".join(f"{seed:+.2f}" for seed in each.get("worse_by_seed", ()))
        half = f"± {each['interval_over_seeds']:.2f}" if "interval_over_seeds" in each else ""
        never = {True: "yes", False: "NO"}.get(each.get("never_worse_than_after", ""), "")
        back = f"{each['recovered']:.0%}" if "recovered" in each else ""
        ours = (each["way"], each["setting"], value, lost, seeds, half, goal, verdict)
        table.add_row(*ours, never, back, theirs, seconds)
    return table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, required=True, metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="a try-out in minutes")
    parser.add_argument("--only", default="digits,text", help="works (default: %(default)s)")
    parser.add_argument("--settings", help=f"of {', '.join(SETTINGS)} (default: all; --quick: W8A8, W4A4)")
    parser.add_argument(
        "--ways", help=f"of {', '.join(WAYS)} (default: all; float of one process is always run)"
    )
    parser.add_argument(
        "--validation", action="store_true", help="judge on a part of the training data, for choices"
    )
    parser.add_argument("--seeds", type=int, help="how many (default: 3; --quick: 1)")
    parser.add_argument("--steps", type=int, help="optimizer steps, of one process and of every replica")
    return parser.parse_args(argv)


def effort_of(args: argparse.Namespace, name: str) -> Effort:
    """What the flags ask for."""
    base = (QUICK if args.quick else EFFORTS)[name]
    seeds = base.seeds if args.seeds is None else tuple(range(args.seeds))
    steps, replica_steps = args.steps or base.steps, args.steps or base.replica_steps
    return replace(base, steps=steps, replica_steps=replica_steps, seeds=seeds, validation=args.validation)


def plan_of(args: argparse.Namespace, name: str) -> dict[str, tuple[str, ...]]:
    """The settings of each way."""
    chosen = tuple(args.settings.split(",")) if args.settings else tuple(SETTINGS)
    goals = tuple(each for each in chosen if each in GOALS[name, DILOCO])
    plan = {ONE: chosen, AFTER: chosen, START: goals, BREVITAS: goals, DILOCO: goals, PROCESSES: ("W8A8",)}
    if args.quick:
        quick = tuple(args.settings.split(",")) if args.settings else QUICK_SETTINGS
        plan = {ONE: quick, AFTER: quick, DILOCO: QUICK_DILOCO}
    if name != "digits":
        plan.pop(PROCESSES, None)
    if find_spec("brevitas") is None:
        plan.pop(BREVITAS, None)
    ways = args.ways.split(",") if args.ways else WAYS
    return {way: settings for way, settings in plan.items() if way in ways}


async def measure(args: argparse.Namespace) -> int:
    """All works that were asked for; 1 when a goal was missed."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    about = facts()
    console.print(describe(about))
    measurements: list[Measurement] = []

    def save(told: str) -> None:
        console.print(told, highlight=False)
        records = [record for each in measurements for record in each.records()]
        write_json(args.json, about, {"quick": args.quick, "rows": records})

    for name in args.only.split(","):
        measurement = Measurement(name, effort_of(args, name), plan_of(args, name))
        measurements.append(measurement)
        await measurement.run(save)
        console.print(table_of(name, measurement.records()))
    good = all(each.get("good", True) for measurement in measurements for each in measurement.records())
    return 0 if good else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all goals were reached; 1: one was missed."""
    args = parse(argv)
    asked = ((args.only, WORKS), (args.settings or "W8A8", SETTINGS), (args.ways or ONE, WAYS))
    for given, known in asked:
        if not set(given.split(",")) <= set(known):
            sys.exit(f"{given}: known are {', '.join(known)}")

    return asyncio.run(measure(args))


if __name__ == "__main__":
    sys.exit(unwinding("benchmarks/quantization.py", main))
