"""run_local.py: a whole swarm on this machine, the documented baseline, or both."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distqat.environment import prepare
from distqat.errors import RunFailed
from distqat.launch.launcher_roles import (
    LAUNCHER_GRACE_S,
    LauncherSettings,
    check_data,
    read_settings,
)
from distqat.launch.warm_processes import WarmForkServers
from distqat.process import RoleParameters, guarded, run_role, set_title
from distqat.terminal import begin, leave, log_to

NAME = "run_local"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: the run finished, or was stopped in order; 1: something failed; 2: refused."""
    words = list(sys.argv[1:] if argv is None else argv)
    prepare()
    set_title(NAME, words)
    if any(word.partition("=")[0] == "--ptq" for word in words):
        return _after_training(words)
    began = time.monotonic()
    if not {"-h", "--help"} & set(words):
        print("distqat: starting", flush=True)  # noqa: T201  at once; the rest takes a second of imports
    fork_servers = WarmForkServers.start()
    return guarded(NAME, lambda: _main(words, fork_servers, began))


def _main(words: Sequence[str], fork_servers: WarmForkServers, began: float) -> int:
    args = parse(words)
    settings = read_settings(args)
    check_data(settings.config)
    from distqat.config import check_start_from, check_teacher_path
    from distqat.launch.display import open_display
    from distqat.launch.local_swarm import LocalRun
    from distqat.launch.run_plan import make_plan
    from distqat.launch.summary_table import conclude

    if not args.resume:
        check_start_from(settings.config)
        check_teacher_path(settings.config)
    display = open_display(args.progress)
    samples = (
        RoleParameters.take().samples if args.baseline else None
    )  # a benchmark compares at equal samples
    plan = make_plan("baseline" if args.baseline else "swarm", settings, samples, resume=args.resume)
    log_to(plan.folder.path)
    for line in plan.describe():
        display.say(line)
    if plan.servers:
        fork_servers.start_servers(settings.config)

    async def launcher(stop: asyncio.Event) -> int:
        try:
            summary = await LocalRun(plan, fork_servers, display, began).run(stop)
            runs = [summary] if summary is not None else []
            if summary is not None and args.with_baseline:
                second = make_plan("baseline", beside(settings), summary.samples)
                for line in second.describe():
                    display.say(line)
                compared = await LocalRun(second, fork_servers, display).run(stop)
                runs += [compared] if compared is not None else []
            if runs:
                conclude(runs, settings.log_dir, display)
            failed = [run.failure for run in runs if run.failure]
            if failed:
                raise RunFailed(failed[0])
            return 0
        finally:
            await fork_servers.close()

    return run_role(NAME, launcher, grace_s=LAUNCHER_GRACE_S)


def _after_training(words: Sequence[str]) -> int:
    """As `distqat evaluate MODEL --ptq` with the same flags."""
    from distqat.config.flags import to_argv
    from distqat.launch.evaluate_command import main as evaluate

    args = parse(words)
    flags = to_argv(args.config_path, args.config_overrides)
    if not any(word.partition("=")[0] == "--config-path" for word in words):
        flags = flags[1:]  # the model brings its own configuration
    return evaluate([args.ptq, "--ptq", *flags])


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Flags of this launcher and of every field. Ends the process on bad usage, as parsers do."""
    from distqat.config import ConfigParser, add_config_arguments

    parser = ConfigParser("run_local.py", description="Train in a swarm on this machine.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--baseline", action="store_true", help="train the unsplit model in one process instead"
    )
    which.add_argument(
        "--with-baseline", action="store_true", help="both, at equal samples, and compare them"
    )
    which.add_argument(
        "--resume", action="store_true", help="go on with the run of this name where it stopped"
    )
    which.add_argument(
        "--ptq", metavar="MODEL", help="train nothing: quantize this checkpoint or model file, and judge it"
    )
    parser.add_argument("--replicas", type=int, metavar="N", help="replicas of each stage: --world-size")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="print no progress")
    add_config_arguments(parser)
    args: argparse.Namespace = parser.parse_args(list(words))
    if args.replicas is not None:
        if str(args.config_overrides.get("world_size", args.replicas)) != str(args.replicas):
            parser.error("--replicas and --world-size differ; they mean the same")
        args.config_overrides = {**args.config_overrides, "world_size": args.replicas}
    return args


def beside(settings: LauncherSettings) -> LauncherSettings:
    """The settings of a baseline whose logs and model go into folders within those of its swarm."""
    from distqat.config import load_config

    config = settings.config
    changes: Mapping[str, Any] = {
        "log_dir": str(settings.log_dir / "baseline"),
        "store_ip_addresses_path": "",
        "param_mirror.checkpoint_dir": str(config.checkpoint_dir / "baseline"),
    }
    overrides = {**settings.overrides, **changes}
    return replace(settings, config=load_config(settings.config_path or None, overrides), overrides=overrides)


if __name__ == "__main__":
    begin(NAME)
    leave(main())
