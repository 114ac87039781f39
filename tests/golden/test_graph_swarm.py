"""Edges and weights pass through the stages with the features: a swarm trains the unsplit network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.swarm_scene import MemorySwarm

from distqat.config import Config
from distqat.data.open_source import open_source
from distqat.distributed.assembly.stage_factory import build_task, check_model
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.protocol.calls.step_calls import EvaluateBatch
from distqat.swarm.call_messages import exchange
from distqat.swarm.tensor_frame import Message


def config_of() -> Config:
    stage: dict[str, Any] = {"num_classes": 2, "in_features": 34, "hidden": 8, "depth": 3}
    names = ("head", "body", "tail")
    return Config.model_validate(
        {
            "experiment_prefix": "graph",
            "data": {
                "dataset_name": "karate",
                "task_type": "node_pred",
                "options": {"neighbours": [4, 2, 1]},
            },
            "diloco": {"inner_optim": {"type": "adam", "adam_lr": 1e-2}, "max_grad_norm": 1.0},
            "model_pipeline": {
                "pipeline": [{"model_name": f"gcn.{name}", **stage} for name in names],
                "microbatches": 3,
            },
            "quant": {"enabled": False},
        }
    )


async def test_a_pipeline_of_stages_is_the_unsplit_network() -> None:
    config = config_of()
    check_model(config)
    task, source = build_task(config), open_source(config.data, seed=0)
    plain = BaselineTrainer(config, torch.device("cpu"))
    async with MemorySwarm(config) as swarm:
        for _ in range(4):
            batch = task.collate([item.sample for item in source.take(4)]).microbatches(3)
            expected = plain.step(batch)
            result = await swarm.step(batch)
            assert result.loss == pytest.approx(expected, rel=1e-5)
            assert result.scores["nodes"] == 4
        for name, tensor in plain.model.state_dict().items():
            torch.testing.assert_close(tensor, swarm.floats()[name.removeprefix("stages.")])
        whole = task.collate(list(source.heldout()))
        link = await swarm.trainer.link(swarm.hops[0].address)
        request = EvaluateBatch(tuple(swarm.hops[1:]), 5.0)
        _, reply = await exchange(link, request, Message(tensors=whole.inputs), timeout=5.0)
        with torch.no_grad():
            outputs = plain.model.eval().outputs(*whole.inputs.values())
        torch.testing.assert_close(reply.tensors["x"], outputs["x"])


async def test_edges_and_weights_get_no_gradient() -> None:
    """Weights are floats, but they only pass through: their gradient is neither computed nor sent."""
    config = config_of()
    task, source = build_task(config), open_source(config.data, seed=0)
    batch = task.collate([item.sample for item in source.take(2)])
    async with MemorySwarm(config) as swarm:
        replica = swarm.stages[0].replica
        replica.begin("seed")
        outputs = replica.forward(0, batch.inputs, frozenset())
        assert (list(outputs.tensors), outputs.needs_grad) == (["x", "edges", "weights"], {"x"})
        replica.abort()
