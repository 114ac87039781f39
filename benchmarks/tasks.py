"""Every task in a swarm of two stages and two replicas, against the baseline at equal samples.

    python benchmarks/tasks.py --json PATH [--tasks cv llm ...] [--seeds 0 1 2] [--flags KEY=VALUE ...]

For each task and seed runs `run_local.py --config-path ... --seed S`, then the same with `--baseline` and
with as many samples as the swarm has trained on (members of a round that wait for others go on with inner
steps, so that number differs a little from run to run), and reads `summary.json`. CPU seconds are those of
the command's processes that were waited for. `--flags` are added to both (`diloco-outer-steps=2`, for a
first try). Metrics "seen elsewhere" were measured on this kind of machine with other code; their CPU
seconds are in brackets.
"""

from __future__ import annotations

from distqat.terminal import begin, unwinding

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("benchmarks/tasks.py", clean=False)

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import ROOT, describe, facts, output, write_json
from distqat.process import RoleParameters


@dataclass(frozen=True)
class TaskRun:
    """What is run for a task, and what its metric was elsewhere."""

    config: str
    elsewhere: str = ""


TASKS = {
    "cv": TaskRun("configs/resnet18.yaml", "0.983 (45 s)"),
    "llm": TaskRun("configs/distilgpt2.yaml", "12.6, 2.53 nats per byte (45 s)"),
    "speech": TaskRun("configs/wav2vec2.yaml", "0.57 (80 s)"),
    "image_gen": TaskRun("configs/dcgan.yaml"),
    "node_pred": TaskRun("configs/gcn.yaml", "0.919 (4 s)"),
    "rl": TaskRun("configs/ppo.yaml", "477 (7 s)"),
}
FIELDS = (
    "metric",
    "value",
    "samples",
    "seconds",
    "samples_per_s",
    "loss_first",
    "loss_last",
    "heldout_loss",
)
MODES = ("swarm", "baseline")


def run(config: str, seed: int, samples: int | None, flags: Sequence[str], folder: Path) -> dict[str, Any]:
    """One command and what its summary says: the swarm, or the baseline on `samples`. RuntimeError."""
    mode = "swarm" if samples is None else "baseline"
    environment = {**os.environ, **RoleParameters(samples=samples).environment()}
    places = ["--log-dir", str(folder / "logs"), "--param-mirror-checkpoint-dir", str(folder / "checkpoints")]
    command = [sys.executable, "run_local.py", "--config-path", config, "--seed", str(seed), "--no-progress"]
    command += [*places, *flags, *(["--baseline"] if mode == "baseline" else [])]
    began, cpu = time.monotonic(), _cpu_seconds()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    spent = {"wall_s": time.monotonic() - began, "cpu_s": _cpu_seconds() - cpu}
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    summary = json.loads((folder / "logs" / "summary.json").read_text(encoding="utf-8"))
    return {"mode": mode, "seed": seed, **spent, **{name: summary.get(name) for name in FIELDS}}


def table_of(runs: Sequence[dict[str, Any]]) -> Table:
    """One row per task: the metric of both at each seed, and the medians."""
    table = Table(title="held-out metric at equal samples", title_justify="left", box=None, pad_edge=False)
    columns = ("task", "metric", "swarm", "baseline", "median swarm", "median baseline", "samples")
    for name in (*columns, "CPU s swarm", "CPU s baseline", "seen elsewhere"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for task in dict.fromkeys(each["task"] for each in runs):
        by_mode = [[each for each in runs if (each["task"], each["mode"]) == (task, mode)] for mode in MODES]
        table.add_row(
            task,
            by_mode[0][0]["metric"],
            *(" ".join(_figure(each["value"]) for each in some) for some in by_mode),
            *(_figure(_median(some, "value")) for some in by_mode),
            f"{_median(by_mode[0], 'samples') or 0:,.0f}",
            *(f"{_median(some, 'cpu_s') or 0:.0f}" for some in by_mode),
            TASKS[task].elsewhere,
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 if a run failed; the others are still made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, required=True, metavar="PATH")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--flags", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    console, about = Console(), facts()
    console.print(describe(about))
    runs: list[dict[str, Any]] = []
    failed: list[str] = []
    for task in args.tasks:
        for seed in args.seeds:
            failed += _pair(task, seed, [f"--{flag}" for flag in args.flags], runs, console)
            write_json(args.json, about, {"runs": runs, "failed": failed})
    console.print(table_of(runs))
    for line in failed:
        console.print(line, style="red", markup=False)
    return 1 if failed else 0


def _pair(
    task: str, seed: int, flags: Sequence[str], runs: list[dict[str, Any]], console: Console
) -> list[str]:
    """The swarm and then the baseline; what went wrong."""
    samples = None
    for mode in MODES:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                done = run(TASKS[task].config, seed, samples, flags, Path(folder))
            except RuntimeError as error:
                return [f"{task}, seed {seed}, {mode}: {error}"]
        runs.append({"task": task, **done})
        samples = done["samples"]
        console.print(
            f"{task}, seed {seed}, {mode}: {done['metric']} {_figure(done['value'])}, "
            f"{done['wall_s']:.0f} s, {done['cpu_s']:.0f} CPU s"
        )
    return []


def _cpu_seconds() -> float:
    """Of all children that have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _median(runs: Sequence[dict[str, Any]], name: str) -> float | None:
    return median(float(each[name]) for each in runs) if runs else None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(unwinding("benchmarks/tasks.py", main))
