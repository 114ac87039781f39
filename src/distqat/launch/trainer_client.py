"""start_trainer_client.py: the monitor, which bootstraps the swarm, and the client with its trainers."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distqat.environment import prepare
from distqat.launch.launcher_roles import (
    LAUNCHER_GRACE_S,
    STOP_GRACE_S,
    LauncherSettings,
    check_data,
    claim_launcher_log,
    module_of,
    read_settings,
)
from distqat.launch.log_folder import check_checkpoint_folder, set_aside
from distqat.launch.monitor_and_client import MonitorAndClient, claim_ports
from distqat.process import (
    PRELOAD,
    ForkServerClient,
    RoleEnded,
    RoleParameters,
    Supervisor,
    guarded,
    run_role,
    set_title,
)
from distqat.terminal import begin, leave

if TYPE_CHECKING:
    from distqat.launch.display import Display
    from distqat.launch.role_reporter import RoleReporter
    from distqat.launch.run_watch import RunWatch

NAME = "trainer-client"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: training finished, or was stopped in order; 1: it failed; 2: refused."""
    prepare()
    set_title(NAME, argv)
    fork_server = ForkServerClient.start((*PRELOAD, module_of("monitor"), module_of("client")))
    return guarded(NAME, lambda: _main(argv, fork_server))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags of this launcher and of every field. Ends the process on bad usage, as parsers do."""
    from distqat.config import ConfigParser, add_config_arguments

    parser = ConfigParser("start_trainer_client.py", description="Start a swarm: the monitor and the client.")
    parser.add_argument(
        "--fresh", action="store_true", help="begin a new run instead of going on with an unfinished one"
    )
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="print no progress")
    add_config_arguments(parser)
    args: argparse.Namespace = parser.parse_args(argv)
    return args


def _main(argv: Sequence[str] | None, fork_server: ForkServerClient) -> int:
    began = time.monotonic()
    args = parse(argv)
    settings = read_settings(args)
    check_data(settings.config)
    check_checkpoint_folder(settings.config)
    parameters = RoleParameters(oldest=int(time.time())) if args.fresh else RoleParameters()
    if args.fresh:
        set_aside(settings.log_dir)
    from distqat.launch.display import open_display

    run = TrainerClient(settings, fork_server, open_display(args.progress), parameters, began)
    return run_role(NAME, run.train, grace_s=LAUNCHER_GRACE_S)


class TrainerClient:
    """Keeps monitor and client running until the client has finished, and shows how the run goes."""

    def __init__(
        self,
        settings: LauncherSettings,
        fork_server: ForkServerClient,
        display: Display,
        parameters: RoleParameters,
        began: float,
    ) -> None:
        from distqat.launch.role_reporter import RoleReporter

        self._settings = settings
        self._fork_server = fork_server
        self._display = display
        self._parameters = parameters  # of the client: where to begin
        self._began = time.time()
        self._log = claim_launcher_log(settings, "start_trainer_client")
        self._reporter: RoleReporter = RoleReporter(display, self._log.path)
        self._supervisor = Supervisor(
            fork_server,
            on_start=self._reporter.started,
            on_end=self._ended,
            on_notice=self._reporter.noticed,
        )
        self._watching = self._watch(began)

    def _ended(self, ended: RoleEnded) -> None:
        # The monitor may be asked to leave by itself; the client's end is that of the launcher.
        if ended.command.name == "monitor" and ended.code == 0 and ended.consequence != "stopped":
            self._reporter.say(self._reporter.told(ended))
        self._reporter.ended(ended)

    async def train(self, stop: asyncio.Event) -> int:
        """Exit code 0: the client has finished, or was stopped in order. Raises what a role ended with."""
        try:
            finished = await self._watching.during(self._train(), stop)
        finally:
            await self._supervisor.stop(STOP_GRACE_S)
            await self._fork_server.close()
        if finished:
            self._conclude()
        return 0

    async def _train(self) -> bool:
        """Start the monitor, print its addresses when it serves, start the client; True when it has ended."""
        both = MonitorAndClient(self._settings, self._supervisor, claim_ports(self._settings))
        peers = await both.start_monitor()
        self._reporter.say(f"Initial peers: {','.join(peers)}")  # to be copied to start_servers.py
        client = both.client(self._parameters)
        self._watching.phase = "starting the client"
        await self._supervisor.start(client, on_start=self._watching.follow)
        ended = self._supervisor.end_of(client)
        if ended is not None and ended.code != 0:
            raise self._reporter.failure(ended)
        return True

    def _watch(self, began: float) -> RunWatch:
        from distqat.launch.run_plan import goal_of
        from distqat.launch.run_watch import RunWatch

        config = self._settings.config
        return RunWatch(
            config, config.experiment_prefix, goal_of(config), self._display, self._reporter.say, began=began
        )

    def _conclude(self) -> None:
        """The summary, where this run of the client has written one."""
        from distqat.launch.summary_table import conclude
        from distqat.metrics.run_summary import SUMMARY, RunSummary

        folder = self._settings.log_dir
        path = folder / SUMMARY
        if path.exists() and path.stat().st_mtime >= self._began:
            conclude([RunSummary.read(folder)], folder, self._display)


if __name__ == "__main__":
    begin(NAME)
    leave(main())
