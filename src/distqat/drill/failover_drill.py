"""test_failover.py: a failover drill. Starts a swarm, kills servers of it, and judges what came of that."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqat.atomic_files import write_whole
from distqat.environment import prepare
from distqat.errors import ConfigError, DistqatError
from distqat.launch.launcher_roles import LAUNCHER_GRACE_S, LauncherSettings, check_data, read_settings
from distqat.launch.output_check import check_output
from distqat.launch.process_survey import private_runtime
from distqat.launch.warm_processes import WarmForkServers
from distqat.process import guarded, run_role, set_title
from distqat.terminal import begin, leave

if TYPE_CHECKING:
    from distqat.drill.acts import Drill
    from distqat.drill.timeline import Timeline
    from distqat.drill.verdict import Row

NAME = "test_failover"
CONFIG = "configs/mlp.yaml"
PREFIX = "failover-drill"
RECOVERED = "every pipeline recovered"
NOTHING_LEFT = "I5 nothing is left"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: every invariant held (also when interrupted); 1: one broke, or it failed; 2: refused."""
    words = list(sys.argv[1:] if argv is None else argv)
    prepare()
    set_title("failover", words)
    with private_runtime():
        fork_servers = WarmForkServers.start()
        return guarded(NAME, lambda: _main(words, fork_servers))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Flags of the drill and of every field. Ends the process on bad usage, as parsers do."""
    from distqat.config import ConfigParser, add_config_arguments

    parser = ConfigParser(
        "test_failover.py",
        description="Start a swarm, kill servers, add one, kill two of different pipelines, and judge it.",
    )
    parser.add_argument("--quick", action="store_true", help="the same with short pauses: under a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write timeline and verdict there")
    add_config_arguments(parser)
    parser.set_defaults(config_path=CONFIG)
    args: argparse.Namespace = parser.parse_args(list(words))
    args.config_overrides = with_defaults(args.config_path, args.config_overrides)
    return args


def with_defaults(config_path: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a drill sets unless the user did: its own folder, free ports, a run without an end."""
    prefix = str(given.get("experiment_prefix", PREFIX))
    log_dir = str(given.get("log_dir") or f"logs/{prefix}")
    defaults: dict[str, Any] = {
        "experiment_prefix": prefix,
        "log_dir": log_dir,
        "monitor_port": 0,
        "client_port": 0,
        "server_base_port": 0,
        "param_mirror.checkpoint_dir": f"{log_dir}/checkpoints",
        "diloco.outer_steps": 1_000_000,
        "wandb_project": None,
    }
    if config_path == CONFIG:
        defaults |= {"diloco.inner_steps": 20}
    return {**defaults, **given}


def _main(words: Sequence[str], fork_servers: WarmForkServers) -> int:
    args = parse(words)
    settings = read_settings(args)
    check_data(settings.config)
    config = settings.config
    if config.world_size < 2:
        raise ConfigError("world_size: a drill kills replicas, so it needs 2 or more of each stage")
    if len(config.stages) < 2:
        raise ConfigError("model_pipeline.pipeline: a drill breaks pipelines of 2 stages or more")
    if args.json is not None:
        check_output(args.json, "--json")
    shutil.rmtree(settings.log_dir / "checkpoints", ignore_errors=True)  # of the last drill
    fork_servers.start_servers(config)

    async def launcher(stop: asyncio.Event) -> int:
        return await _drill(stop, args, settings, fork_servers)

    return run_role(NAME, launcher, grace_s=2 * LAUNCHER_GRACE_S)


async def _drill(
    stop: asyncio.Event, args: argparse.Namespace, settings: LauncherSettings, fork_servers: WarmForkServers
) -> int:
    from distqat.drill.acts import QUICK, Drill, DrillPace
    from distqat.drill.drill_swarm import DrillSwarm
    from distqat.drill.timeline import open_screen

    screen = open_screen()
    drill = Drill(DrillSwarm(settings, fork_servers), QUICK if args.quick else DrillPace(), screen)
    acts, asked = asyncio.ensure_future(drill.run()), asyncio.ensure_future(stop.wait())
    failing = asyncio.ensure_future(drill.swarm.failure())
    failure: DistqatError | None = None
    try:
        await asyncio.wait({acts, asked, failing}, return_when=asyncio.FIRST_COMPLETED)
        interrupted = asked.done() and not acts.done()
        acts.cancel()
        failure = await _failure_of(failing if failing.done() else acts)
        if interrupted or failure is not None:
            drill.say("interrupted" if interrupted else "it failed")
    finally:
        for task in (asked, failing):
            task.cancel()
        rows = await _end(drill, fork_servers, failure)
        screen.close()
    code = conclude(drill.timeline, rows, args.json, interrupted=interrupted)
    if failure is not None:
        raise failure
    return code


async def _failure_of(work: asyncio.Future[None]) -> DistqatError | None:
    """What the drill failed with; None: it is over, or was cancelled."""
    try:
        await work
    except asyncio.CancelledError:
        pass
    except DistqatError as error:
        return error
    return None


async def _end(drill: Drill, fork_servers: WarmForkServers, failure: DistqatError | None) -> dict[str, Row]:
    """End the swarm; every invariant with whether it held."""
    from distqat.drill.verdict import judge

    swarm = drill.swarm
    try:
        await swarm.stop()
    finally:
        await fork_servers.close()
    left = await swarm.left_behind()
    evidence = swarm.evidence()
    rows = judge(evidence) if evidence.steps else {}  # none: it failed, or was stopped, before
    died = [replica.name for replica in swarm.dead_of_themselves() if replica.role.returncode]
    unexpected = f"{', '.join(died)} ended without being killed" if died else ""
    recovered = "the drill came to no end" if failure is not None else unexpected
    rows[RECOVERED] = (not recovered, recovered or "each kill was followed by an applied step")
    rows[NOTHING_LEFT] = (not left, "; ".join(left) or "no process, no shared memory")
    return rows


def conclude(
    timeline: Timeline, rows: dict[str, Row], path: Path | None, *, interrupted: bool = False
) -> int:
    """Print timeline and verdict, write them to `path`; the exit code."""
    from rich.console import Console

    from distqat.drill.timeline import timeline_table, verdict_table

    passed = all(good for good, _ in rows.values())
    console = Console()
    console.print(timeline_table(timeline))
    console.print(verdict_table(rows))
    note = " (interrupted: what happened until then)" if interrupted else ""
    console.print(f"VERDICT: {'PASS' if passed else 'FAIL'}{note}", highlight=False, markup=False)
    if path is not None:
        invariants = [{"name": n, "held": good, "evidence": why} for n, (good, why) in rows.items()]
        body = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "verdict": "PASS" if passed else "FAIL",
            "interrupted": interrupted,
            "timeline": timeline.records(),
            "invariants": invariants,
        }
        write_whole(path, json.dumps(body, indent=2) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    begin(NAME)
    leave(main())
