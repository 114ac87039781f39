"""What a failover drill does, act by act: train, kill one, add one, kill two of different pipelines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from distqat.drill.drill_swarm import DrillSwarm, ServerLife
from distqat.drill.timeline import Event, Timeline, TimelineScreen
from distqat.errors import RoleError
from distqat.metrics.record_files import RecordTail

Record = Mapping[str, Any]
LOOK_S = 0.05


@dataclass(frozen=True)
class DrillPace:
    """How long a drill lets the swarm train between its acts, and the bound of everything it waits for."""

    first_s: float = 20.0  # before the first kill
    later_s: float = 10.0
    bound_s: float = 90.0


QUICK = DrillPace(first_s=6.0, later_s=2.0)


class SwarmWatch:
    """The steps and rounds of a running swarm, as its roles write them down."""

    def __init__(self, log_dir: Path) -> None:
        self.steps: list[Record] = []
        self.rounds: list[Record] = []  # as the client saw them end
        self._trainers = RecordTail(log_dir, "trainer")
        self._client = RecordTail(log_dir, "client")

    def look(self) -> None:
        """Read what is new."""
        self.steps += [record for record in self._trainers.fresh() if record.get("event") == "step"]
        self.rounds += [record for record in self._client.fresh() if record.get("event") == "round"]

    async def until(self, what: str, condition: Callable[[], Any], bound_s: float) -> Any:
        """What `condition` returns as soon as that is true. RoleError: not within `bound_s`."""
        deadline = time.monotonic() + bound_s
        while True:
            self.look()
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                raise RoleError(f"not within {bound_s:.0f} s: {what}")
            await asyncio.sleep(LOOK_S)

    def affected(self, peers: Collection[str]) -> set[int]:
        """Pipelines whose newest step went through one of these servers."""
        newest = {int(step["pipeline"]): step for step in self.steps}
        return {pipeline for pipeline, step in newest.items() if not set(peers).isdisjoint(step["peers"])}

    def next_step(self, pipeline: int, since: float, dead: Collection[str]) -> Record | None:
        """The first step of a pipeline that was applied after a death: by others, or lost at the dead one."""
        for step in self.steps:
            if int(step["pipeline"]) != pipeline or step["time"] <= since:
                continue
            through = {uid for uid, peer in zip(step["route"], step["peers"], strict=True) if peer in dead}
            if through <= set(step["lost"]):  # one that was answered before may be written after
                return step
        return None

    def undisturbed_s(self, until: float, count: int = 100) -> float:
        """The median duration of the last steps before a moment."""
        seconds = [float(step["seconds"]) for step in self.steps if step["time"] < until][-count:]
        return median(seconds) if seconds else 0.0

    def together(self, stage: str, since: float, members: int = 2) -> bool:
        """Whether a round of a stage was committed by so many members since a moment."""
        return any(
            r["stage"] == stage and r["committed"] and r["members"] >= members and r["time"] > since
            for r in self.rounds
        )


@dataclass
class Drill:
    """Goes through the acts; whatever was reached stands in the timeline."""

    swarm: DrillSwarm
    pace: DrillPace
    screen: TimelineScreen
    timeline: Timeline = field(default_factory=Timeline)
    _recoveries: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = SwarmWatch(self.swarm.settings.log_dir)
        self._stages = self.swarm.settings.config.stages
        self.swarm.say = self.say

    def say(self, what: str, *, awaited: bool = False) -> Event:
        """Adds an event to the timeline and shows it; `awaited`: its recovery is waited for."""
        event = self.timeline.add(what, awaited=awaited)
        self.screen.refresh(self.timeline)
        return event

    async def run(self) -> None:
        """All acts. RoleError: the swarm did not recover within its bound, or a role could not serve."""
        showing = asyncio.ensure_future(self._show())
        try:
            await self._start()
            await asyncio.sleep(self.pace.first_s)
            first = self._choose()
            await self._kill([first])
            await asyncio.sleep(self.pace.later_s)
            await self._add()
            await asyncio.sleep(self.pace.later_s)
            await self._kill(self._of_different_pipelines())
            await asyncio.sleep(self.pace.later_s)
            self.say("the drill is over; everybody is asked to end")
        finally:
            showing.cancel()
            for task in self._recoveries:
                task.cancel()

    # the acts

    async def _start(self) -> None:
        config = self.swarm.settings.config
        stages = " and ".join(self._stages)
        self.say(f"starting monitor, client and {config.world_size} servers for each of {stages}")
        await self.swarm.start()
        await self.swarm.start_servers(config.world_size * len(self._stages), self.pace.bound_s)
        self.say("all servers serve")
        await self._whole()
        self.say(f"{config.world_size} pipelines train, rounds are committed together")

    async def _kill(self, victims: list[ServerLife]) -> None:
        """SIGKILL; returns when every affected pipeline has applied a step again."""
        self.watch.look()
        peers = {victim.peer for victim in victims}
        pipelines = self.watch.affected(peers) or {int(step["pipeline"]) for step in self.watch.steps[-1:]}
        names = " and ".join(f"{victim.uid} (PID {victim.role.pid})" for victim in victims)
        at = min(self.swarm.kill(victim) for victim in victims)
        through = ", ".join(map(str, sorted(pipelines)))
        event = self.say(f"SIGKILL to {names}; pipeline {through} trained through it", awaited=True)
        found = [await self._recovered(each, at, peers) for each in sorted(pipelines)]
        event.recovery_s = max(found) - at
        self.screen.refresh(self.timeline)
        left = {stage: len(self.swarm.serving(stage)) for stage in self._stages}
        shared = " and ".join(f"{count} of {stage}" for stage, count in left.items())
        self.say(f"pipeline {through} trains on over the survivors: {shared}")

    async def _recovered(self, pipeline: int, since: float, dead: Collection[str]) -> float:
        what = f"a step of pipeline {pipeline} after {', '.join(dead)} died"
        step = await self.watch.until(
            what, lambda: self.watch.next_step(pipeline, since, dead), self.pace.bound_s
        )
        return float(step["time"])

    async def _add(self) -> None:
        """A new server; returns when it takes steps and its stage commits rounds with it."""
        replica = await self.swarm.add_server()
        event = self.say(f"a new server starts, PID {replica.role.pid}", awaited=True)
        await replica.serves(self.pace.bound_s)
        await self.watch.until(
            f"a step through {replica.uid}",
            lambda: any(replica.peer in step["peers"] for step in reversed(self.watch.steps)),
            self.pace.bound_s,
        )
        event.what += f"; it took {replica.uid}, its state from a replica, and trains"
        event.recovery_s = time.time() - replica.started
        self.screen.refresh(self.timeline)
        await self._whole()
        self.say(f"rounds of {replica.stage} are committed by two members again")

    # whom

    def _choose(self) -> ServerLife:
        """A server that a pipeline trains through now."""
        self.watch.look()
        for step in reversed(self.watch.steps):
            replica = self.swarm.of(step["route"][0])
            if replica is not None:
                return replica
        raise RoleError("no step was applied, so there is no pipeline to break")

    def _of_different_pipelines(self) -> list[ServerLife]:
        """A server of every pipeline, each of another stage: what is left makes one new pipeline."""
        self.watch.look()
        newest = {int(step["pipeline"]): step for step in self.watch.steps}
        victims: list[ServerLife] = []
        for pipeline, position in zip(sorted(newest)[:2], (0, len(self._stages) - 1), strict=False):
            stage = self._stages[position]
            uid = next(uid for uid in newest[pipeline]["route"] if uid.partition(".")[0] == stage)
            replica = self.swarm.of(uid)
            if replica is not None and len(self.swarm.serving(stage)) > 1:
                victims.append(replica)
        if not victims:
            raise RoleError("no stage has a server to spare for the last act")
        return victims

    async def _whole(self) -> None:
        """Every stage has committed a round with all its replicas since now."""
        began, members = time.time(), min(2, self.swarm.settings.config.world_size)
        for stage in self._stages:
            await self.watch.until(
                f"a round of {stage} with {members} members",
                lambda stage=stage: self.watch.together(stage, began, members),  # type: ignore[misc]
                self.pace.bound_s,
            )

    async def _show(self) -> None:
        while True:
            self.watch.look()
            steps = self.watch.steps
            if steps:
                rate = sum(int(s["samples"]) for s in steps if s["time"] > time.time() - 2.0) / 2.0
                rounds = {r["stage"]: r["round"] for r in self.watch.rounds if r["committed"]}
                told = ", ".join(f"{stage} {number}" for stage, number in rounds.items())
                self.timeline.now = f"{len(steps)} steps, {rate:.0f} samples/s; rounds: {told or 'none'}"
            self.screen.refresh(self.timeline)
            await asyncio.sleep(0.25)
