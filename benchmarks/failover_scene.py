"""What the figures of benchmarks/failover.py share: a swarm to do harm to, and how a figure tells."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distqat.config import load_config
from distqat.drill.acts import SwarmWatch
from distqat.drill.drill_swarm import DrillSwarm, ServerLife
from distqat.drill.verdict import Evidence, judge
from distqat.failpoints import ENVIRONMENT_VARIABLE
from distqat.launch.launcher_roles import LauncherSettings
from distqat.launch.warm_processes import WarmForkServers
from distqat.process import RestartPolicy

CONFIG = "configs/resnet18.yaml"
STAGES = ("front", "back")
BOUND_S = 120.0  # of whatever is waited for: beyond it a figure fails
ALWAYS = RestartPolicy(crashes=10_000, max_delay_s=0.2)  # somebody kills it on purpose


@dataclass(frozen=True)
class Row:
    """One line of the table: what was wanted and what came out; `good` None: no goal, just told."""

    what: str
    goal: str
    measured: str
    good: bool | None = None


@dataclass
class Figure:
    """One figure: rows for people, `raw` for whoever wants to know more. `save` after each change."""

    number: int
    title: str
    rows: list[Row] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    changed: Callable[[], None] = lambda: None
    say: Callable[[str], None] = lambda line: None

    def record(self) -> dict[str, Any]:
        rows = [vars(row) for row in self.rows]
        return {
            "figure": self.number,
            "title": self.title,
            "complete": self.complete,
            "rows": rows,
            **self.raw,
        }


@dataclass(frozen=True)
class Counts:
    """How much of everything; the defaults are what the issue asks for."""

    seed: int = 0
    kills: int = 50
    lost_stages: int = 5
    joins: int = 5
    cold_joins: int = 3
    width: float = 0.52
    churn_s: float = 600.0
    kill_every_s: float = 10.0
    undisturbed_s: float = 120.0
    undisturbed_runs: int = 3
    rounds: int = 300
    inner_steps: int = 12
    checkpoint_kills: int = 200
    role_kills: int = 20


@dataclass
class Scene:
    """A running swarm with two replicas of each of two stages."""

    swarm: DrillSwarm
    watch: SwarmWatch
    rng: random.Random
    folder: Path
    final: Evidence | None = None  # of a swarm that has ended

    async def until(self, what: str, condition: Callable[[], Any], bound_s: float = BOUND_S) -> Any:
        return await self.watch.until(what, condition, bound_s)

    async def add(self) -> ServerLife:
        """A new server, as soon as it serves."""
        replica = await self.swarm.add_server()
        await replica.serves(BOUND_S)
        return replica

    async def used(self, replica: ServerLife) -> float:
        """When the first step through a server was applied."""
        step = await self.until(f"a step through {replica.uid}", lambda: self.first_through(replica.peer))
        return float(step["time"])

    def first_through(self, peer: str) -> Mapping[str, Any] | None:
        return next((step for step in self.watch.steps if peer in step["peers"]), None)

    async def recovered(self, pipelines: set[int], since: float, dead: set[str]) -> float:
        """Seconds until every one of these pipelines has applied a step again."""

        def last() -> float:
            found = [self.watch.next_step(pipeline, since, dead) for pipeline in sorted(pipelines)]
            return max(float(step["time"]) for step in found if step) if all(found) else 0.0

        return await self.until(f"a step of pipelines {pipelines} after a death", last) - since

    async def whole(self, since: float) -> None:
        """Every stage has committed a round with two members since a moment."""
        for stage in STAGES:
            await self.until(
                f"a round of {stage} with two members",
                lambda stage=stage: self.watch.together(stage, since),
            )

    def join_of(self, peer: str) -> dict[str, Any]:
        """What a server wrote of its join."""
        servers = self.evidence().servers
        return next(dict(r) for r in servers if r.get("event") == "join" and r["peer"] == peer)

    async def affected(self) -> ServerLife:
        """A server that a pipeline trains through now, at random."""

        def there() -> list[ServerLife]:
            return [each for each in self.swarm.serving() if self.watch.affected({each.peer})]

        return self.rng.choice(await self.until("a server that trains", there))

    def evidence(self) -> Evidence:
        """What the swarm has written until now, or until its end."""
        return self.final or self.swarm.evidence()

    def judge(self) -> dict[str, tuple[bool, str]]:
        """I1 to I4, for a swarm that has ended."""
        return judge(self.evidence())


@contextlib.asynccontextmanager
async def running(
    fork_servers: WarmForkServers, seed: int, name: str, changes: Mapping[str, Any], *, armed: bool = False
) -> AsyncIterator[Scene]:
    """A swarm of ResNet-18 on digits (quarter width unless changed) that trains over two pipelines.

    armed: servers can be given failpoints while they run, in the folder `orders`.
    """
    with tempfile.TemporaryDirectory(prefix="distqat-bench-", ignore_cleanup_errors=True) as given:
        folder = Path(given)
        (folder / "orders").mkdir()
        overrides = {
            "experiment_prefix": f"failover-{name}",
            "log_dir": str(folder / "logs"),
            "param_mirror.checkpoint_dir": str(folder / "checkpoints"),
            "monitor_port": 0,
            "client_port": 0,
            "server_base_port": 0,
            "seed": seed,
            "diloco.outer_steps": 1_000_000,
            **changes,
        }
        settings = LauncherSettings(load_config(CONFIG, overrides), CONFIG, overrides)
        environment = {ENVIRONMENT_VARIABLE: f"@{folder / 'orders'}"} if armed else {}
        swarm = DrillSwarm(settings, fork_servers, environment=environment, network_policy=ALWAYS)
        scene = Scene(swarm, SwarmWatch(settings.log_dir), random.Random(seed), folder)
        try:
            await swarm.start()
            await swarm.start_servers(2 * len(STAGES), BOUND_S)
            await scene.whole(0.0)
            yield scene
        finally:
            await swarm.stop()
            scene.watch.look()
            scene.final = scene.evidence()


def arm(scene: Scene, replica: ServerLife, failpoint: str) -> None:
    """Have a server die at a named point, at its next passage."""
    orders = scene.folder / "orders"
    fresh = orders / f".{replica.role.pid}"
    fresh.write_text(f"{failpoint}:kill9@1")
    fresh.replace(orders / str(replica.role.pid))


def quantile(values: list[float], share: float) -> float:
    """The value below which that share of them lies; of few values the nearest above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
