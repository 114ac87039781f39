"""start_servers.py: the servers of one host, from one warm process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distqat.environment import prepare
from distqat.errors import ConfigError
from distqat.launch.launcher_roles import (
    LAUNCHER_GRACE_S,
    STOP_GRACE_S,
    LauncherSettings,
    claim_launcher_log,
    claim_role_log,
    exit_code,
    module_of,
    read_settings,
    server_command,
    until,
)
from distqat.process import (
    PRELOAD,
    ForkServerClient,
    PortClaim,
    RoleCommand,
    RoleEnded,
    RoleProcess,
    Supervisor,
    claim_port,
    guarded,
    run_role,
    set_title,
)
from distqat.swarm.role_addresses import bound_hosts
from distqat.terminal import begin, leave
from distqat.writable_folder import why_unwritable

if TYPE_CHECKING:
    from distqat.launch.role_reporter import RoleReporter

NAME = "servers"


@dataclass(frozen=True)
class ServerPlan:
    """A server to start, and the port that this launcher holds for it."""

    command: RoleCommand
    port: PortClaim


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all servers finished, or were stopped in order; 1: one failed; 2: refused."""
    prepare()
    set_title(NAME, argv)
    fork_server = ForkServerClient.start((*PRELOAD, module_of("server")))
    return guarded(NAME, lambda: _main(argv, fork_server))


def claim_server_ports(settings: LauncherSettings, count: int) -> list[PortClaim]:
    """A port for each of `count` servers. RoleError: one that was given is busy."""
    config = settings.config
    hosts = bound_hosts(config.public_ip)
    given = "server_base_port" in config.model_fields_set
    wanted = [config.server_base_port + index if config.server_base_port else 0 for index in range(count)]
    return [claim_port(hosts, port, given) for port in wanted]


def plan_servers(
    settings: LauncherSettings, count: int, ports: Sequence[PortClaim] | None = None
) -> list[ServerPlan]:
    """Ports (unless they are claimed already), log files, devices and CPU threads for `count` servers.

    ConfigError: nothing to join. RoleError: a port that was given is busy.
    """
    if not settings.config.initial_peers:
        raise ConfigError(
            "--initial-peers is missing; give the addresses that start_trainer_client.py prints"
        )
    if count < 1:
        raise ConfigError(f"--num-servers {count}: at least 1")
    plans = []
    for index, port in enumerate(ports or claim_server_ports(settings, count)):
        log = claim_role_log(settings, "server", index)
        plans.append(ServerPlan(server_command(settings, log, index, port, count), port))
    return plans


def _main(argv: Sequence[str] | None, fork_server: ForkServerClient) -> int:
    from distqat.config import ConfigParser, add_config_arguments
    from distqat.launch.display import PlainDisplay
    from distqat.launch.role_reporter import RoleReporter

    parser = ConfigParser("start_servers.py", description="Start servers on this host and keep them running.")
    parser.add_argument("--num-servers", type=int, default=1, metavar="N", help="(default: %(default)s)")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    settings = read_settings(args)
    log = claim_launcher_log(settings, "start_servers")
    reporter = RoleReporter(PlainDisplay(sys.stdout), log.path)
    folder = settings.config.checkpoint_dir
    why = why_unwritable(folder)
    if why:  # the run does not depend on them: the client's host keeps copies
        reporter.say(
            f"checkpoints cannot be written to {folder.absolute()} ({why}); servers of this host keep none"
        )
    plans = plan_servers(settings, args.num_servers)

    async def launcher(stop: asyncio.Event) -> int:
        return await _serve(stop, plans, fork_server, reporter)

    return run_role(NAME, launcher, grace_s=LAUNCHER_GRACE_S)


async def _serve(
    stop: asyncio.Event, plans: Sequence[ServerPlan], fork_server: ForkServerClient, reporter: RoleReporter
) -> int:
    """Exit code 0: all have finished, or were stopped in order. Raises what the last one ended with."""
    ports = {plan.command.name: plan.port.port for plan in plans}

    def on_start(role: RoleProcess) -> None:
        name, log = role.command.name, role.command.log_path
        reporter.say(f"{name} started: PID {role.pid}, port {ports[name]}, log {log}")

    def on_end(ended: RoleEnded) -> None:
        if ended.code == 0:
            reporter.say(reporter.told(ended))
        reporter.ended(ended)

    supervisor = Supervisor(fork_server, on_start=on_start, on_end=on_end, on_notice=reporter.noticed)
    kept = [supervisor.start(plan.command) for plan in plans]
    try:
        await until(stop, kept)
        await supervisor.stop(STOP_GRACE_S)
        codes = [await server for server in kept]
        if reporter.given_up is not None:
            raise reporter.failure(reporter.given_up)
        return exit_code(codes)
    finally:
        await fork_server.close()


if __name__ == "__main__":
    begin(NAME)
    leave(main())
