"""Rounds in float, and the one at which quantizers appear: in all replicas at once, whatever happens then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.failover.memory_scene import Fault, arm, batches, equal
from tests.failover.round_scene import Replica, RoundSwarm, one_stage
from tests.swarm_scene import MemorySwarm

from distqat.config import Config
from distqat.distributed.serving.committed_state import CommittedState, as_local
from distqat.distributed.serving.replica_state import load_own_state, own_state
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.errors import BadContribution
from distqat.quant import ActivationQuantizer, activate, quantizers

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("one_thread")]
ROUNDS, IN_FLOAT = 6, 2
VICTIM = "full.0.1.0"


def float_first(model: str = "mlp", **diloco: object) -> Config:
    config = one_stage(model, quantize=True, outer_steps=ROUNDS, **diloco)
    return with_share(config, IN_FLOAT / ROUNDS)


def with_share(config: Config, share: float) -> Config:
    warmup = config.quant.warmup.model_copy(update={"float_share": share, "calibrate_batches": 2})
    return config.model_copy(update={"quant": config.quant.model_copy(update={"warmup": warmup})})


def states(replica: Replica) -> set[str]:
    return {quantizer.state for _, quantizer in quantizers(replica.replica.module)}


def counted(replica: Replica) -> bool:
    tensors = [q for _, q in quantizers(replica.replica.module) if isinstance(q, ActivationQuantizer)]
    return any(bool(quantizer.counts.any()) for quantizer in tensors)


def moments_of_steps(replica: Replica) -> bool:
    """Whether the inner optimizer knows steps of quantizers."""
    own = dict(replica.replica.module.named_parameters())
    return any(own[name] in replica.replica.optimizer.state for name in replica.replica.steps)


@pytest.mark.parametrize("overlap", [False, True], ids=["paused", "overlapped"])
@pytest.mark.parametrize("model", ["mlp", "resnet18"])
async def test_quantizers_appear_in_all_replicas_at_one_round(
    tmp_path: Path, model: str, overlap: bool
) -> None:
    async with RoundSwarm(float_first(model, overlap=overlap), tmp_path, replicas=2) as swarm:
        assert all(not replica.replica.calibrating for replica in swarm.replicas)
        phases = []
        for number in range(1, 4):
            assert not any(counted(replica) or moments_of_steps(replica) for replica in swarm.replicas)
            start = dict(swarm.replicas[0].member.committed.steps)
            phases.append(swarm.replicas[0].replica.moment.phase)
            records = await swarm.round(number)
            assert [record["committed"] for record in records] == [True] * 2
            await swarm.agreed()
            swarm.check()
            committed = swarm.replicas[0].member.committed
            assert (committed.round >= IN_FLOAT) == (not swarm.replicas[0].rounds.in_float(committed))
            if number < IN_FLOAT:
                assert equal(start, dict(committed.steps))
            assert [states(r) for r in swarm.replicas] == [
                {"calibrating" if number < IN_FLOAT else "active"}
            ] * 2
        assert phases == ["training in float"] * 2 + ["training"]
        assert all(moments_of_steps(replica) for replica in swarm.replicas)


@pytest.mark.parametrize("before", [0, 1, 2], ids=["before it counts", "while it counts", "after it"])
async def test_a_joiner_at_each_side_of_the_boundary(tmp_path: Path, before: int) -> None:
    async with RoundSwarm(float_first(), tmp_path, replicas=2) as swarm:
        for number in range(before):
            await swarm.round(number)
        await swarm.agreed()
        joiner = await swarm.add()
        assert not joiner.replica.calibrating
        assert joiner.replica.in_float == (before < IN_FLOAT)
        assert states(joiner) == {"calibrating" if before < IN_FLOAT else "active"}
        for number in range(before, IN_FLOAT + 1):
            await swarm.round(10 + number)
            await swarm.agreed()
            swarm.check()
        assert swarm.client.records[-1]["members"] == 3
        assert [states(replica) for replica in swarm.replicas] == [{"active"}] * 3


@pytest.mark.parametrize(
    ("point", "commits"),
    [("round.before_contribute", True), ("call.contribution", False), ("round.before_vote", True)],
)
async def test_a_member_dies_in_the_round_that_quantizes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, point: str, commits: bool
) -> None:
    """Where its contribution is in the set and cannot be had, the round is discarded and taken again."""
    fault = Fault(point, VICTIM, hit=3 if point == "call.contribution" else 2)
    async with RoundSwarm(float_first(), tmp_path) as swarm:
        passage = arm(monkeypatch, swarm.kill, fault)
        swarm.client.passage = passage
        for replica in swarm.replicas:
            replica.passage = passage
        await swarm.round(1)
        disturbed = await swarm.round(2)
        assert fault.fired
        assert [record["committed"] for record in disturbed] == [commits] * 2
        swarm.check()
        if not commits:
            assert [states(replica) for replica in swarm.living] == [{"calibrating"}] * 2
            assert all(counted(replica) for replica in swarm.living), "the next attempt covers both"
            assert [record["committed"] for record in await swarm.round(3)] == [True] * 2
        swarm.check()
        assert [states(replica) for replica in swarm.living] == [{"active"}] * 2
        assert [record["committed"] for record in await swarm.round(4)] == [True] * 2
        swarm.check()


async def test_who_misses_the_round_has_its_quantizers_from_the_others(tmp_path: Path) -> None:
    async with RoundSwarm(float_first(), tmp_path) as swarm:
        await swarm.round(1)
        late = swarm.replicas[1]
        result = late.rounds.result

        def unlucky(shared: CommittedState, *given: object) -> CommittedState:
            late.rounds.result = result  # type: ignore[method-assign]
            raise BadContribution("as the test wants")

        late.rounds.result = unlucky  # type: ignore[assignment, method-assign]
        await swarm.round(2)
        await swarm.agreed()
        swarm.check()
        assert states(late) == {"active"}
        assert not late.replica.in_float


@pytest.mark.parametrize("before", [1, 2])
async def test_a_run_goes_on_from_a_checkpoint_at_each_side(tmp_path: Path, before: int) -> None:
    """What was counted by then is part of what a replica writes at a checkpoint step."""
    async with RoundSwarm(float_first(), tmp_path, replicas=1) as swarm:
        for number in range(before):
            await swarm.round(number)
        (replica,) = swarm.replicas
        await replica.take_steps(1, seed=7)
        other = Replica(swarm.config, swarm.network, 7)
        shared = replica.member.committed
        again = CommittedState.from_tensors(shared.round, shared.tensors(), {})
        as_local(again).load(other.replica.module)
        load_own_state(other.replica, own_state(replica.replica, replica.member.progress))
        assert counted(other) == counted(replica) == (before == 1)
        assert equal(other.weights(), replica.weights())
        assert other.rounds.in_float(again) == (before == 1)
        await other.steps.close()
        other.compute.stop()


async def test_a_stage_that_is_quantized_first_does_not_stop_the_others() -> None:
    """Rounds end at each stage by themselves: codes travel from a stage as soon as it makes them."""
    config = with_share(one_stage("resnet18", quantize=True, outer_steps=ROUNDS), IN_FLOAT / ROUNDS)
    entries = [
        {"model_name": f"resnet18.{stage}", "num_classes": 10, "width": 0.25} for stage in ("front", "back")
    ]
    pipeline = config.model_pipeline.model_validate({"pipeline": entries, "microbatches": 3})
    config = config.model_copy(update={"model_pipeline": pipeline})
    async with MemorySwarm(config) as swarm:
        assert not swarm.calibrating()
        front, back = (stage.replica for stage in swarm.stages)
        first, second, third = batches(config, 3)
        await swarm.step(first)
        for replica, batch in ((front, second), (back, third)):
            activate(replica.module)
            result = await swarm.step(batch)
            assert 0 < result.loss < 10
            sent = front.evaluate(first[0].inputs)
            assert [form.codec for form in sent.coded.values()] == ["aligned"]


async def test_the_rate_falls_once_the_run_is_quantized(tmp_path: Path) -> None:
    config = float_first(lr_schedule="cooldown")
    baseline, rates = BaselineTrainer(config, torch.device("cpu")), []
    async with RoundSwarm(config, tmp_path, replicas=1) as swarm:
        (replica,) = swarm.replicas
        shown = iter(batches(config, 100))
        for number in range(ROUNDS):
            await swarm.round(number)
            for _ in range(config.diloco.inner_steps):
                baseline.step(next(shown))
            found = [each.param_groups[0]["lr"] for each in (replica.replica.optimizer, baseline._optimizer)]
            assert found[0] == found[1]
            rates.append(found[0])
    assert rates[:IN_FLOAT] == [config.diloco.inner_optim.lr] * IN_FLOAT
    assert rates[IN_FLOAT:] == sorted(set(rates[IN_FLOAT:]), reverse=True)
    assert rates[-1] == pytest.approx(config.diloco.inner_optim.lr * config.diloco.lr_final)


async def test_who_goes_on_while_a_round_is_awaited_stays_at_its_place(
    tmp_path: Path,
) -> None:
    config = float_first(lr_schedule="cooldown")
    async with RoundSwarm(config, tmp_path, replicas=1) as swarm:
        (replica,) = swarm.replicas
        for number in range(IN_FLOAT - 1):
            await swarm.round(number)
        replica.replica.step = config.diloco.total_steps + 5  # of a member that had to wait for long
        assert replica.replica.position == IN_FLOAT * config.diloco.inner_steps - 1
        assert replica.replica.moment.phase == "training in float"
        await swarm.round(9)
        assert replica.replica.optimizer.param_groups[0]["lr"] == config.diloco.inner_optim.lr
        await swarm.round(10)
        assert states(replica) == {"active"}
        assert replica.replica.moment.phase == "training"


@pytest.mark.parametrize("world", [1, 2])
def test_the_baseline_is_quantized_at_the_same_step(world: int) -> None:
    config = float_first().model_copy(update={"world_size": world})
    trainer = BaselineTrainer(config, torch.device("cpu"))
    steps, per_round = trainer.total_steps, config.diloco.inner_steps * world
    assert steps == per_round * ROUNDS
    seen = []
    for batch in batches(config, steps):
        assert not trainer.calibrates
        trainer.step(batch)
        tensors = [q for _, q in quantizers(trainer.model) if isinstance(q, ActivationQuantizer)]
        counts = max(int(q.batches) for q in tensors)
        seen.append((trainer.moment.phase, {q.state for q in tensors}, counts))
    phases = [phase for phase, _, _ in seen]
    boundary = IN_FLOAT * per_round
    assert phases[:boundary] == ["training in float"] * boundary
    assert "training in float" not in phases[boundary:]
    assert [states for _, states, _ in seen[: boundary - 1]] == [{"calibrating"}] * (boundary - 1)
    assert seen[boundary - 1][1] == {"active"}
    count = config.model_pipeline.microbatches
    assert [n for _, _, n in seen[:boundary]] == [0] * (boundary - per_round) + [
        count * step for step in range(1, per_round)
    ] + [0]
