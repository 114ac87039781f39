"""A teacher in rounds: in the committed state, so that joiners get it, and never sent or averaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.failover.memory_scene import batches
from tests.failover.round_scene import Replica, RoundSwarm, one_stage
from tests.failover.test_float_first import IN_FLOAT, float_first
from tests.unit.checkpoint.states import RUN, shard_state
from torch import Tensor, nn

from distqat.checkpoint import CheckpointStore
from distqat.checkpoint.assembled_model import assemble
from distqat.config import Config
from distqat.distributed.assembly.teacher_model import build_served
from distqat.distributed.serving.attempt_work import MicrobatchWeight
from distqat.distributed.serving.committed_state import CommittedState, ReplicaWeights, as_local
from distqat.distributed.serving.replica_state import ReplicaProgress, own_state
from distqat.models.teacher import is_teachers

pytestmark = [pytest.mark.timeout(40), pytest.mark.usefixtures("one_thread")]


def config_of(model: str) -> Config:
    config = one_stage(model, quantize=True)
    return config.model_copy(update={"quant": config.quant.model_copy(update={"teacher": "self"})})


def scores(replica: Replica) -> dict[str, float]:
    """Of a microbatch whose attempt is aborted."""
    (part, *_) = batches(replica.config, 1)[0]
    replica.replica.begin("attempt")
    try:
        return replica.replica.loss(0, part.inputs, frozenset(), part.labels, MicrobatchWeight())[1]
    finally:
        replica.replica.abort()


def teachers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers() if is_teachers(name)}


@pytest.mark.parametrize("model", ["mlp", "resnet18"])
async def test_joiners_get_it_and_rounds_leave_it_alone(model: str, tmp_path: Path) -> None:
    config = config_of(model)
    async with RoundSwarm(config, tmp_path, 2) as swarm:
        founder, joiner = (replica.replica.module for replica in swarm.replicas)
        known = teachers(founder)
        assert int(known["teacher.ready"]) == 1
        for name, tensor in teachers(joiner).items():
            assert torch.equal(tensor, known[name]), name
        for seed in (1, 2):
            assert [record["committed"] for record in await swarm.round(seed)] == [True, True]
        swarm.check()
        member = swarm.replicas[0].member
        sent = swarm.replicas[0].rounds.contribution(member.committed, ReplicaWeights.of(founder))
        assert not [name for name in sent if "teacher" in name]
        for module in (founder, joiner):
            assert all(torch.equal(tensor, known[name]) for name, tensor in teachers(module).items())
        later = await swarm.add()
        assert all(torch.equal(t, known[n]) for n, t in teachers(later.replica.module).items())
        alone = own_state(swarm.replicas[0].replica, ReplicaProgress())
        assert not [name for name in alone if "teacher" in name], "once on disk: with the round"
        committed = member.committed
    restored = build_served(config, "full")
    as_local(CommittedState.from_tensors(committed.round, committed.tensors(), {})).load(restored)
    assert all(torch.equal(tensor, known[name]) for name, tensor in teachers(restored).items())
    state = shard_state(
        0, shared=committed.tensors(), digest=committed.digest, agreement={"stages": ["full"]}
    )
    CheckpointStore(tmp_path / "run", RUN).write("full", state)
    assert not [name for name in assemble(tmp_path / "run").tensors if "teacher" in name]


@pytest.mark.parametrize("before", [1, 2], ids=["before quantizers", "after"])
async def test_self_is_the_anchor_by_which_a_stage_becomes_quantized(before: int, tmp_path: Path) -> None:
    config = float_first()
    config = config.model_copy(update={"quant": config.quant.model_copy(update={"teacher": "self"})})
    async with RoundSwarm(config, tmp_path, 2) as swarm:
        anchors = []
        for number in range(1, 4):
            assert ("distillation_loss" in scores(swarm.replicas[0])) == (number > IN_FLOAT)
            await swarm.round(number)
            await swarm.agreed()
            swarm.check()
            anchors.append(swarm.replicas[0].member.committed.anchor)
            if number == before:
                await swarm.add()
        found = [teachers(replica.replica.module) for replica in swarm.replicas]
    own = {name: f"teacher.stage/{name.replace('.', '/')}" for name in anchors[IN_FLOAT - 1]}
    for each in found:
        assert int(each["teacher.ready"]) == 1
        assert all(torch.equal(each[key], anchors[IN_FLOAT - 1][name]) for name, key in own.items())
    assert not all(torch.equal(anchors[IN_FLOAT][n], anchors[IN_FLOAT - 1][n]) for n in own)


async def test_an_attempt_that_is_aborted_leaves_no_trace(tmp_path: Path) -> None:
    async with RoundSwarm(config_of("resnet18"), tmp_path, 1) as swarm:
        (replica,) = swarm.replicas
        module = replica.replica.module
        before = {
            name: tensor.clone() for name, tensor in (*module.named_buffers(), *module.named_parameters())
        }
        assert scores(replica)["distillation_loss"] >= 0
        after = (*module.named_buffers(), *module.named_parameters())
        assert all(torch.equal(tensor, before[name]) for name, tensor in after)
