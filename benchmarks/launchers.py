"""Servers of a host that were started apart against servers that were started together.

    python benchmarks/launchers.py --json PATH [--quick] [--repeats N] [--seconds N] [--cores N]

ResNet-18 on digits (`configs/resnet18.yaml`) in two stages with two replicas of each, so two pipelines, on
two cores: once over four launchers with one server each, `start_servers.py --num-servers 1` four times, once
over one launcher with four. The two take turns, `repeats` times each, in an order that changes; everything
is started anew for each. From `WARM_UP_S` after the first step of both trainers on, the samples of all
committed steps are counted for `seconds`.

The figure is the ratio of the median samples/s: four launchers over one. The goal is 0.95. The script ends
with 1 below it (not with `--quick`, which looks whether all works).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import private_runtime
from benchmarks.report import ROOT, describe, facts, write_json
from distqat.metrics.record_files import read_records

GOAL = 0.95
PIPELINES = 2
KINDS = {"four launchers of one server": (1, 1, 1, 1), "one launcher of four servers": (4,)}
APART, TOGETHER = KINDS
WARM_UP_S = 5.0
START_S, END_S, LOOK_S = 180.0, 20.0, 0.2


def measure(counts: Sequence[int], config: str, seconds: float) -> dict[str, Any]:
    """Samples/s of a swarm whose servers come from as many launchers as there are `counts`."""
    with tempfile.TemporaryDirectory(prefix="dqb-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with running(counts, config, folder):
            logs = folder / "logs"
            _until("steps of both trainers", lambda: len(pipelines_of(steps_of(logs))) == PIPELINES)
            begin = time.time() + WARM_UP_S
            _until("the end", lambda: time.time() > begin + seconds, seconds + WARM_UP_S + START_S)
            steps = steps_of(logs)
        return {"samples_per_s": rate(steps, begin, begin + seconds), "threads": threads_of(logs)}


@contextlib.contextmanager
def running(counts: Sequence[int], config: str, folder: Path) -> Iterator[None]:
    """A swarm of real launchers that trains until the end of the block."""
    flags = [
        f"--config-path={config}",
        "--experiment-prefix=launchers",
        "--diloco-outer-steps=1000000",
        f"--log-dir={folder / 'logs'}",
        f"--param-mirror-checkpoint-dir={folder / 'checkpoints'}",
    ]
    launchers: list[psutil.Popen] = []

    def start(script: str, *more: str) -> None:
        with (folder / f"launcher_{len(launchers)}.txt").open("wb") as output:
            command = [sys.executable, script, *flags, *more]
            launchers.append(psutil.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT))

    try:
        start("start_trainer_client.py", "--monitor-port=0", "--client-port=0")
        peers = folder / "logs" / "initial_peers.txt"
        _until("the monitor's addresses", peers.exists)
        joined = f"--initial-peers={peers.read_text(encoding='utf-8').strip()}"
        for count in counts:
            start("start_servers.py", f"--num-servers={count}", "--server-base-port=0", joined)
        yield
    finally:
        family = [each for launcher in launchers for each in _family(launcher)]
        for launcher in reversed(launchers):
            with contextlib.suppress(psutil.NoSuchProcess):
                launcher.terminate()
        _, alive = psutil.wait_procs(family, timeout=END_S)
        for process in alive:
            process.kill()


def steps_of(logs: Path) -> list[dict[str, Any]]:
    """What trainers have written of committed steps so far."""
    return [record for record in read_records(logs, "trainer") if record.get("event") == "step"]


def pipelines_of(steps: Sequence[Mapping[str, Any]]) -> set[int]:
    return {int(step["pipeline"]) for step in steps}


def rate(steps: Sequence[Mapping[str, Any]], begin: float, end: float) -> float:
    """Samples/s of the steps that were committed between two moments."""
    return sum(step["samples"] for step in steps if begin < step["time"] <= end) / (end - begin)


def ratio(blocks: Mapping[str, Sequence[Mapping[str, Any]]]) -> float:
    """Median samples/s apart over median samples/s together."""
    apart, together = (median(block["samples_per_s"] for block in blocks[kind]) for kind in (APART, TOGETHER))
    return apart / together


def threads_of(logs: Path) -> list[int]:
    """With how many threads each server said that it computes, last."""
    found = []
    for log in sorted(logs.glob("server_*.log")):
        said = re.findall(r"CPU threads: (\d+)", log.read_text(encoding="utf-8", errors="replace"))
        found += [int(said[-1])] if said else []
    return found


def table_of(blocks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    title = f"samples/s of {PIPELINES} pipelines (four over one: {ratio(blocks):.3f}, goal {GOAL})"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("servers")
    for name in ("median", "least", "most"):
        table.add_column(name, justify="right")
    for kind, of_kind in blocks.items():
        rates = [block["samples_per_s"] for block in of_kind]
        table.add_row(kind, *(f"{pick(rates):.1f}" for pick in (median, min, max)))
    return table


def _until(what: str, condition: Any, bound_s: float = START_S) -> None:
    deadline = time.monotonic() + bound_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {bound_s:.0f} s: {what}")
        time.sleep(LOOK_S)


def _family(launcher: psutil.Popen) -> list[psutil.Process]:
    try:
        return [psutil.Process(launcher.pid), *launcher.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="a perceptron, once each: is it alive?")
    parser.add_argument("--repeats", type=int, help="of each kind (default 5, quick 1)")
    parser.add_argument("--seconds", type=float, help="that are counted (default 30, quick 3)")
    parser.add_argument("--cores", type=int, default=2, help="cores to run on (default: %(default)s)")
    args = parser.parse_args(argv)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    config = "configs/mlp.yaml" if args.quick else "configs/resnet18.yaml"
    repeats, seconds = args.repeats or (1 if args.quick else 5), args.seconds or (3.0 if args.quick else 30.0)
    console, about = Console(), facts()
    console.print(describe(about))
    blocks: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for repeat in range(repeats):
        for kind in list(KINDS)[:: 1 if repeat % 2 == 0 else -1]:
            with private_runtime():
                blocks[kind].append(measure(KINDS[kind], config, seconds))
            console.print(f"{kind}: {blocks[kind][-1]['samples_per_s']:.1f} samples/s")
        done = {"goal": GOAL, "ratio": ratio(blocks), "blocks": blocks}
        write_json(args.json, about, [done])
    console.print(table_of(blocks))
    return 0 if args.quick or ratio(blocks) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
