"""The last round: weights stand, and all replicas end with the statistics of all batches at these weights."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from tests.failover.memory_scene import batches
from tests.failover.round_scene import Replica, RoundSwarm, one_stage
from tests.swarm_scene import MemorySwarm
from torch import Tensor, nn

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_module, feeds_norms
from distqat.distributed.serving.committed_state import as_local
from distqat.distributed.serving.replica_state import load_own_state, own_state
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.quant import follow_weights, quantizers, tracked_norms
from distqat.tasks.base import Batch

pytestmark = pytest.mark.usefixtures("one_thread")

ROUNDS = 4  # the fewest that measure


def narrow(*stages: str, quantize: bool = True, **diloco: object) -> Config:
    """A ResNet-18 of four channels."""
    whole = one_stage("resnet18", quantize=quantize, outer_steps=ROUNDS, **diloco)
    entries = [{"model_name": f"resnet18.{stage}", "num_classes": 10, "width": 1 / 16} for stage in stages]
    pipeline = {"pipeline": entries, "microbatches": whole.model_pipeline.microbatches}
    return Config.model_validate({**whole.model_dump(exclude={"model_pipeline"}), "model_pipeline": pipeline})


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in module.named_buffers() if n.rpartition(".")[2].startswith("running")}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def expected(module: nn.Module, shown: list[Batch]) -> dict[str, Tensor]:
    """Statistics of these weights over these microbatches, measured by hand."""
    for _, norm in tracked_norms(module):
        norm.reset_running_stats()
        norm.momentum = None
    module.train()
    with torch.no_grad():
        for part in shown:
            module(*part.inputs.values())
    return statistics(module)


def counted(module: nn.Module) -> int:
    return {int(norm.num_batches_tracked) for _, norm in tracked_norms(module)}.pop()  # type: ignore[arg-type]


class CountingSwarm(RoundSwarm):
    """Knows the batches of the last round, after which a member has nothing more to do."""

    async def _ended(self, replica: Replica, count: int) -> None:
        await replica.rounds_ended(count)

    async def last_round(self, seed: int) -> list[Batch]:
        """Its microbatches, those of the first replica first."""
        shown = [batches(self.config, r.steps_due, 100 * seed + i) for i, r in enumerate(self.living)]
        records = await self.round(seed)
        assert all(record["committed"] for record in records), records
        await self.agreed()
        self.check()
        return [part for own in shown for batch in own for part in batch]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("quantize", [True, False])
async def test_replicas_and_a_joiner_end_with_the_statistics_of_the_last_weights(
    tmp_path: Path, quantize: bool
) -> None:
    config = narrow("full", quantize=quantize)
    async with CountingSwarm(config, tmp_path, replicas=2) as swarm:
        for number in range(ROUNDS - 1):
            await swarm.round(number)
        await swarm.agreed()
        joiner = await swarm.add()
        before = joiner.member.committed
        assert [replica.replica.measuring for replica in swarm.replicas] == [True] * 3
        for replica in swarm.replicas:
            own = parameters(replica.replica.module)
            assert equal(before.anchor, {name: own[name] for name in before.anchor})
        if quantize:
            assert {q.state for _, q in quantizers(joiner.replica.module)} == {"frozen"}
        shown = await swarm.last_round(ROUNDS)
        after = swarm.replicas[0].member.committed
        assert after.round == ROUNDS
        assert equal(before.anchor, after.anchor)
        assert equal(before.steps, after.steps)
        module = build_module(config, "full")
        as_local(after).load(module)
        found, total = statistics(module), counted(module)
        alone = 2 * config.diloco.inner_steps * config.model_pipeline.microbatches
        assert alone <= total <= len(shown)  # a joiner takes part with what it has done by then
        for name, tensor in expected(module, shown[:total]).items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.timeout(60)
async def test_what_was_measured_goes_on_after_a_resume(tmp_path: Path) -> None:
    config = narrow("full", inner_steps=3)
    async with RoundSwarm(config, tmp_path, replicas=1) as swarm:
        for number in range(ROUNDS - 1):
            await swarm.round(number)
        (replica,) = swarm.replicas
        await replica.take_steps(1, seed=5)
        other = Replica(config, swarm.network, 7)
        load_own_state(other.replica, own_state(replica.replica, replica.member.progress))
        assert counted(other.replica.module) == config.model_pipeline.microbatches
        assert equal(statistics(other.replica.module), statistics(replica.replica.module))
        await other.steps.close()
        other.compute.stop()


@pytest.mark.timeout(60)
async def test_the_last_round_is_as_short_as_its_purpose(tmp_path: Path) -> None:
    config = narrow("full", inner_steps=5)
    warmup = config.quant.warmup.model_copy(update={"calibrate_batches": 2})
    config = config.model_copy(update={"quant": config.quant.model_copy(update={"warmup": warmup})})
    async with RoundSwarm(config, tmp_path, replicas=1) as swarm:
        for number in range(ROUNDS - 1):
            await swarm.round(number)
        (replica,) = swarm.replicas
        assert replica.replica.step == ROUNDS * 5  # two rounds' steps became one's, so no training is lost
        assert replica.steps_due == 2
        await replica.take_steps(2, seed=9)
        await asyncio.wait_for(replica.rounds_ended(ROUNDS), 20)
        assert replica.member.committed.round == ROUNDS


@pytest.mark.timeout(60)
async def test_a_step_of_standing_weights_moves_no_weight_and_wants_no_gradient() -> None:
    config = narrow("front", "back")
    async with MemorySwarm(config) as swarm:
        for stage in swarm.stages:
            stage.replica.measuring = True
        before = [parameters(stage.replica.module) for stage in swarm.stages]
        stood = [statistics(stage.replica.module) for stage in swarm.stages]
        (batch,) = batches(config, 1)
        result = await swarm.step(batch)
        assert (result.skipped, result.norm) == (False, 0.0)
        assert 0 < result.loss < 10
        for stage, own, old in zip(swarm.stages, before, stood, strict=True):
            assert equal(parameters(stage.replica.module), own)
            assert not equal(statistics(stage.replica.module), old)
            assert stage.replica.step == 1
            assert not stage.replica.optimizer.state


@pytest.mark.timeout(60)
async def test_a_stage_does_not_measure_what_comes_from_one_that_still_trains() -> None:
    config = narrow("front", "back")
    async with MemorySwarm(config) as swarm:
        front, back = (stage.replica for stage in swarm.stages)
        back.measuring = True
        before, stood, trained = parameters(back.module), statistics(back.module), parameters(front.module)
        (batch,) = batches(config, 1)
        await swarm.step(batch)
        assert equal(parameters(back.module), before)
        assert equal(statistics(back.module), stood)
        assert not equal(parameters(front.module), trained)
        front.measuring = True
        await swarm.step(batch)
        assert not equal(statistics(back.module), stood)


def test_stages_that_feed_a_norm() -> None:
    config = narrow("front", "back")
    drawn = torch.random.get_rng_state()
    assert [feeds_norms(config, stage, nn.Identity()) for stage in config.stages] == [True, False]
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert feeds_norms(config, "back", nn.BatchNorm1d(2))
    assert not feeds_norms(one_stage("mlp"), "full", build_module(one_stage("mlp"), "full"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("quantize", [True, False])
def test_the_baseline_measures_in_its_last_steps(quantize: bool) -> None:
    config = narrow("full", quantize=quantize, inner_steps=3)
    assert BaselineTrainer(config, torch.device("cpu"), samples=10 * 32).total_steps == 10
    trainer = BaselineTrainer(config, torch.device("cpu"))
    calibration = batches(config, 9, seed=8)
    while trainer.calibrates:
        trainer.calibrate(calibration.pop())
    shown = batches(config, trainer.total_steps)
    assert len(shown) == ROUNDS * 3 + 3  # no training is lost
    for batch in shown[:-3]:
        trainer.step(batch)
    module = trainer.model.stages["full"]
    follow_weights(module)  # as the round before does: steps of 8 bits are those of the weights
    before = parameters(module)
    phase = trainer.moment.phase
    for batch in shown[-3:]:
        trainer.step(batch)
    assert (phase, trainer.moment.phase) == ("training", "statistics are measured")
    assert equal(parameters(module), before)
    found = statistics(module)
    last = [part for batch in shown[-3:] for part in batch]
    for name, tensor in expected(module, last).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
