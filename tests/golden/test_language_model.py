"""A GPT-2 in three stages over the swarm's steps is the unsplit loop: the same parameters and losses."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.swarm_scene import MemorySwarm

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_task, check_model
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.tasks.base import Batch

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {"n_layer": 5, "n_embd": 16, "n_head": 2, "n_positions": 16, "vocab_size": 257, "dropout": 0.0}
CUTS = {"head": [0, 1], "body": [1, 4], "tail": [4, 5]}
STEPS = 5


def config() -> Config:
    pipeline = [{"model_name": f"distilgpt2.{name}", "layers": cut, **TINY} for name, cut in CUTS.items()]
    return Config.model_validate(
        {
            "experiment_prefix": "language",
            "seed": 7,
            "data": {"dataset_name": "python_docs", "task_type": "llm", "sequence_length": 12},
            "diloco": {"inner_optim": {"type": "adamw", "adam_lr": 1e-3}, "max_grad_norm": 0.5},
            "model_pipeline": {"pipeline": pipeline, "microbatches": 3},
            "quant": {"enabled": False},
        }
    )


def batches(config: Config) -> list[list[Batch]]:
    task = build_task(config)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 31, (STEPS, 8, 13), generator=generator)
    return [task.collate([{"tokens": row} for row in step]).microbatches(3) for step in tokens]


async def test_steps_equal_a_plain_loop() -> None:
    run = config()
    check_model(run)
    plain = BaselineTrainer(run, torch.device("cpu"))
    async with MemorySwarm(run) as swarm:
        for number, batch in enumerate(batches(run)):
            expected = plain.step(copy.deepcopy(batch))
            if number == 2:
                await swarm.abort_a_step(batch)
            result = await swarm.step(batch)
            assert result.loss == pytest.approx(expected, rel=1e-6)
            assert result.scores["tokens"] == 8 * 12
        state = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
        reached = swarm.floats()
    assert reached.keys() == state.keys()
    worst = max(float((tensor - reached[name]).abs().max()) for name, tensor in state.items())
    print(f"largest parameter difference after {STEPS} steps: {worst:.2e}")
    assert worst <= 1e-6
