"""A GAN over a swarm is the GAN in a plain loop: two committed steps per batch, to the bit of its stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.golden.test_exactness import largest_relative_difference
from tests.swarm_scene import MemorySwarm

from distqat.config import Config
from distqat.data.open_source import open_source
from distqat.distributed.assembly.evaluation import judge
from distqat.distributed.assembly.stage_factory import build_task, check_model
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.tasks import Batch

pytestmark = pytest.mark.usefixtures("one_thread")
BATCHES = 4
CPU = torch.device("cpu")


def config_of(*stages: str, quantize: bool = False, **diloco: Any) -> Config:
    latent = {"generator": {"latent": 8}, "full": {"latent": 8}}
    return Config.model_validate(
        {
            "experiment_prefix": "gan",
            "seed": 7,
            "data": {"dataset_name": "digits", "task_type": "image_gen", "img_size": 8, "num_channels": 1},
            "diloco": {
                "inner_optim": {"type": "adam", "adam_lr": 1e-3, "adam_beta1": 0.5, "adam_weight_decay": 0.0},
                "inner_steps": 1000,
                "outer_steps": 1,
                "lr_schedule": "cosine",
                "warmup_steps": 2,
                **diloco,
            },
            "model_pipeline": {
                "pipeline": [{"model_name": f"dcgan.{s}", "width": 8, **latent.get(s, {})} for s in stages],
                "microbatches": 3,
            },
            "quant": {"enabled": quantize},
        }
    )


def batches(config: Config, count: int) -> list[Batch]:
    task, source = build_task(config), open_source(config.data, seed=config.seed)
    drawn = [source.take(16) for _ in range(count)]
    return [task.collate_at([i.sample for i in items], [i.place for i in items]) for items in drawn]


def parameters(trainer: BaselineTrainer) -> dict[str, torch.Tensor]:
    """By their names in the whole model."""
    return {n.removeprefix("stages.").partition(".")[2]: t for n, t in trainer.model.state_dict().items()}


@pytest.mark.parametrize(
    ("stages", "quantize"),
    [(("generator", "discriminator"), False), (("generator", "discriminator"), True), (("full",), False)],
    ids=["stages", "quantized", "full"],
)
async def test_a_swarm_trains_the_gan_of_a_plain_loop(stages: tuple[str, ...], quantize: bool) -> None:
    config = config_of(*stages, quantize=quantize, max_grad_norm=1.0)
    check_model(config)
    plain = BaselineTrainer(config, CPU)
    async with MemorySwarm(config) as swarm:
        for batch in batches(config, 10 if quantize else 0):
            parts = plain.phases([batch])[0].parts
            if plain.model.calibrating:
                plain.calibrate(parts)
                await swarm.calibrate(list(parts))
        assert not plain.model.calibrating
        for batch in batches(config, BATCHES):
            steps = plain.phases([batch])
            expected = plain.train(steps)
            found = [(await swarm.step(list(step.parts), frozen=step.frozen)).loss for step in steps]
            assert sum(found) == pytest.approx(expected, rel=1e-5)
        theirs = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
        theirs = {name: tensor for name, tensor in theirs.items() if tensor.is_floating_point()}
        assert largest_relative_difference(theirs, swarm.floats()) <= 1e-5
        counted = [server.replica.step for server in swarm.stages]
        assert counted == ([2 * BATCHES] if stages == ("full",) else [BATCHES, BATCHES])


def test_both_networks_in_one_stage_learn_what_they_learn_in_two() -> None:
    """To the bit, with a constant rate: the schedule of `full` goes by its own inner steps, two per batch."""
    staged = BaselineTrainer(
        config_of("generator", "discriminator", lr_schedule="constant", warmup_steps=0), CPU
    )
    whole = BaselineTrainer(config_of("full", lr_schedule="constant", warmup_steps=0), CPU)
    whole.model.stages["full"].load_state_dict(parameters(staged))
    config = config_of("full")
    for batch in batches(config, BATCHES):
        assert staged.train(staged.phases([batch])) == whole.train(whole.phases([batch]))
    ours, theirs = parameters(staged), parameters(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_training_makes_pictures_that_are_nearer_to_real_ones() -> None:
    config = config_of("generator", "discriminator", lr_schedule="constant")
    trainer = BaselineTrainer(config, CPU)
    before = judge(config, dict(trainer.model.stages.items()))
    trainer.model.train()
    for batch in batches(config, 250):
        trainer.train(trainer.phases([batch]))
    after = judge(config, dict(trainer.model.stages.items()))
    assert after.value < before.value / 2, (before, after)
