"""start_trainer_client.py: the monitor, which bootstraps the swarm, and the client with its trainers."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence

from distqat.distributed.process import (
    PRELOAD,
    Ended,
    PortClaim,
    RoleCommand,
    Supervisor,
    Zygote,
    claim_port,
    complaint,
    guarded,
    run_role,
    set_title,
)
from distqat.distributed.process.supervisor import ending
from distqat.environment import prepare
from distqat.errors import RoleError
from distqat.launch.folder import set_aside
from distqat.launch.roles import (
    LAUNCHER_GRACE_S,
    OLDEST,
    STOP_GRACE_S,
    Settings,
    claim_role_log,
    exit_code,
    keep_until_ready,
    module_of,
    read_settings,
    role_command,
    until,
)
from distqat.swarm.addresses import bound_hosts


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: training finished, or was stopped in order; 1: the client failed; 2: refused."""
    prepare()
    set_title("trainer-client", argv)
    zygote = Zygote.start((*PRELOAD, module_of("monitor"), module_of("client")))
    return guarded("trainer-client", lambda: _main(argv, zygote))


def _main(argv: Sequence[str] | None, zygote: Zygote) -> int:
    from distqat.config import ConfigParser, add_config_arguments

    parser = ConfigParser("start_trainer_client.py", description="Start a swarm: the monitor and the client.")
    parser.add_argument(
        "--fresh", action="store_true", help="begin a new run instead of going on with an unfinished one"
    )
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    settings = read_settings(args)
    start = {OLDEST: str(int(time.time()))} if args.fresh else {}
    if args.fresh:
        set_aside(settings.log_dir)

    async def launcher(stop: asyncio.Event) -> int:
        return await _train(stop, settings, zygote, start)

    return run_role("trainer-client", launcher, grace_s=LAUNCHER_GRACE_S)


async def _train(stop: asyncio.Event, settings: Settings, zygote: Zygote, start: Mapping[str, str]) -> int:
    supervisor = Supervisor(zygote, on_end=_say_end, on_notice=_say_notice)
    starting = asyncio.create_task(_start(supervisor, settings, start))
    try:
        await until(stop, [starting])
        if not starting.done():  # stopped before the monitor served
            return 0
        client = starting.result()
        await until(stop, [client])  # not the monitor: nothing depends on it once the peers know each other
        await supervisor.stop(STOP_GRACE_S)
        return exit_code([await client])
    finally:
        starting.cancel()
        await supervisor.stop(STOP_GRACE_S)
        await zygote.close()


async def _start(supervisor: Supervisor, settings: Settings, start: Mapping[str, str]) -> asyncio.Task[int]:
    """Start the monitor, print its addresses when it serves, start the client; the client's task.

    Their ports are claimed here, so that one that is started again is found where it was before.
    """
    ports = {kind: _claim(settings, kind) for kind in ("monitor", "client")}
    monitor = role_command(
        "monitor",
        settings,
        claim_role_log(settings, "monitor"),
        changes={"monitor_port": ports["monitor"].port},
        env=ports["monitor"].environment(),
    )
    _, said = await keep_until_ready(supervisor, monitor)
    peers = said.get("peers")
    if not isinstance(peers, list) or not all(isinstance(peer, str) for peer in peers) or not peers:
        raise RoleError(f"the monitor serves but told no addresses: {said}")
    print(f"Initial peers: {','.join(peers)}", flush=True)  # noqa: T201  to be copied to start_servers.py
    known = [*peers, *(peer for peer in settings.config.initial_peers if peer not in peers)]
    client = role_command(
        "client",
        settings,
        claim_role_log(settings, "client"),
        changes={"initial_peers": ",".join(known), "client_port": ports["client"].port},
        env={**ports["client"].environment(), **start},
    )
    return supervisor.start(client)


def _say_end(ended: Ended) -> None:
    name, consequence = ended.command.name, ended.consequence
    said = complaint(ended.command.log_path) if ended.code > 0 and ended.command.log_path else None
    for line in (f"{name} (PID {ended.pid}) ended with {ending(ended.code)}: {consequence}", said):
        if line:
            print(line, file=sys.stderr, flush=True)  # noqa: T201  what the user of the terminal is told


def _say_notice(command: RoleCommand, sentence: str) -> None:
    print(f"{command.name}: {sentence}", file=sys.stderr, flush=True)  # noqa: T201  for the user of the terminal


def _claim(settings: Settings, kind: str) -> PortClaim:
    """RoleError: a port that was given, or the monitor's, whose address people copy, is busy."""
    config, name = settings.config, f"{kind}_port"
    wanted: int = getattr(config, name)
    return claim_port(
        bound_hosts(config.public_ip), wanted, kind == "monitor" or name in config.model_fields_set
    )


if __name__ == "__main__":
    sys.exit(main())
