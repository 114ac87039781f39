"""One run on this machine: its monitor, its client and its servers, from the first port to the summary."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distqat.distributed.process import (
    Ended,
    PortClaim,
    RestartPolicy,
    RoleCommand,
    RoleProcess,
    Supervisor,
    complaint,
)
from distqat.distributed.process.restarts import USAGE
from distqat.distributed.process.supervisor import ending
from distqat.environment import SPELL
from distqat.errors import ConfigError, RoleError
from distqat.launch.display import Display
from distqat.launch.feed import StatusFeed
from distqat.launch.folder import SUMMARY, complaints
from distqat.launch.plan import Plan
from distqat.launch.progress import Frame, Pace, Reading
from distqat.launch.roles import (
    OLDEST,
    READY_S,
    RESUME,
    STOP_GRACE_S,
    Settings,
    claim_role_log,
    keep_until_ready,
    role_command,
)
from distqat.launch.servers import plan_servers
from distqat.launch.summary import Summary
from distqat.launch.warm import Zygotes

LOOK_EVERY_S = 0.25  # how often the display moves; the client is asked as often
LEAVE_S = 5.0  # for servers to end by themselves once the run is finished
RUN_LOCALLY = "DISTQAT_RUN_LOCALLY"
SERVERS_CHECK = "DISTQAT_SERVERS_CHECK"
SAMPLES = "DISTQAT_SAMPLES"
_CLIENT = RestartPolicy(crashes=2)  # somebody waits for the run: tell early that it cannot work


@dataclass
class LocalRun:
    """Starts the roles of a plan, shows how they do, ends them."""

    plan: Plan
    zygotes: Zygotes
    display: Display
    began: float = field(default_factory=time.monotonic)
    _phase: str = "starting the monitor"
    _over: str = ""  # what is still to be done once the client has ended
    _lost: asyncio.Queue[Ended] = field(default_factory=asyncio.Queue)

    async def run(self, stop: asyncio.Event) -> Summary | None:
        """The summary of the finished run; None: it was stopped. RoleError: what failed and where to read."""
        heard: dict[str, Any] = {"on_end": self._ended, "on_notice": self._notice}
        network = Supervisor(self.zygotes.network, **heard)
        servers = Supervisor(self.zygotes.servers, **heard) if self.plan.servers else None
        feed = StatusFeed(self.plan.settings.config.experiment_prefix)
        work = asyncio.ensure_future(self._train(network, servers, feed))
        show = asyncio.ensure_future(self._show(feed))
        asked = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({work, show, asked}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                self.display.clear()
                self._say(f"stopped before the run was finished; logs in {self.plan.settings.log_dir}/")
                return None
            if show.done():  # it never returns: only an error ends it
                show.result()
            return work.result()
        finally:
            for task in (work, show, asked):
                task.cancel()
            self.display.clear()
            await asyncio.gather(work, show, return_exceptions=True)
            await feed.close()
            each = [supervisor for supervisor in (network, servers) if supervisor is not None]
            await asyncio.gather(*(supervisor.stop(STOP_GRACE_S) for supervisor in each))
            self.plan.release()

    async def _train(self, network: Supervisor, servers: Supervisor | None, feed: StatusFeed) -> Summary:
        settings, kept = self.plan.settings, list[asyncio.Task[int]]()
        monitor = self._command("monitor", self.plan.monitor_port)
        _, said = await keep_until_ready(network, monitor)
        peers = known_peers(said, settings)
        client = self._command("client", self.plan.client_port, peers, self._client_environment())
        self._phase = "starting the client and the servers" if servers else "starting the client"
        following = list[asyncio.Task[None]]()

        def follow(role: RoleProcess) -> None:
            following.append(asyncio.create_task(self._follow(role, feed)))

        training = network.start(client, _CLIENT, follow)
        if servers is not None:
            joined = replace(
                settings,
                config=settings.config.model_copy(update={"initial_peers": peers}),
                overrides={**settings.overrides, "initial_peers": ",".join(peers)},
            )
            plans = plan_servers(joined, self.plan.servers)
            kept = [servers.start(plan.command) for plan in plans]
        enough = asyncio.create_task(self._enough_servers(kept))
        try:
            await asyncio.wait({training, enough}, return_when=asyncio.FIRST_COMPLETED)
            if not training.done():
                enough.result()
            summary = self._result(training.result(), client)
            self._over = "the servers are leaving"
            if kept:
                await asyncio.wait(kept, timeout=LEAVE_S)
            return summary
        finally:
            for task in (enough, *following):
                task.cancel()

    def _command(
        self, kind: str, port: PortClaim, peers: Sequence[str] = (), env: dict[str, str] | None = None
    ) -> RoleCommand:
        changes: dict[str, Any] = {f"{kind}_port": port.port}
        if peers:
            changes["initial_peers"] = ",".join(peers)
        log = claim_role_log(self.plan.settings, kind)
        return role_command(
            kind, self.plan.settings, log, changes=changes, env={**port.environment(), **(env or {})}
        )

    def _client_environment(self) -> dict[str, str]:
        if self.plan.mode != "baseline":
            start = {RESUME: "1"} if self.plan.resume else {OLDEST: str(int(time.time()))}
            return {SERVERS_CHECK: "1", **start}
        samples = {} if self.plan.samples is None else {SAMPLES: str(self.plan.samples)}
        return {RUN_LOCALLY: "1", **samples}

    async def _follow(self, role: RoleProcess, feed: StatusFeed) -> None:
        """A client that was restarted is another peer."""
        try:
            feed.follow(await role.ready(READY_S))
        except RoleError as error:
            self._say(str(error))
            return
        self._phase = "waiting for the first step"

    async def _enough_servers(self, kept: Sequence[asyncio.Task[int]]) -> None:
        """Returns never; RoleError when servers were given up and fewer are left than there are stages.

        ConfigError when it was their configuration that was refused.
        """
        stages = len(self.plan.settings.config.stages)
        left = len(kept)
        while True:
            ended = await self._lost.get()
            left -= 1
            if left < stages:
                kind = ConfigError if ended.code == USAGE else RoleError
                raise kind(
                    f"{ended.command.name} ended with {ending(ended.code)} ({ended.consequence}), and {left} "
                    f"server(s) are too few for {stages} stages; see {ended.command.log_path}"
                )

    def _result(self, code: int, client: RoleCommand) -> Summary:
        if code != 0:
            for line in complaints(self.plan.settings.log_dir):
                self._say(line)
            kind = ConfigError if code == USAGE else RoleError
            raise kind(f"the client ended with {ending(code)}; see {client.log_path}")
        path = self.plan.settings.log_dir / SUMMARY
        if not path.exists():
            raise RoleError(f"the client ended before the run was finished; see {client.log_path}")
        return Summary.read(path, self.plan.mode)

    def _ended(self, ended: Ended) -> None:
        if ended.code == 0 or ended.consequence == "stopped":
            return
        name, log = ended.command.name, ended.command.log_path
        self._say(f"{name} ended with {ending(ended.code)}: {ended.consequence}; see {log}")
        said = complaint(log) if ended.code > 0 and log and name.startswith("server") else None
        if said:
            self._say(said)
        if name.startswith("server") and ended.consequence.startswith("given up"):
            self._lost.put_nowait(ended)

    def _notice(self, command: RoleCommand, sentence: str) -> None:
        self._say(f"{command.name}: {sentence}")

    def _say(self, line: str) -> None:
        self.display.say(line)
        with self.plan.folder.path.open("a", encoding="utf-8", errors=SPELL) as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    async def _show(self, feed: StatusFeed) -> None:
        config, goal = self.plan.settings.config, self.plan.goal
        stages = config.stages if self.plan.servers else []
        reading, pace, title = Reading(), Pace(goal), f"{config.experiment_prefix} {self.plan.mode}"
        while True:
            status = await feed.ask()
            elapsed = time.monotonic() - self.began
            if status is not None:
                before, reading = reading, Reading.of(status, stages, time.time())
                if before.step == 0 and reading.step > 0:
                    self._say(f"first step after {elapsed:.1f} s")
            left = pace.update(reading, elapsed)
            phase = self._waiting_for(status, reading)
            self.display.show(Frame(title, phase, elapsed, reading, goal, pace.share, left))
            await asyncio.sleep(LOOK_EVERY_S)

    def _waiting_for(self, status: dict[str, Any] | None, reading: Reading) -> str:
        """What the display says instead of, or beside, the figures."""
        if self._over:
            return self._over
        if (reading.round or 0) >= (self.plan.goal.outer_steps or float("inf")):
            return "assembling and judging the model"
        if status is None:
            return "the client does not answer" if reading.step else self._phase
        if reading.wait:
            return reading.wait
        if reading.step == 0:
            there = sum(reading.replicas.values())
            return (
                f"{self._phase}: {there} of {self.plan.servers} servers" if self.plan.servers else self._phase
            )
        return f"nobody serves {', '.join(reading.missing)}" if reading.missing else ""


def known_peers(said: dict[str, Any], settings: Settings) -> list[str]:
    """The monitor's addresses, then those that the user gave. RoleError: the monitor told none."""
    peers = said.get("peers")
    if not isinstance(peers, list) or not peers or not all(isinstance(peer, str) for peer in peers):
        raise RoleError(f"the monitor serves but told no addresses: {said}")
    return [*peers, *(peer for peer in settings.config.initial_peers if peer not in peers)]
