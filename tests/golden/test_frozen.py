"""A frozen stage takes part in a step and stays as it was, to the bit; phases equal those of a plain loop."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.failover.memory_scene import equal, state
from tests.golden.test_exactness import batches, config_of, largest_relative_difference
from tests.swarm_scene import MemorySwarm

from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.distributed.training.batch_phases import PhaseStep

pytestmark = pytest.mark.usefixtures("one_thread")
FRONT, BACK = "front.0.0.0", "back.0.0.0"
PHASES = (frozenset({0}), frozenset({1}))  # the back is trained first


@pytest.mark.parametrize(("frozen", "trained"), [(FRONT, BACK), (BACK, FRONT)])
async def test_a_frozen_stage_keeps_every_bit(frozen: str, trained: str) -> None:
    """BatchNorm statistics and inner moments included; it counts no inner step and no samples."""
    config = config_of("resnet18", quantize=False)
    first, second, third = batches(config, 3)
    async with MemorySwarm(config) as swarm:
        await swarm.step(first)
        before = {uid: state(swarm, uid) for uid in (FRONT, BACK)}
        for batch in (second, third):
            await swarm.step(batch, frozen={0 if frozen == FRONT else 1})
        assert equal(before[frozen], state(swarm, frozen))
        assert not equal(before[trained], state(swarm, trained))
        counts = {uid: swarm.stage(uid).steps.tally.counts for uid in (FRONT, BACK)}
        assert (counts[frozen]["applied"], counts[frozen]["frozen"]) == (1, 2)
        assert (counts[trained]["applied"], counts[trained]["frozen"]) == (3, 0)
        stands = [swarm.stage(uid).replica.step for uid in (frozen, trained)]
        assert stands == [1, 3]
        assert [swarm.stage(uid).steps.tally.samples for uid in (frozen, trained)] == [32, 96]
        await swarm.step(first)  # nothing stays frozen
        assert not equal(before[frozen], state(swarm, frozen))


async def test_what_stands_before_trained_stages_gets_no_gradient_back() -> None:
    config = config_of("mlp", quantize=False)
    (batch,) = batches(config, 1)
    async with MemorySwarm(config) as swarm:
        back = swarm.stage(BACK).replica
        wanted, loss = [], back.loss

        def asked(microbatch, tensors, needs_grad, labels, weighing):  # type: ignore[no-untyped-def]
            wanted.append(needs_grad)
            return loss(microbatch, tensors, needs_grad, labels, weighing)

        back.loss = asked  # type: ignore[method-assign]
        for frozen in PHASES:
            await swarm.step(batch, frozen=frozen)
        assert wanted == [frozenset()] * 4 + [frozenset({"x"})] * 4


@pytest.mark.parametrize(
    ("model", "max_grad_norm", "quantize"),
    [("mlp", 0.5, False), ("mlp", 0.5, True), ("resnet18", None, False)],
    ids=["mlp", "mlp quantized", "resnet18"],
)
async def test_phases_equal_those_of_a_plain_loop(
    model: str, max_grad_norm: float | None, quantize: bool
) -> None:
    """Clipping counts the trained stages only; the learning rate goes by the steps of each stage."""
    config = config_of(
        model, quantize=quantize, max_grad_norm=max_grad_norm, lr_schedule="cosine", warmup_steps=3
    )
    plain = BaselineTrainer(config, torch.device("cpu"))
    async with MemorySwarm(config) as swarm:
        for batch in batches(config, 8) if quantize else ():
            if plain.model.calibrating:
                plain.calibrate(batch)
                await swarm.calibrate(batch)
        for batch in batches(config, 5):
            steps = [PhaseStep(str(n), copy.deepcopy(batch), frozen, n) for n, frozen in enumerate(PHASES)]
            expected = plain.train(steps)
            found = [(await swarm.step(batch, frozen=frozen)).loss for frozen in PHASES]
            assert sum(found) == pytest.approx(expected, rel=1e-5)
        theirs = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
        theirs = {name: tensor for name, tensor in theirs.items() if tensor.is_floating_point()}
        assert largest_relative_difference(theirs, swarm.floats()) <= 1e-5
        assert [server.replica.step for server in swarm.stages] == [5, 5]


async def test_an_aborted_frozen_attempt_thaws() -> None:
    config = config_of("resnet18", quantize=False)
    first, second = batches(config, 2)
    async with MemorySwarm(config) as undisturbed, MemorySwarm(config) as disturbed:
        for swarm in (undisturbed, disturbed):
            await swarm.step(first)
        disturbed.fail.add("prepare")
        with pytest.raises(Exception, match="as the test wants"):
            await disturbed.step(second, attempt=0, frozen={0})
        disturbed.step_number -= 1
        for swarm in (undisturbed, disturbed):
            await swarm.step(second)
        assert all(equal(state(undisturbed, uid), state(disturbed, uid)) for uid in (FRONT, BACK))
