"""`python -m tests.simulation --seeds 100000`: over all cores; or one seed with its trace."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from tests.simulation.stage import Stage
from tests.simulation.swarm import Swarm

KINDS: dict[str, type[Swarm] | type[Stage]] = {"steps": Swarm, "rounds": Stage}
Outcome = tuple[str, int, Counter[str], str]


def one(task: tuple[str, int]) -> Outcome:
    """Run one seed: what happened, and what was wrong."""
    logging.disable(logging.WARNING)
    kind, seed = task
    try:
        return kind, seed, KINDS[kind](seed).run(), ""
    except (AssertionError, RuntimeError) as error:  # Violation is one
        return kind, seed, Counter(), str(error) or type(error).__name__


def replay(kind: str, seed: int) -> int:
    """One seed with every message."""
    logging.disable(logging.WARNING)
    try:
        print(dict(KINDS[kind](seed, trace=print).run()))
    except AssertionError as error:
        print(error)
        return 1
    return 0


def main() -> int:
    """Exit code 0: all seeds kept the invariants; 1: some did not, and are printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=1000, help="half of them steps, half rounds")
    parser.add_argument("--first", type=int, default=0, help="the first seed of each kind")
    parser.add_argument("--kind", choices=sorted(KINDS), help="only these")
    parser.add_argument("--seed", type=int, help="replay one seed of --kind")
    parser.add_argument("--trace", action="store_true", help="with --seed, which always shows it")
    args = parser.parse_args()
    if args.seed is not None:
        return replay(args.kind or "steps", args.seed)
    kinds = [args.kind] if args.kind else sorted(KINDS)
    each = -(-args.seeds // len(kinds))
    tasks = [(kind, seed) for seed in range(args.first, args.first + each) for kind in kinds]
    said: Counter[str] = Counter()
    failed, began = [], time.monotonic()
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with multiprocessing.Pool(os.cpu_count()) as pool, Progress(*columns) as progress:
        bar = progress.add_task("seeds", total=len(tasks))
        for kind, seed, summary, wrong in pool.imap_unordered(one, tasks, chunksize=8):
            progress.advance(bar)
            said += summary
            if wrong:
                failed.append((kind, seed))
                progress.console.print(f"[red]{wrong}")
                progress.console.print(f"  python -m tests.simulation --kind {kind} --seed {seed} --trace")
    took = time.monotonic() - began
    print(f"{len(tasks)} seeds in {took:.0f} s, {len(tasks) / took:.0f} per second: {dict(said)}")
    if failed:
        print(f"{len(failed)} failed: {sorted(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
