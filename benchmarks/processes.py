"""Processes and resident memory of a swarm on this machine, and the time to its first training step.

    python benchmarks/processes.py --json PATH [--configs NAME ...] [--seconds N]

Starts `run_local.py`, waits for the first step, then looks at all its processes every two seconds for
`--seconds` (or until training ends) and reports for each role the median over processes of the largest
figure seen. USS is what ending the process would free; PSS shares out what forked processes have in common;
RSS counts common pages in each. A role's p2pd is counted with it, in columns of its own.

The time to the first step runs from the start of the command to the end of the first step that a trainer
reported to the client (`metrics/client.jsonl`). Afterwards the swarm gets SIGINT; what is left of it 15 s
later is counted.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import ROOT, describe, facts, output, write_json
from benchmarks.roles import role_of

FIRST_STEP_S = 180.0
LOOK_EVERY_S = 2.0
END_S = 15.0
MEASURES = ("rss", "pss", "uss")


def measure(config: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Start a swarm, look at it, end it."""
    began = time.time()
    command = [sys.executable, "run_local.py", "--config-path", config, "--no-progress"]
    command += [
        "--log-dir",
        str(folder / "logs"),
        "--param-mirror-checkpoint-dir",
        str(folder / "checkpoints"),
    ]
    launcher = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    seen: dict[int, psutil.Process] = {}
    try:
        first = _first_step(folder / "logs" / "metrics" / "client.jsonl", launcher)
        largest = _watch(launcher, seconds, seen)
    finally:
        left = _end(launcher, seen)
    return {
        "config": config,
        "first_step_s": first - began,
        "roles": by_role(largest),
        "left_behind": left,
        "processes": list(largest.values()),
    }


def _first_step(path: Path, launcher: psutil.Popen) -> float:
    """When the first step ended, seconds since 1970."""
    deadline = time.monotonic() + FIRST_STEP_S
    while time.monotonic() < deadline and launcher.poll() is None:
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            record = json.loads(line)
            if record.get("event") == "step":
                return float(record["time"])
        time.sleep(0.1)
    raise RuntimeError(f"no step in {FIRST_STEP_S:.0f} s; exit code of the launcher: {launcher.poll()}")


def _watch(
    launcher: psutil.Popen, seconds: float, seen: dict[int, psutil.Process]
) -> dict[int, dict[str, Any]]:
    """The largest figures of every process of the swarm while it trains, by PID."""
    largest: dict[int, dict[str, Any]] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and launcher.poll() is None:
        for process in (launcher, *launcher.children(recursive=True)):
            seen[process.pid] = process
            found = _look(process)
            if found is not None:
                before = largest.get(process.pid, found)
                largest[process.pid] = {**found, **{key: max(found[key], before[key]) for key in MEASURES}}
        time.sleep(LOOK_EVERY_S)
    return largest


def _look(process: psutil.Process) -> dict[str, Any] | None:
    try:
        memory = process.memory_full_info()
        daemon = process.name().startswith("p2pd")
        owner = process.parent() if daemon else process
        role = role_of(owner.cmdline() if owner is not None else [])
    except psutil.Error:
        return None  # it has ended
    return {
        "pid": process.pid,
        "role": role,
        "daemon": daemon,
        **{key: int(getattr(memory, key)) for key in MEASURES},
    }


def by_role(processes: dict[int, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Roles, how many there are, processes of each, and its memory with that of its daemon."""
    roles: dict[str, dict[str, float]] = {}
    for role in sorted({found["role"] for found in processes.values()}):
        own = [found for found in processes.values() if found["role"] == role and not found["daemon"]]
        daemons = [found for found in processes.values() if found["role"] == role and found["daemon"]]
        figures: dict[str, float] = {"count": len(own), "processes": len(own) + len(daemons)}
        for prefix, group in (("", own), ("p2pd_", daemons)):
            for key in MEASURES if group else ():
                figures[prefix + key] = median(found[key] for found in group)
        figures["processes_each"] = figures["processes"] / max(1, len(own))
        roles[role] = figures
    return roles


def _end(launcher: psutil.Popen, seen: dict[int, psutil.Process]) -> int:
    """Ask the launcher to end; kill and count what is left after some seconds."""
    if launcher.poll() is None:
        launcher.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs([launcher, *seen.values()], timeout=END_S)
    for process in alive:
        process.kill()
    return len(alive)


def table_of(result: dict[str, Any]) -> Table:
    title = (
        f"{result['config']}: first step after {result['first_step_s']:.1f} s; {result['left_behind']} left"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    columns = ("role", "count", "processes each", "USS", "PSS", "RSS", "p2pd USS", "p2pd PSS", "p2pd RSS")
    for name in columns:
        table.add_column(name, justify="left" if name == "role" else "right")
    for role, got in result["roles"].items():
        sizes = [
            f"{got[prefix + key] / 1e6:.0f} MB" if prefix + key in got else ""
            for prefix in ("", "p2pd_")
            for key in ("uss", "pss", "rss")
        ]
        table.add_row(role, f"{got['count']:.0f}", f"{got['processes_each']:.1f}", *sizes)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, required=True, metavar="PATH")
    parser.add_argument("--configs", nargs="+", default=["configs/mlp.yaml", "configs/resnet18.yaml"])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to look, from the first step")
    args = parser.parse_args(argv)
    console, about = Console(), facts()
    console.print(describe(about))
    results = []
    for config in args.configs:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(config, args.seconds, Path(folder)))
        write_json(args.json, about, results)
        console.print(table_of(results[-1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
