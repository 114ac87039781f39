"""A loss that is computed at the trainer gives the steps of the unsplit model; labels do not travel."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.golden.test_auxiliary_loss import batches as sparse_batches
from tests.golden.test_auxiliary_loss import sparse, sparse_config
from tests.golden.test_exactness import batches, config_of, largest_relative_difference
from tests.golden.test_trainer_phases import Scene
from tests.swarm_scene import MemorySwarm
from torch import Tensor

from distqat.distributed import trainer
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.errors import RunFailed
from distqat.tasks.base import Batch

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["sparse"]


class AtTheTrainer:
    """The task of a configuration with its loss at the trainer, and how often that was asked for."""

    loss_at = "trainer"

    def __init__(self, task: Any) -> None:
        self.asked = 0
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def loss(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        self.asked += 1
        loss: Tensor = self._task.loss(outputs, labels)
        return loss


async def compare(config: Any, steps: list[Any]) -> None:
    plain = BaselineTrainer(config, torch.device("cpu"))
    task = AtTheTrainer(build_task(config))
    async with MemorySwarm(config) as swarm:
        swarm.stepper.task = task
        calls: list[str] = []
        for stage in swarm.stages:
            stage.passage = calls.append
        for batch in steps:
            if not swarm.calibrating():
                break
            plain.calibrate(copy.deepcopy(batch))
            await swarm.calibrate(batch)
        for number, batch in enumerate(steps):
            expected = plain.step(copy.deepcopy(batch))
            if number == 2:
                await swarm.abort_a_step(batch)
            result = await swarm.step(batch)
            assert result.loss == pytest.approx(expected, rel=1e-6)
            assert result.scores["count"] == sum(part.size for part in batch)
        theirs = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
        theirs = {n: t for n, t in theirs.items() if t.is_floating_point()}
        assert largest_relative_difference(theirs, swarm.floats()) <= 1e-5
    assert task.asked == (len(steps) + 1) * len(steps[0])
    assert not {"call.labels", "call.train"} & set(calls[-5:])
    assert "call.labels" not in calls


@pytest.mark.parametrize("quantize", [False, True])
async def test_steps_equal_those_of_the_unsplit_model(quantize: bool) -> None:
    config = config_of("mlp", quantize=quantize, max_grad_norm=0.5)
    await compare(config, batches(config, 10))


async def test_stages_with_losses_of_their_own_count_them_in(sparse: None) -> None:
    await compare(sparse_config(), sparse_batches(sparse_config()))


async def test_gradients_add_up_in_the_order_of_the_microbatches() -> None:
    """An attempt that was aborted and repeated leaves the same bits as one that ran once."""
    config = config_of("resnet18", quantize=False)
    states = []
    for aborts in (False, True):
        async with MemorySwarm(config) as swarm:
            swarm.stepper.task = build_task(config)
            for batch in batches(config, 2):
                if aborts:
                    await swarm.abort_a_step(batch)
                await swarm.step(batch)
            states.append(swarm.floats())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


async def test_the_trainer_of_a_swarm_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("mlp", quantize=False)
    task = AtTheTrainer(build_task(config))
    monkeypatch.setattr(trainer, "build_task", lambda config: task)
    (parts,) = batches(config, 1)
    names = parts[0].labels
    labels = {name: torch.cat([part.labels[name] for part in parts]) for name in names}
    batch = Batch({"x": torch.cat([part.inputs["x"] for part in parts])}, labels, len(labels["y"]))
    async with MemorySwarm(config) as swarm:
        scene = Scene(swarm)
        await scene.train(0, batch)
        assert task.asked == config.model_pipeline.microbatches
        (step,) = scene.steps()
        assert step["loss"] == pytest.approx(2.3, abs=0.3)
        assert [stage.replica.step for stage in swarm.stages] == [1, 1]


async def test_a_loss_that_fails_ends_the_run_and_leaves_nothing_open() -> None:
    config = config_of("mlp", quantize=False)
    task = AtTheTrainer(build_task(config))
    task.loss = lambda outputs, labels: outputs["logits"].mean()  # type: ignore[method-assign]
    async with MemorySwarm(config) as swarm:
        swarm.stepper.task = task
        (batch,) = batches(config, 1)
        with pytest.raises(RunFailed, match="the loss of task 'cv' fails at the trainer: KeyError"):
            await swarm.step(batch)
        swarm.stepper.task = None
        await swarm.step(batch)
        assert [stage.replica.step for stage in swarm.stages] == [1, 1]
