"""A swarm on this machine whose servers nobody restarts: what drills and fault benchmarks do their harm to.

Monitor and client are kept as `run_local.py` keeps them. Each server is a life of its own: what is killed
stays dead until `add_server` starts another one, which asks the client for a slot like any server that joins.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distqat.drill.verdict import Evidence
from distqat.errors import DistqatError, RoleError
from distqat.launch.launcher_roles import (
    READY_S,
    STOP_GRACE_S,
    LauncherSettings,
    claim_role_log,
    keep_until_ready,
    server_command,
)
from distqat.launch.log_folder import claim_folder
from distqat.launch.monitor_and_client import MonitorAndClient, claim_ports
from distqat.launch.process_survey import RUNTIME, ProcessSurvey, left_behind, shared_memory
from distqat.launch.status_poller import StatusPoller
from distqat.launch.warm_processes import WarmForkServers
from distqat.process import (
    LogClaim,
    PortClaim,
    RestartPolicy,
    RoleCommand,
    RoleEnded,
    RoleParameters,
    RoleProcess,
    Supervisor,
    claim_port,
)
from distqat.process.restart_policy import USAGE
from distqat.process.role_endings import ending
from distqat.swarm.role_addresses import bound_hosts
from distqat.terminal import log_to

NEVER_AGAIN = RestartPolicy(crashes=0)
ONCE_MORE = RestartPolicy(crashes=2)


@dataclass
class ServerLife:
    """One life of a server, from its start to its end."""

    number: int
    role: RoleProcess
    port: PortClaim
    started: float  # seconds since 1970
    uid: str = ""  # as soon as it serves
    peer: str = ""
    served: float | None = None
    killed: float | None = None
    service: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The UID of its replica, or the role's name before it has one."""
        return self.uid or self.role.command.name

    @property
    def stage(self) -> str:
        """The stage that it served."""
        return self.uid.partition(".")[0]

    @property
    def lives(self) -> bool:
        """Whether it was neither killed nor has ended."""
        return self.killed is None and self.role.returncode is None

    @property
    def died(self) -> bool:
        """Whether it was killed, or ended with another code than 0."""
        return self.killed is not None or self.role.returncode not in (None, 0)

    async def serves(self, timeout_s: float = READY_S) -> None:
        """Return when it holds a slot and serves. RoleError: it ended, or did not within `timeout_s`."""
        said = await self.role.ready(timeout_s)
        if self.served is None:
            self.uid, self.peer, self.served = str(said["uid"]), str(said["peer"]), time.time()


@dataclass
class DrillSwarm:
    """The processes of one swarm. `say` is told of roles that end by themselves."""

    settings: LauncherSettings
    fork_servers: WarmForkServers
    say: Callable[[str], object] = lambda line: None
    replicas: list[ServerLife] = field(default_factory=list)  # every life so far
    processes: ProcessSurvey = field(default_factory=ProcessSurvey)
    network_policy: RestartPolicy = ONCE_MORE  # of monitor and client
    environment: Mapping[str, str] = field(default_factory=dict)  # of every role
    shared_before: set[Path] = field(default_factory=shared_memory)
    peers: list[str] = field(default_factory=list)  # addresses to join the swarm by
    _ports: Mapping[str, PortClaim] = field(default_factory=dict)
    _claim: LogClaim | None = None
    _failures: asyncio.Queue[DistqatError] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        heard: dict[str, Any] = {"on_end": self._ended, "on_notice": self._noticed}
        self._network = Supervisor(self.fork_servers.network, **heard)
        self._servers = Supervisor(self.fork_servers.servers, **heard)
        self.status = StatusPoller(self.settings.config.experiment_prefix)

    async def start(self) -> None:
        """Start monitor and client; returns when both serve. DistqatError: what one of them ended with."""
        self._claim = claim_folder(self.settings.log_dir)
        log_to(self._claim.path)
        self._ports = claim_ports(self.settings)
        both = MonitorAndClient(self.settings, self._network, self._ports, self.environment)
        await both.start_monitor(self.network_policy)
        self.peers = both.peers
        client = both.client(RoleParameters())
        _, said = await keep_until_ready(self._network, client, policy=self.network_policy)
        self.status.follow(said)

    async def failure(self) -> None:
        """Raises what the monitor or the client was given up with, and what a server was refused with."""
        raise await self._failures.get()

    async def add_server(self) -> ServerLife:
        """Start one more server; returns when its process runs."""
        config, number = self.settings.config, len(self.replicas)
        port = claim_port(bound_hosts(config.public_ip), config.server_base_port, given=False)
        log = claim_role_log(self.settings, "server", number)
        count, peers = config.world_size * len(config.stages), {"initial_peers": ",".join(self.peers)}
        command = server_command(self.settings, log, number, port, count, peers, self.environment)
        started: asyncio.Future[RoleProcess] = asyncio.get_running_loop().create_future()
        kept, began = self._servers.start(command, NEVER_AGAIN, started.set_result), time.time()
        either: set[asyncio.Future[Any]] = {kept, started}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            raise RoleError(f"{command.name} was not started: {await kept}")
        replica = ServerLife(number, started.result(), port, began)
        kept.add_done_callback(lambda _: port.release())
        kept.add_done_callback(lambda _: log.release())
        self.replicas.append(replica)
        replica.service = asyncio.ensure_future(_noticed(replica))
        return replica

    async def start_servers(self, count: int, timeout_s: float = READY_S) -> None:
        """Start `count` servers and wait until all of them serve."""
        added = [await self.add_server() for _ in range(count)]
        await asyncio.gather(*(replica.serves(timeout_s) for replica in added))

    def kill(self, replica: ServerLife) -> float:
        """SIGKILL to the server's process alone, as a crash would end it; when that was."""
        self.processes.look(os.getpid())
        replica.killed = time.time()
        with contextlib.suppress(ProcessLookupError):  # it was faster
            os.kill(replica.role.pid, signal.SIGKILL)
        return replica.killed

    def serving(self, stage: str | None = None) -> list[ServerLife]:
        """Live servers that serve, of one stage if it is named."""
        there = [replica for replica in self.replicas if replica.lives and replica.served is not None]
        return [replica for replica in there if stage in (None, replica.stage)]

    def of(self, uid: str) -> ServerLife | None:
        """The live server in a slot."""
        return next((replica for replica in self.serving() if replica.uid == uid), None)

    def pid_of(self, kind: str) -> int | None:
        """The process of the monitor or the client now; None: it is just being started again."""
        return next((role.pid for role in self._network.live if role.command.name == kind), None)

    @property
    def gone(self) -> set[str]:
        """Peer ids of servers that died: killed, or with an error."""
        return {replica.peer for replica in self.replicas if replica.died and replica.peer}

    @property
    def left(self) -> set[str]:
        """Peer ids of servers that ended in order."""
        there = [replica for replica in self.replicas if not replica.lives and not replica.died]
        return {replica.peer for replica in there if replica.peer}

    def evidence(self) -> Evidence:
        """What everybody has written until now."""
        return Evidence.read(self.settings.log_dir, self.gone, self.left)

    def dead_of_themselves(self) -> list[ServerLife]:
        """Servers that ended although nobody killed them."""
        return [each for each in self.replicas if each.killed is None and each.role.returncode is not None]

    async def stop(self) -> None:
        """Ask everybody to end, as Ctrl-C does; kills what does not. May be repeated."""
        self.processes.look(os.getpid())
        await self.status.close()
        await asyncio.gather(self._servers.stop(STOP_GRACE_S), self._network.stop(STOP_GRACE_S))
        for replica in self.replicas:
            if replica.service is not None:
                replica.service.cancel()
        for port in self._ports.values():
            port.release()
        if self._claim is not None:
            self._claim.release()

    async def left_behind(self) -> list[str]:
        """I5: what is there two seconds after everything, the fork servers too, was asked to end."""
        return await left_behind(self.processes, os.environ[RUNTIME], self.shared_before)

    def _ended(self, ended: RoleEnded) -> None:
        killed = any(each.role.pid == ended.pid and each.killed is not None for each in self.replicas)
        if ended.consequence == "stopped" or killed:
            return
        of_network = not ended.command.name.startswith("server")
        if ended.given_up and (of_network or ended.code == USAGE):
            self._failures.put_nowait(ended.failure())
            return
        name, log, words = ended.command.name, ended.command.log_path, ended.words
        why = f"{words.sentence}; " if words else ""
        self.say(f"{name} ended with {ending(ended.code)}: {why}{ended.consequence}; see {log}")

    def _noticed(self, command: RoleCommand, sentence: str) -> None:
        self.say(f"{command.name}: {sentence}")


async def _noticed(replica: ServerLife) -> None:
    """Write down when it begins to serve, also while nobody waits for that."""
    try:
        await replica.serves(timeout_s=3600.0)
    except DistqatError:
        return  # it was killed before; whoever waits for it hears why
