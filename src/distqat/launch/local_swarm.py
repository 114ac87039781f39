"""One run on this machine: its monitor, its client and its servers, from the first port to the summary."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distqat.errors import RoleError
from distqat.failures import Repeats
from distqat.launch.display import Display
from distqat.launch.launcher_roles import STOP_GRACE_S
from distqat.launch.monitor_and_client import MonitorAndClient
from distqat.launch.role_reporter import RoleReporter
from distqat.launch.run_plan import RunPlan
from distqat.launch.run_watch import RunWatch
from distqat.launch.start_servers import claim_server_ports, plan_servers
from distqat.launch.warm_processes import WarmForkServers
from distqat.metrics.run_summary import SUMMARY, RunSummary
from distqat.process import RestartPolicy, RoleCommand, RoleEnded, RoleParameters, Supervisor
from distqat.process.restart_policy import USAGE

LEAVE_S = 5.0  # for servers to end by themselves once the run is finished
_CLIENT = RestartPolicy(crashes=2)  # somebody waits for the run: tell early that it cannot work


@dataclass
class LocalRun:
    """Starts the roles of a plan, shows how they do, ends them."""

    plan: RunPlan
    fork_servers: WarmForkServers
    display: Display
    began: float = field(default_factory=time.monotonic)
    _lost: asyncio.Queue[RoleEnded | BaseException] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self._reporter = RoleReporter(self.display, self.plan.folder.path)
        self._repeats = Repeats()

    async def run(self, stop: asyncio.Event) -> RunSummary | None:
        """The summary of the finished run; None: it was stopped. DistqatError: what failed."""
        network = self._supervisor(self.fork_servers.network, self._reporter.ended)
        servers = (
            self._supervisor(self.fork_servers.servers, self._server_ended) if self.plan.servers else None
        )
        each = [supervisor for supervisor in (network, servers) if supervisor is not None]
        config, plan = self.plan.settings.config, self.plan
        title = f"{config.experiment_prefix} {plan.mode}"
        screen = (self.display, self._reporter.say)
        watching = RunWatch(config, title, plan.goal, *screen, expected=plan.servers, began=self.began)
        try:
            return await watching.during(self._train(network, servers, watching), stop)
        finally:
            await asyncio.gather(*(supervisor.stop(STOP_GRACE_S) for supervisor in each))
            self.plan.release()

    def _supervisor(self, fork_server: Any, on_end: Any) -> Supervisor:
        reporter = self._reporter
        return Supervisor(fork_server, on_start=reporter.started, on_end=on_end, on_notice=reporter.noticed)

    async def _train(self, network: Supervisor, servers: Supervisor | None, watching: RunWatch) -> RunSummary:
        settings, kept = self.plan.settings, list[asyncio.Task[int]]()
        ports = claim_server_ports(settings, self.plan.servers)
        both = MonitorAndClient(settings, network, self.plan.ports)
        await both.start_monitor()
        client = both.client(self._client_parameters())
        watching.phase = "starting the client and the servers" if servers else "starting the client"
        training = network.start(client, _CLIENT, watching.follow)
        if servers is not None:
            joined = replace(
                settings,
                config=settings.config.model_copy(update={"initial_peers": both.peers}),
                overrides={**settings.overrides, "initial_peers": ",".join(both.peers)},
            )
            plans = plan_servers(joined, self.plan.servers, ports)
            kept = [servers.start(plan.command) for plan in plans]
            for server in kept:
                server.add_done_callback(self._not_started)
        enough = asyncio.create_task(self._enough_servers(kept))
        try:
            await asyncio.wait({training, enough}, return_when=asyncio.FIRST_COMPLETED)
            if not training.done():
                enough.result()
            summary = self._result(network, client, training.result())
            watching.over = "the servers are leaving"
            if kept:
                await asyncio.wait(kept, timeout=LEAVE_S)
            return summary
        finally:
            enough.cancel()

    def _client_parameters(self) -> RoleParameters:
        if self.plan.mode == "baseline":
            return RoleParameters(run_locally=True, samples=self.plan.samples)
        if self.plan.resume:
            return RoleParameters(servers_check=True, resume=True)
        return RoleParameters(servers_check=True, oldest=int(time.time()))

    async def _enough_servers(self, kept: Sequence[asyncio.Task[int]]) -> None:
        """Returns never; raises what the last server ended with when fewer are left than there are stages."""
        stages = len(self.plan.settings.config.stages)
        left = len(kept)
        while True:
            ended = await self._lost.get()
            if isinstance(ended, BaseException):
                raise ended
            left -= 1
            if left < stages:
                raise self._reporter.failure(ended)

    def _not_started(self, server: asyncio.Task[int]) -> None:
        """Its fork server is gone, or something that it imports is broken."""
        error = None if server.cancelled() else server.exception()
        if error is not None:
            self._lost.put_nowait(error)

    def _result(self, network: Supervisor, client: RoleCommand, code: int) -> RunSummary:
        folder = self.plan.settings.log_dir
        written = (folder / SUMMARY).exists()
        if code not in (0, USAGE) and written:
            summary = RunSummary.read(folder)
            if summary.failure:  # the model is there, only its judgement is not
                return summary
        ended = network.end_of(client)
        if code != 0 and ended is not None:
            raise self._reporter.failure(ended)
        if not written:
            error = RoleError("the client ended before the run was finished")
            error.log = client.log_path
            raise error
        return RunSummary.read(folder)

    def _server_ended(self, ended: RoleEnded) -> None:
        self._reporter.ended(ended)
        fault = ended.words is not None and ended.words.kind == "fault"
        if fault and ended.words is not None and self._repeats.add(ended.words.sentence):
            self._lost.put_nowait(ended.failure())  # of any servers: it is not the machine of one
        if ended.given_up:
            self._lost.put_nowait(ended)
