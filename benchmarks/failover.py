"""What deaths cost: the figures of a swarm with two stages and two replicas whose servers are killed.

    python benchmarks/failover.py --json PATH [--only 1,3] [--quick] [--seed N] [counts]

Trains ResNet-18 on digits (configs/resnet18.yaml, quarter width; figure 2 wider) and measures

1. a kill to the next applied step on the affected pipeline, minus the median undisturbed step; the same with
   no replica of a stage left and a replacement started at once;
2. a join to the first step through the joiner, and how much of it is the transfer of the state;
3. churn: a server killed every ten seconds and replaced at once, beside undisturbed runs;
4. digests after every round with a kill in every third, and how many rounds two members commit;
5. kills while checkpoints are written, and whether every restart loads;
6. processes that are left two seconds after each role was killed.

Replacements are forked by a warm process, as a running start_servers.py starts what died; figure 2 has the
whole command as well. Every figure writes what it has as it goes, so a run that is cut short keeps it.
`--quick` is a try-out of all of them with small counts: no figures to quote.
"""

from __future__ import annotations

from distqat.terminal import begin, unwinding

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("benchmarks/failover.py", clean=False)

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.failover_scene import CONFIG, Counts, Figure
from benchmarks.report import describe, facts, output, write_json
from distqat.config import load_config
from distqat.errors import DistqatError
from distqat.launch.process_survey import private_runtime
from distqat.launch.warm_processes import WarmForkServers
from distqat.process import run_role, set_title

Measure = Callable[[Figure, WarmForkServers, Counts], Awaitable[None]]
QUICK = Counts(
    kills=3,
    lost_stages=1,
    joins=1,
    cold_joins=1,
    churn_s=30.0,
    undisturbed_s=10.0,
    undisturbed_runs=2,
    rounds=9,
    checkpoint_kills=10,
    role_kills=1,
)


def figures() -> dict[int, tuple[str, Measure]]:
    """By number: its title, and what measures it."""
    from benchmarks.failover_checkpoints import checkpoints
    from benchmarks.failover_churn import churn
    from benchmarks.failover_orphans import orphans
    from benchmarks.failover_recovery import joining, recovery
    from benchmarks.failover_rounds import rounds

    return {
        1: ("recovery", recovery),
        2: ("joining", joining),
        3: ("churn", churn),
        4: ("rounds", rounds),
        5: ("checkpoints", checkpoints),
        6: ("orphans", orphans),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, required=True, metavar="PATH")
    parser.add_argument("--only", default="1,2,3,4,5,6", metavar="N,M", help="figures (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small counts, to see that all of it works")
    parser.add_argument("--seed", type=int, default=0, help="of the model and of who is killed when")
    parser.add_argument("--kills", type=int, help="figure 1 (default: 50)")
    parser.add_argument("--lost-stages", type=int, help="figure 1, no replica left (default: 5)")
    parser.add_argument("--joins", type=int, help="figure 2 (default: 5, and 3 of the whole command)")
    parser.add_argument("--width", type=float, help="figure 2, of the stages (default: 0.52, 45 MB)")
    parser.add_argument("--churn-minutes", type=float, help="figure 3 (default: 10)")
    parser.add_argument("--undisturbed-minutes", type=float, help="figure 3, each of three runs (default: 2)")
    parser.add_argument("--rounds", type=int, help="figure 4 (default: 300)")
    parser.add_argument("--inner-steps", type=int, help="figure 4, inner steps per round (default: 12)")
    parser.add_argument("--checkpoint-kills", type=int, help="figure 5 (default: 200)")
    parser.add_argument("--role-kills", type=int, help="figure 6, of each role (default: 20)")
    return parser.parse_args(argv)


def counts_of(args: argparse.Namespace) -> Counts:
    """The counts of these flags."""
    given = {
        "seed": args.seed,
        "kills": args.kills,
        "lost_stages": args.lost_stages,
        "joins": args.joins,
        "width": args.width,
        "churn_s": None if args.churn_minutes is None else 60 * args.churn_minutes,
        "undisturbed_s": None if args.undisturbed_minutes is None else 60 * args.undisturbed_minutes,
        "rounds": args.rounds,
        "inner_steps": args.inner_steps,
        "checkpoint_kills": args.checkpoint_kills,
        "role_kills": args.role_kills,
    }
    base = QUICK if args.quick else Counts()
    return Counts(**{**vars(base), **{name: value for name, value in given.items() if value is not None}})


def table_of(figure: Figure) -> Table:
    """Goal and measured, a line each."""
    note = "" if figure.complete else " (cut short)"
    table = Table(title=f"figure {figure.number}: {figure.title}{note}", title_justify="left", box=None)
    for name in ("what", "goal", "measured", ""):
        table.add_column(name)
    for row in figure.rows:
        verdict = "" if row.good is None else "ok" if row.good else "MISSED"
        table.add_row(row.what, row.goal, row.measured, verdict)
    return table


async def measure(stop: asyncio.Event, args: argparse.Namespace, fork_servers: WarmForkServers) -> int:
    """All figures that were asked for, one after the other; 1 when one failed or missed its goal."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    about, known = facts(), figures()
    console.print(describe(about))
    counts, done = counts_of(args), list[Figure]()

    def save() -> None:
        body = {"counts": vars(counts), "config": CONFIG, "figures": [each.record() for each in done]}
        write_json(args.json, about, body)

    for number in (int(word) for word in args.only.split(",")):
        began, figure = time.monotonic(), Figure(number, known[number][0])
        figure.changed, figure.say = save, lambda line: console.print(line, highlight=False)
        done.append(figure)
        work = asyncio.ensure_future(known[number][1](figure, fork_servers, counts))
        asked = asyncio.ensure_future(stop.wait())
        await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
        asked.cancel()
        try:
            await work
            figure.complete = True
        except asyncio.CancelledError:
            pass
        except (DistqatError, AssertionError) as error:
            figure.raw["failed"] = str(error)
            console.print(f"figure {number} FAILED: {error}", markup=False)
        figure.raw["took_s"] = time.monotonic() - began
        save()
        console.print(table_of(figure))
        if stop.is_set():
            break
    good = all(figure.complete and all(row.good is not False for row in figure.rows) for figure in done)
    return 0 if good else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all goals were reached; 1: one was missed, or a figure failed."""
    args = parse(argv)
    if not set(args.only.split(",")) <= set("123456"):
        sys.exit(f"--only {args.only}: figures are 1 to 6")
    with private_runtime():
        set_title("failover")
        fork_servers = WarmForkServers.start()
        fork_servers.start_servers(load_config(CONFIG))

        async def role(stop: asyncio.Event) -> int:
            try:
                return await measure(stop, args, fork_servers)
            finally:
                await fork_servers.close()

        return run_role("failover", role, grace_s=60.0)


if __name__ == "__main__":
    sys.exit(unwinding("benchmarks/failover.py", main))
