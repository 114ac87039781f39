"""start_servers.py: the servers of one host, from one warm process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from distqat.distributed.process import (
    PRELOAD,
    Ended,
    PortClaim,
    RoleCommand,
    RoleProcess,
    Supervisor,
    Zygote,
    claim_port,
    complaint,
    guarded,
    run_role,
    set_title,
    threads_per_server,
)
from distqat.distributed.process.device import LOCAL_INDEX
from distqat.distributed.process.supervisor import ending
from distqat.environment import prepare
from distqat.errors import ConfigError
from distqat.launch.roles import (
    LAUNCHER_GRACE_S,
    STOP_GRACE_S,
    Settings,
    claim_role_log,
    exit_code,
    module_of,
    read_settings,
    role_command,
    until,
)
from distqat.swarm.addresses import bound_hosts


@dataclass(frozen=True)
class ServerPlan:
    """A server to start, and the port that this launcher holds for it."""

    command: RoleCommand
    port: PortClaim


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all servers finished, or were stopped in order; 1: one failed; 2: refused."""
    prepare()
    set_title("servers", argv)
    zygote = Zygote.start((*PRELOAD, module_of("server")))
    return guarded("servers", lambda: _main(argv, zygote))


def plan_servers(settings: Settings, count: int) -> list[ServerPlan]:
    """Ports, log files, devices and CPU threads for `count` servers on this host.

    ConfigError: nothing to join. RoleError: a port that was given is busy.
    """
    config = settings.config
    if not config.initial_peers:
        raise ConfigError(
            "--initial-peers is missing; give the addresses that start_trainer_client.py prints"
        )
    if count < 1:
        raise ConfigError(f"--num-servers {count}: at least 1")
    hosts = bound_hosts(config.public_ip)
    given = "server_base_port" in config.model_fields_set
    plans = []
    for index in range(count):
        wanted = config.server_base_port + index if config.server_base_port else 0
        port = claim_port(hosts, wanted, given)
        command = role_command(
            "server",
            settings,
            claim_role_log(settings, "server", index),
            changes={"server_base_port": port.port},
            env={**port.environment(), LOCAL_INDEX: str(index)},
            threads=threads_per_server(count),
        )
        plans.append(ServerPlan(command, port))
    return plans


def _main(argv: Sequence[str] | None, zygote: Zygote) -> int:
    from distqat.config import ConfigParser, add_config_arguments

    parser = ConfigParser("start_servers.py", description="Start servers on this host and keep them running.")
    parser.add_argument("--num-servers", type=int, default=1, metavar="N", help="(default: %(default)s)")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    plans = plan_servers(read_settings(args), args.num_servers)

    async def launcher(stop: asyncio.Event) -> int:
        return await _serve(stop, plans, zygote)

    return run_role("servers", launcher, grace_s=LAUNCHER_GRACE_S)


async def _serve(stop: asyncio.Event, plans: Sequence[ServerPlan], zygote: Zygote) -> int:
    ports = {plan.command.name: plan.port.port for plan in plans}

    def on_start(role: RoleProcess) -> None:
        command = role.command
        _say(f"{command.name} started: PID {role.pid}, port {ports[command.name]}, log {command.log_path}")

    supervisor = Supervisor(zygote, on_start=on_start, on_end=_say_end, on_notice=_say_notice)
    kept = [supervisor.start(plan.command) for plan in plans]
    try:
        await until(stop, kept)
        await supervisor.stop(STOP_GRACE_S)
        return exit_code([await server for server in kept])
    finally:
        await zygote.close()


def _say_end(ended: Ended) -> None:
    _say(f"{ended.command.name} (PID {ended.pid}) ended with {ending(ended.code)}: {ended.consequence}")
    said = complaint(ended.command.log_path) if ended.code > 0 and ended.command.log_path else None
    if said:
        _say(said)


def _say_notice(command: RoleCommand, sentence: str) -> None:
    _say(f"{command.name}: {sentence}")


def _say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)  # noqa: T201  what the user of the terminal is told


if __name__ == "__main__":
    sys.exit(main())
