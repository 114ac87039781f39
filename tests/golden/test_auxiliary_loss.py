"""Losses that stages have of their own count over the swarm as in a plain loop over the unsplit model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from benchmarks.family_configs import FAMILIES, VOCABULARY
from tests.golden.test_exactness import largest_relative_difference
from tests.plugin_scene import forgotten_plugins
from tests.swarm_scene import MemorySwarm
from torch import Tensor, nn

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.distributed.training.batch_phases import PhaseStep
from distqat.distributed.training.event_loop_thread import EventLoopThread
from distqat.models import register_expert_class
from distqat.tasks.base import Batch

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 4
MIXTURE = {
    "model_type": "mixtral", **FAMILIES["mixtral"], "output_router_logits": True, "router_aux_loss_coef": 0.3,
}  # fmt: skip
SPARSITY = 0.05


class Sparse(nn.Module):
    """A layer that is charged for what it gives, in its own loss."""

    def __init__(self, width: int = 12, out: int = 12) -> None:
        super().__init__()
        self.fc = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x.flatten(1))
        self.auxiliary_loss = SPARSITY * y.abs().mean()
        return y


@pytest.fixture
def sparse() -> Iterator[None]:
    with forgotten_plugins():
        for name in ("head", "body", "tail"):
            sizes: dict[str, Any] = {"head": (64, 12), "body": (12, 12), "tail": (12, 10)}
            width, out = sizes[name]
            made = type(name.title(), (Sparse,), {"__init__": _constructor(width, out)})
            register_expert_class(
                f"sparse.{name}", lambda batch_size, size=width: torch.empty(batch_size, size)
            )(made)
        yield


def _constructor(width: int, out: int) -> Any:
    return lambda self: Sparse.__init__(self, width, out)


def sparse_config() -> Config:
    return _config([{"model_name": f"sparse.{name}"} for name in ("head", "body", "tail")], task_type="cv")


def mixture_config() -> Config:
    cuts = {"head": [0, 1], "body": [1, 3], "tail": [3, 5]}
    pipeline = [{"model_name": f"hf.{name}", "config": MIXTURE, "layers": cut} for name, cut in cuts.items()]
    return _config(pipeline, task_type="llm")


def _config(pipeline: list[dict[str, Any]], task_type: str) -> Config:
    return Config.model_validate(
        {
            "seed": 3,
            "data": {"dataset_name": "digits", "task_type": task_type, "sequence_length": 12},
            "diloco": {"inner_optim": {"type": "adamw", "adam_lr": 1e-2}, "max_grad_norm": 0.5},
            "model_pipeline": {"pipeline": pipeline, "microbatches": 3},
            "quant": {"enabled": False},
        }
    )


def batches(config: Config) -> list[list[Batch]]:
    """Cut into three microbatches of unequal size."""
    task = build_task(config)
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(STEPS):
        if task.name == "llm":
            tokens = torch.randint(3, VOCABULARY, (8, 13), generator=generator)
            batch = task.collate([{"tokens": row} for row in tokens])
        else:
            images = torch.rand(8, 1, 8, 8, generator=generator)
            batch = Batch({"x": images}, {"y": torch.arange(8)}, 8)
        made.append(batch.microbatches(3))
    return made


@pytest.mark.parametrize("kind", ["mixture", "sparse"])
async def test_steps_equal_a_plain_loop(kind: str, sparse: None) -> None:
    run = mixture_config() if kind == "mixture" else sparse_config()
    plain = BaselineTrainer(run, torch.device("cpu"))
    async with MemorySwarm(run) as swarm:
        for number, batch in enumerate(batches(run)):
            expected = plain.step(copy.deepcopy(batch))
            if number == 2:
                await swarm.abort_a_step(batch)
            result = await swarm.step(batch)
            assert result.loss == pytest.approx(expected, rel=1e-6)
            assert result.scores["auxiliary_loss"] > 0.01
            assert result.scores["auxiliary_loss"] == pytest.approx(plain.progress.auxiliary, rel=1e-5)
            if kind == "mixture":  # the loss without it is what the metric is made of
                task_alone = result.scores["nll"] / result.scores["tokens"]
                assert result.loss == pytest.approx(task_alone + result.scores["auxiliary_loss"], rel=1e-5)
        theirs = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
        assert largest_relative_difference(theirs, swarm.floats()) <= 1e-5


async def test_a_loss_scale_scales_it_as_well(sparse: None) -> None:
    run = sparse_config()
    (first, *_) = batches(run)
    states = []
    for scale in (1.0, 1024.0):
        async with MemorySwarm(run) as swarm:
            swarm.stepper.scaler.scale = scale
            await swarm.step(copy.deepcopy(first))
            states.append(swarm.floats())
    assert largest_relative_difference(*states) <= 1e-5


async def test_a_frozen_stage_has_no_say(sparse: None) -> None:
    run = sparse_config()
    plain = BaselineTrainer(run, torch.device("cpu"))
    frozen = frozenset({1})
    async with MemorySwarm(run) as swarm:
        for batch in batches(run):
            expected = plain.train([PhaseStep("", copy.deepcopy(batch), frozen)])
            result = await swarm.step(batch, frozen=frozen)
            assert result.loss == pytest.approx(expected, rel=1e-6)
        theirs = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
        assert largest_relative_difference(theirs, swarm.floats()) <= 1e-5


def test_a_custom_loop_adds_it_itself(sparse: None) -> None:
    run, loop = sparse_config(), EventLoopThread()
    plain = BaselineTrainer(run, torch.device("cpu"))
    swarm = loop.run(MemorySwarm(run).__aenter__(), 30)
    model = swarm.custom_model(loop)
    for batch in batches(run):
        expected, found = plain.step(copy.deepcopy(batch)), 0.0
        for part in batch:
            logits = model(part.inputs["x"])
            loss = nn.functional.cross_entropy(logits, part.labels["y"]) + model.auxiliary_loss
            loss = loss * (part.size / 8)
            loss.backward()
            found += float(loss.detach())
        model.step()
        assert found == pytest.approx(expected, rel=1e-6)
    theirs = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
    difference = largest_relative_difference(theirs, swarm.floats())
    (batch, *_) = batches(run)
    model(batch[0].inputs["x"]).sum().mul(0.0).backward()
    unasked = model.step().norm
    loop.run(swarm.__aexit__(), 30)
    loop.close()
    assert difference <= 1e-5
    assert unasked == 0.0  # whoever does not add it leaves it out
