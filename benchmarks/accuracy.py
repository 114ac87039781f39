"""Held-out accuracy of the swarm against the documented baseline at equal samples, and how long both take.

    python benchmarks/accuracy.py --json PATH [--seeds 0 1 2] [--config-path configs/resnet18.yaml]

For each seed in turn runs `run_local.py --config-path ... --seed S`, then the same with `--baseline` and with
as many samples as the swarm has trained on (members of a round that wait for others go on with inner steps,
so that number differs a little from run to run), and reads `summary.json`. The wall time is that of the whole
command. `--flags KEY=VALUE ...` adds flags to both (`diloco-outer-steps=2`), for a first try.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import ROOT, describe, facts, write_json
from distqat.distributed.trainer import SAMPLES

GAP_POINTS = 2.0
WANTED = 0.95
FIELDS = ("accuracy", "samples", "seconds", "samples_per_s", "loss_first", "loss_last")
MODES = ("swarm", "baseline")


def run(config: str, seed: int, samples: int | None, flags: Sequence[str], folder: Path) -> dict[str, Any]:
    """One command and what its summary says: the swarm, or the baseline on `samples`. RuntimeError."""
    mode = "swarm" if samples is None else "baseline"
    environment = {**os.environ, **({} if samples is None else {SAMPLES: str(samples)})}
    command = [sys.executable, "run_local.py", "--config-path", config, "--seed", str(seed), "--no-progress"]
    command += [
        "--log-dir",
        str(folder / "logs"),
        "--param-mirror-checkpoint-dir",
        str(folder / "checkpoints"),
    ]
    command += [*flags, *(["--baseline"] if mode == "baseline" else [])]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    wall = time.monotonic() - began
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    summary = json.loads((folder / "logs" / "summary.json").read_text(encoding="utf-8"))
    return {"mode": mode, "seed": seed, "wall_s": wall, **{name: summary.get(name) for name in FIELDS}}


def compare(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians by mode, and the gap in points: baseline minus swarm, by seed and of the medians."""
    by_mode = {mode: [each for each in runs if each["mode"] == mode] for mode in MODES}
    medians = {
        mode: {name: median(float(each[name]) for each in some) for name in ("accuracy", "wall_s", "samples")}
        for mode, some in by_mode.items()
        if some
    }
    pairs = {
        swarm["seed"]: 100 * (baseline["accuracy"] - swarm["accuracy"])
        for swarm in by_mode["swarm"]
        for baseline in by_mode["baseline"]
        if baseline["seed"] == swarm["seed"]
    }
    gap = (
        100 * (medians["baseline"]["accuracy"] - medians["swarm"]["accuracy"]) if len(medians) == 2 else None
    )
    return {"medians": medians, "gap_points_by_seed": pairs, "gap_points": gap}


def table_of(runs: Sequence[dict[str, Any]], compared: dict[str, Any]) -> Table:
    title = "held-out accuracy"
    if compared["gap_points"] is not None:
        title += f"; gap of the medians, baseline - swarm: {compared['gap_points']:+.2f} points"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    columns = ("mode", "seed", "accuracy", "samples", "samples/s", "training s", "wall s", "loss")
    for name in columns:
        table.add_column(name, justify="left" if name == "mode" else "right")
    for each in runs:
        table.add_row(
            each["mode"],
            str(each["seed"]),
            f"{100 * each['accuracy']:.2f} %",
            f"{each['samples']:,}",
            f"{each['samples_per_s']:.1f}",
            f"{each['seconds']:.1f}",
            f"{each['wall_s']:.1f}",
            f"{each['loss_first']:.3f} -> {each['loss_last']:.3f}",
        )
    for mode, got in compared["medians"].items():
        cells = (f"{100 * got['accuracy']:.2f} %", f"{got['samples']:,.0f}", "", "", f"{got['wall_s']:.1f}")
        table.add_row(mode, "median", *cells, "")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 if the swarm is below 95 % or more than 2 points behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="PATH")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--config-path", default="configs/resnet18.yaml")
    parser.add_argument("--flags", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    console, about = Console(), facts()
    console.print(describe(about))
    flags = [f"--{flag}" for flag in args.flags]
    runs: list[dict[str, Any]] = []
    for seed in args.seeds:
        for mode in MODES:
            samples = runs[-1]["samples"] if mode == "baseline" else None
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                runs.append(run(args.config_path, seed, samples, flags, Path(folder)))
            console.print(f"seed {seed}, {mode}: {100 * runs[-1]['accuracy']:.2f} %")
            write_json(args.json, about, {"config": args.config_path, "runs": runs, **compare(runs)})
    compared = compare(runs)
    console.print(table_of(runs, compared))
    good = compared["medians"]["swarm"]["accuracy"] >= WANTED and compared["gap_points"] <= GAP_POINTS
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
