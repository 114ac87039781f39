"""A trainer that plays asks its servers; when one dies in the middle of a rollout it asks another."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.failover.memory_scene import Driver
from tests.swarm_scene import MemorySwarm

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import check_model
from distqat.distributed.trainer import Trainer
from distqat.distributed.training.baseline_batches import batch_feed
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.distributed.training.batch_source import BatchFeed, StoppedWaiting
from distqat.distributed.training.rollout import RolloutFeed
from distqat.process import RoleParameters


def config_of(**options: Any) -> Config:
    played = {"environments": 4, "horizon": 16, "epochs": 2, **options}
    stage = {"in_features": 4, "num_actions": 2, "hidden": 8}
    return Config.model_validate(
        {
            "experiment_prefix": "rollouts",
            "seed": 3,
            "data": {"dataset_name": "CartPole-v1", "task_type": "rl", "options": played},
            "diloco": {"inner_optim": {"type": "adam", "adam_lr": 1e-2}, "batch_size_per_step": 32},
            "model_pipeline": {
                "pipeline": [{"model_name": f"ppo.{name}", **stage} for name in ("front", "back")],
                "microbatches": 2,
            },
            "quant": {"enabled": False},
        }
    )


def trainer_over(swarm: MemorySwarm, driver: Driver) -> Trainer:
    """A real trainer whose directory is what the driver knows."""
    peer: Any = SimpleNamespace(
        transport=swarm.trainer, directory=None, host="", identity=SimpleNamespace(peer="trainer")
    )
    sink: Any = SimpleNamespace(write=lambda record: None)
    trainer = Trainer(swarm.config, peer, 0, None, sink)
    watch: Any = SimpleNamespace(snapshot=driver._snapshot)
    trainer._watch = trainer._routes._watch = watch
    return trainer


async def train(swarm: MemorySwarm, driver: Driver, feed: BatchFeed, steps: int) -> None:
    for _ in range(steps):
        lease = await feed.next(32)
        await driver.train(lease.batch.microbatches(2))
        await feed.consumed(lease.batch_id)


async def test_a_swarm_plays_and_learns_as_the_baseline_does() -> None:
    config = config_of()
    check_model(config)
    plain = BaselineTrainer(config, torch.device("cpu"))
    async with batch_feed(config, plain.answer, RoleParameters()) as own:
        assert isinstance(own, RolloutFeed)
        for _ in range(8):  # two rollouts of 64 samples, twice
            lease = await own.next(32)
            plain.train(plain.phases([lease.batch]))
            await own.consumed(lease.batch_id)
    async with MemorySwarm(config) as swarm:
        driver = Driver(swarm)
        await train(swarm, driver, trainer_over(swarm, driver)._data, 8)
        found = swarm.floats()
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(tensor, found[name.removeprefix("stages.")], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dead", ["front.0.0.0", "back.0.0.0"])
async def test_a_server_that_dies_in_a_rollout_is_replaced(dead: str) -> None:
    async with MemorySwarm(config_of(), replicas=2) as swarm:
        driver, asked = Driver(swarm), {"before": 0, "after": 0}
        trainer = trainer_over(swarm, driver)

        def passage(name: str) -> None:
            asked["before"] += name == "call.evaluate"
            if asked["before"] == 9:
                driver.kill(dead)
                raise asyncio.CancelledError

        swarm.stage(dead).passage = passage
        other = swarm.stage(dead.replace("0.0.0", "0.1.0"))
        other.passage = lambda name: asked.update(after=asked["after"] + (name == "call.evaluate"))
        await train(swarm, driver, trainer._data, 4)
        assert asked["before"] == 9  # the fault fired
        assert asked["after"] == 17 - 8  # what it did not answer, and the rest of the rollout
        driver.check()


async def test_a_trainer_that_is_stopped_while_nobody_serves_ends() -> None:
    async with MemorySwarm(config_of()) as swarm:
        driver = Driver(swarm)
        trainer = trainer_over(swarm, driver)
        trainer._routes._router.failed(driver._snapshot.servers[0].expert, time.monotonic())
        watch: Any = SimpleNamespace(
            snapshot=driver._snapshot.__class__(driver._snapshot.stages, ()),
            next_change=asyncio.Event().wait,
        )
        trainer._watch = trainer._routes._watch = watch
        asking = asyncio.ensure_future(trainer._data.next(32))
        trainer._stop.set()
        with pytest.raises(StoppedWaiting):
            await asyncio.wait_for(asking, 5)
