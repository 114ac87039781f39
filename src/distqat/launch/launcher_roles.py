"""What every launcher shares: its settings, the commands of the roles it starts, and how it ends."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqat.config_paths import find
from distqat.errors import ConfigError, DataError, DistqatError, RoleError
from distqat.launch.log_folder import no_logs
from distqat.process import (
    LogClaim,
    PortClaim,
    RestartPolicy,
    RoleCommand,
    RoleParameters,
    RoleProcess,
    Supervisor,
    claim_log,
    resolve_device,
    set_up_logging,
    threads_per_server,
)
from distqat.process.runtime_folder import moved
from distqat.terminal import log_to

if TYPE_CHECKING:
    from distqat.config import Config

logger = logging.getLogger(__name__)

STOP_GRACE_S = 9.0  # a role's own bound is 10 s, and Ctrl-C must be over within 10 s
LAUNCHER_GRACE_S = 13.0
READY_S = 60.0


@dataclass(frozen=True)
class LauncherSettings:
    """The resolved configuration, and what the user gave to get it; roles are given the same."""

    config: Config
    config_path: str
    overrides: Mapping[str, Any]

    @property
    def log_dir(self) -> Path:
        """The log folder as a path."""
        return Path(self.config.log_dir)

    def argv(self, **changes: Any) -> tuple[str, ...]:
        """The flags that give a role these settings, with `changes` (top-level fields) on top."""
        from distqat.config import to_argv

        return tuple(to_argv(self.config_path, {**self.overrides, **changes}))


def read_settings(args: argparse.Namespace) -> LauncherSettings:
    """From parsed flags; also sets up the launcher's own logging. Raises ConfigError."""
    from distqat.config import check_folders, config_from_args

    settings = LauncherSettings(config_from_args(args), args.config_path or "", args.config_overrides)
    given = "log_level" in settings.config.model_fields_set  # else HIVEMIND_VERBOSITY says
    set_up_logging("launcher", settings.config.log_level if given else None)
    if (elsewhere := moved()) is not None:
        logger.warning(elsewhere)
    check_folders(settings.config)
    device = settings.config.device
    if device != "cpu" and "device" in settings.overrides:  # typed: refused before anything is started
        resolve_device(device, explicit=True)
    return settings


def check_data(config: Config) -> None:
    """For launchers whose client reads the data on this host. ConfigError: no file or folder is there."""
    name = config.data.dataset_name
    if not name.startswith((".", "/", "~")):
        return
    from distqat.data.sources.local_files import find_files, is_local

    if is_local(name) and not find(name).exists():
        try:
            find_files(name)
        except DataError as error:
            raise ConfigError(str(error)) from error


def entry_of(kind: str) -> str:
    """Where a role begins: `data-server` -> "distqat.distributed.data_server:main"."""
    return f"distqat.distributed.{kind.replace('-', '_')}:main"


def module_of(kind: str) -> str:
    """The module to import before a role of this kind is forked."""
    return entry_of(kind).partition(":")[0]


def claim_role_log(settings: LauncherSettings, kind: str, number: int | None = None) -> LogClaim:
    """`server_0.log`, or the next number where another launcher's server writes it. RoleError: unwritable."""
    try:
        return claim_log(settings.log_dir, kind.replace("-", "_"), number)
    except OSError as error:
        raise no_logs(settings.log_dir, error) from error


def claim_launcher_log(settings: LauncherSettings, stem: str) -> LogClaim:
    """The log of the launcher itself: what it tells and what its libraries write. RoleError: unwritable."""
    try:
        claim = claim_log(settings.log_dir, stem)
        log_to(claim.path)
    except OSError as error:
        raise no_logs(settings.log_dir, error) from error
    return claim


def known_peers(said: Mapping[str, Any], settings: LauncherSettings) -> list[str]:
    """The monitor's addresses, then those that the user gave. RoleError: the monitor told none."""
    peers = said.get("peers")
    if not isinstance(peers, list) or not peers or not all(isinstance(peer, str) for peer in peers):
        raise RoleError(f"the monitor serves but told no addresses: {said}")
    return [*peers, *(peer for peer in settings.config.initial_peers if peer not in peers)]


def role_command(
    kind: str,
    settings: LauncherSettings,
    log: LogClaim,
    *,
    changes: Mapping[str, Any],
    parameters: RoleParameters,
    env: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> RoleCommand:
    """The command of a role; one that is numbered in its log's name is numbered in its title too."""
    numbered = log.path.stem != kind.replace("-", "_")
    return RoleCommand(
        name=f"{kind} {log.number}" if numbered else kind,
        entry=entry_of(kind),
        argv=settings.argv(**changes),
        log_path=log.path,
        env={**replace(parameters, log_name=log.path.stem).environment(), **(env or {})},
        threads=threads,
    )


def server_command(
    settings: LauncherSettings,
    log: LogClaim,
    index: int,
    port: PortClaim,
    count: int,
    changes: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> RoleCommand:
    """The command of one of `count` servers that share the cores of this host."""
    return role_command(
        "server",
        settings,
        log,
        changes={"server_base_port": port.port, **(changes or {})},
        parameters=RoleParameters(claimed_port=port.port, server_index=index),
        env=env,
        threads=threads_per_server(count),
    )


async def keep_until_ready(
    supervisor: Supervisor,
    command: RoleCommand,
    timeout_s: float = READY_S,
    policy: RestartPolicy | None = None,
) -> tuple[asyncio.Task[int], dict[str, Any]]:
    """Keep a role running; returns when a run of it said that it serves, with what it said.

    RoleError: no run of it was ready in `timeout_s`. What it ended with when it was given up.
    """
    runs: asyncio.Queue[RoleProcess] = asyncio.Queue()
    kept = supervisor.start(command, policy, runs.put_nowait)
    while True:
        started = asyncio.create_task(runs.get())
        either: set[asyncio.Task[Any]] = {kept, started}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if kept.done():
            started.cancel()
            await kept
            ended = supervisor.end_of(command)
            raise RoleError(f"{command.name} was not started") if ended is None else ended.failure()
        role = await started
        try:
            return kept, await role.ready(timeout_s)
        except DistqatError:
            if role.returncode is None:  # it runs, but does not serve
                raise


async def until(stop: asyncio.Event, tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Return when all tasks are done, or when `stop` is set; raises what a task raised."""
    pending = set(tasks)
    asked = asyncio.create_task(stop.wait())
    try:
        while pending and not stop.is_set():
            done, _ = await asyncio.wait({asked, *pending}, return_when=asyncio.FIRST_COMPLETED)
            for task in done & pending:
                task.result()
            pending -= done
    finally:
        asked.cancel()


def exit_code(codes: Sequence[int]) -> int:
    """A launcher's code: 0 if all roles ended well, 2 if one was refused, else 1."""
    if all(code == 0 for code in codes):
        return 0
    return 2 if 2 in codes else 1
