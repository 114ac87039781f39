"""Faults at named points inside one process, and a trainer that runs a step until it is committed."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.swarm_scene import AT, MemorySwarm

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.serving import microbatches, round_exchange, round_member, step_service
from distqat.distributed.training.step_driver import StepResult
from distqat.errors import SwarmError
from distqat.protocol.hop import Hop
from distqat.tasks.base import Batch
from distqat.topology.expert import ExpertId
from distqat.topology.routing import Router

TRAINER = "trainer"


def mlp(**diloco: Any) -> Config:
    """A small perceptron in two stages."""
    return Config.model_validate(
        {
            "experiment_prefix": "failover",
            "seed": 5,
            "data": {"dataset_name": "digits", "img_size": 8, "num_channels": 1},
            "diloco": {
                "inner_optim": {"type": "adam", "adam_lr": 2e-3},
                "inner_steps": 1000,
                "outer_steps": 1,
                **diloco,
            },
            "model_pipeline": {
                "pipeline": [
                    {"model_name": f"mlp.{stage}", "num_classes": 10, "hidden": 16}
                    for stage in ("front", "back")
                ],
                "microbatches": 3,
            },
            "quant": {"enabled": False},
        }
    )


def batches(config: Config, count: int, seed: int = 3) -> list[list[Batch]]:
    """`count` batches of 12 random pictures, cut into microbatches."""
    task, generator = build_task(config), torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        images = torch.rand(12, 1, 8, 8, generator=generator)
        labels = torch.randint(0, 10, (12,), generator=generator)
        samples = [{"image": i, "label": int(y)} for i, y in zip(images, labels, strict=True)]
        made.append(task.collate(samples).microbatches(config.model_pipeline.microbatches))
    return made


@dataclass
class Fault:
    """At the `hit`-th passage of `point` by `at` a peer dies, `at` itself unless `victim` says whom."""

    point: str
    at: str
    hit: int = 1
    victim: str = ""
    goes_on: bool = False  # what runs at `at` is not ended by it
    passed: int = 0
    fired: bool = False

    def passage(self, point: str, at: str, kill: Callable[[str], None]) -> None:
        if point != self.point or at != self.at:
            return
        self.passed += 1
        if self.passed != self.hit:
            return
        self.fired = True
        kill(self.victim or self.at)
        if not self.goes_on:
            raise asyncio.CancelledError  # what runs here ends: this peer died, or the one that had asked


def arm(patch: pytest.MonkeyPatch, kill: Callable[[str], None], *faults: Fault) -> Callable[[str], None]:
    """Arm the failpoints of this process; returns the passage of points that a scene has of its own."""

    def passage(point: str) -> None:
        for fault in faults:
            fault.passage(point, AT.get(), kill)

    for module in (round_member, round_exchange, microbatches, step_service):
        patch.setattr(module, "failpoint", passage)
    return passage


@dataclass
class Ledger:
    """What became of every attempt at a step, by stage, as the trainer and the replicas saw it."""

    sent: Counter[str] = field(default_factory=Counter)
    applied: Counter[str] = field(default_factory=Counter)
    aborted: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    frozen: Counter[str] = field(default_factory=Counter)

    def check(self, swarm: MemorySwarm, dead: set[str]) -> None:
        """I2: sent = applied + frozen + aborted + lost; each step 0 or 1 times at each stage."""
        for stage in swarm.config.stages:
            stood = self.applied[stage] + self.frozen[stage]
            assert self.sent[stage] == stood + self.aborted[stage] + self.lost[stage]
            by_step: Counter[str] = Counter()
            for server in swarm.stages:
                if server.replica.stage == stage:
                    by_step.update(server.applied)
                    if server.uid not in dead:
                        assert server.steps.tally.counts["applied"] == sum(server.applied.values())
            assert all(count <= 1 for count in by_step.values()), by_step
            # One that died after it applied and before it answered is counted lost: it took the step along.
            assert 0 <= sum(by_step.values()) - self.applied[stage] <= self.lost[stage]


class Driver:
    """Takes batches through a MemorySwarm as a trainer does: records of the dead stay until a call fails."""

    def __init__(self, swarm: MemorySwarm) -> None:
        self.swarm = swarm
        self.ledger = Ledger()
        self.dead: set[str] = set()
        self.attempts: list[SwarmError] = []  # what the failed ones failed with
        self._router = Router()
        self._snapshot = swarm.snapshot()

    def kill(self, peer: str) -> None:
        self.dead.add(peer)
        self.swarm.network.kill(peer)

    async def train(self, batch: list[Batch], frozen: Collection[int] = ()) -> StepResult:
        """One step, over as many routes as it takes."""
        step, attempt = self.swarm.step_number, 0
        while True:
            route = self._router.choose(self._snapshot, 0, time.monotonic())
            hops = [Hop.of(server) for server in route.servers]
            self.ledger.sent.update(self.swarm.config.stages)
            self.swarm.step_number = step
            try:
                result = await self.swarm.step(batch, attempt, hops, frozen=frozen)
            except SwarmError as error:
                self.ledger.aborted.update(self.swarm.config.stages)
                self.attempts.append(error)
                self._router.failed(ExpertId.parse(error.at or "nobody"), time.monotonic())
                attempt += 1
                continue
            for uid in result.lost:
                self._router.failed(ExpertId.parse(uid), time.monotonic())
            lost = [ExpertId.parse(uid).stage for uid in result.lost]
            self.ledger.lost.update(lost)
            for position, stage in enumerate(self.swarm.config.stages):
                stood = self.ledger.frozen if position in frozen else self.ledger.applied
                stood.update([stage] * (stage not in lost))
            assert math.isfinite(result.loss)
            return result

    def check(self) -> None:
        self.ledger.check(self.swarm, self.dead)


def state(swarm: MemorySwarm, uid: str) -> dict[str, torch.Tensor]:
    """A copy of everything a replica's next step depends on: parameters, buffers, inner moments."""
    replica = swarm.stage(uid).replica
    found = {name: tensor.clone() for name, tensor in replica.module.state_dict().items()}
    for number, (_, slots) in enumerate(replica.optimizer.state.items()):
        found |= {f"{number}/{key}": torch.as_tensor(value).clone() for key, value in slots.items()}
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """To the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
