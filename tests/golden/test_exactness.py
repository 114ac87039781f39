"""A pipeline of servers is the unsplit model: the same parameters after n steps as a plain training loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.swarm_scene import MemorySwarm

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.tasks.base import Batch

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 20


TWO = ("front", "back")


def config_of(
    model: str,
    *,
    quantize: bool,
    stages: tuple[str, ...] = TWO,
    keys: dict[str, Any] | None = None,
    **diloco: Any,
) -> Config:
    extra = {**({"hidden": 32} if model == "mlp" else {"width": 0.25}), **(keys or {})}
    return Config.model_validate(
        {
            "experiment_prefix": "exact",
            "seed": 7,
            "data": {"dataset_name": "digits", "img_size": 16, "num_channels": 1},
            "diloco": {
                "inner_optim": {"type": "adamw", "adam_lr": 1e-3},
                "inner_steps": 1000,
                "outer_steps": 1,
                **diloco,
            },
            "model_pipeline": {
                "pipeline": [{"model_name": f"{model}.{s}", "num_classes": 10, **extra} for s in stages],
                "microbatches": 4,
            },
            "quant": {"enabled": quantize, "warmup": {"float_share": 0}},
        }
    )


def batches(config: Config, count: int) -> list[list[Batch]]:
    task = build_task(config)
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        images = torch.rand(32, 1, 16, 16, generator=generator)
        labels = torch.randint(0, 10, (32,), generator=generator)
        samples = [{"image": i, "label": int(y)} for i, y in zip(images, labels, strict=True)]
        made.append(task.collate(samples).microbatches(config.model_pipeline.microbatches))
    return made


def largest_relative_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    worst = 0.0
    for name, tensor in one.items():
        scale = tensor.abs().max().clamp_min(1e-12)
        worst = max(worst, float((tensor - other[name]).abs().max() / scale))
    return worst


@pytest.mark.parametrize("quantize", [False, True], ids=["float", "quantized"])
@pytest.mark.parametrize(
    ("model", "max_grad_norm"), [("mlp", 0.5), ("mlp", None), ("resnet18", None), ("resnet18", 1.0)]
)
async def test_twenty_steps_equal_a_plain_loop(
    model: str, max_grad_norm: float | None, quantize: bool
) -> None:
    config = config_of(
        model, quantize=quantize, max_grad_norm=max_grad_norm, lr_schedule="cosine", warmup_steps=3
    )
    plain = BaselineTrainer(config, torch.device("cpu"))
    calibration, training = batches(config, 8), batches(config, STEPS)
    async with MemorySwarm(config) as swarm:
        if quantize:
            for batch in calibration:
                if plain.model.calibrating:
                    plain.calibrate(batch)
                    await swarm.calibrate(batch)
        assert swarm.calibrating() is False
        for batch in training:
            expected = plain.step(copy.deepcopy(batch))
            result = await swarm.step(batch)
            assert result.loss == pytest.approx(expected, rel=1e-5)
        difference = largest_relative_difference(
            {
                n.removeprefix("stages."): t
                for n, t in plain.model.state_dict().items()
                if t.is_floating_point()
            },
            swarm.floats(),
        )
    print(f"{model}: largest relative parameter difference after {STEPS} steps: {difference:.2e}")
    assert difference <= 1e-5


@pytest.mark.parametrize(
    ("model", "stages", "keys"),
    [
        ("mlp", ("head", "body1", "body2", "tail"), {"depth": 5}),
        ("resnet18", ("head", "body", "tail"), {"width": 0.125, "cut": ["layer1.1", "layer3.1"]}),
        ("resnet50", ("head", "body", "tail"), {"width": 0.0625}),
    ],
    ids=["mlp", "resnet18", "resnet50"],
)
async def test_several_stages_equal_a_plain_loop_over_the_unsplit_model(
    model: str, stages: tuple[str, ...], keys: dict[str, Any]
) -> None:
    """Not over composed stages: over `full`, cut nowhere. Clipping is over all stages."""
    config = config_of(model, quantize=False, stages=stages, keys=keys, max_grad_norm=0.5)
    uncut = {key: value for key, value in keys.items() if key != "cut"}
    full = config_of(model, quantize=False, stages=("full",), keys=uncut, max_grad_norm=0.5)
    plain = BaselineTrainer(full, torch.device("cpu"))
    async with MemorySwarm(config) as swarm:
        begin = {name.partition(".")[2]: tensor for name, tensor in swarm.floats().items()}
        plain.model.stages["full"].load_state_dict(begin, strict=False)  # counts of batches are no floats
        for batch in batches(config, 3):
            expected = plain.step(copy.deepcopy(batch))
            result = await swarm.step(batch)
            assert result.loss == pytest.approx(expected, rel=1e-5)
        ended = {name.partition(".")[2]: tensor for name, tensor in swarm.floats().items()}
    whole = plain.model.stages["full"].state_dict()
    reached = {name: tensor for name, tensor in whole.items() if tensor.is_floating_point()}
    assert largest_relative_difference(reached, ended) <= 1e-5


async def test_a_repeated_attempt_changes_nothing() -> None:
    """A step that was aborted and run again leaves the same bits as one that ran once."""
    config = config_of("resnet18", quantize=False)
    steps = batches(config, 4)
    async with MemorySwarm(config) as undisturbed, MemorySwarm(config) as disturbed:
        for number, batch in enumerate(steps):
            await undisturbed.step(batch)
            if number == 2:
                await disturbed.abort_a_step(batch)
            await disturbed.step(batch)
        one, other = undisturbed.floats(), disturbed.floats()
    assert all(torch.equal(one[name], other[name]) for name in one)
