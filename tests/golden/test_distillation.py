"""Distillation over stages is a plain loop over the unsplit model with torch's own KL divergence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.golden.test_exactness import largest_relative_difference
from tests.swarm_scene import MemorySwarm
from torch import nn

from distqat.checkpoint.assembled_model import write_model
from distqat.config import Config
from distqat.distributed.assembly.evaluation import build_all
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.tasks.base import Batch

pytestmark = pytest.mark.usefixtures("one_thread")
SHARE, TEMPERATURE, HIDDEN = 0.7, 3.0, 0.3
VOCABULARY, LENGTH, BATCH = 31, 8, 6
GPT = {
    "n_layer": 2,
    "n_embd": 16,
    "n_head": 2,
    "n_positions": LENGTH,
    "vocab_size": VOCABULARY,
    "dropout": 0.0,
}


def config_of(task: str, stages: tuple[str, ...], teacher: str | None, **distillation: float) -> Config:
    if task == "llm":
        cut = {} if stages == ("full",) else {"stages": len(stages)}
        pipeline: list[dict[str, Any]] = [{"model_name": f"distilgpt2.{s}", **GPT, **cut} for s in stages]
    else:
        pipeline = [{"model_name": f"mlp.{s}", "num_classes": 10, "hidden": 16} for s in stages]
    return Config.model_validate(
        {
            "experiment_prefix": "distilled",
            "seed": 7,
            "data": {
                "dataset_name": "digits",
                "task_type": task,
                "img_size": 8,
                "num_channels": 1,
                "sequence_length": LENGTH,
                "tokenizer": "bytes",
            },
            "diloco": {"inner_optim": {"type": "sgd", "sgd_lr": 0.1, "sgd_momentum": 0.0}},
            "model_pipeline": {"pipeline": pipeline, "microbatches": 3},
            "quant": {
                "teacher": teacher,
                "warmup": {"calibrate_batches": 3, "float_share": 0.0},
                "distillation": {"share": SHARE, "temperature": TEMPERATURE, **distillation},
            },
        }
    )


def batches(config: Config, count: int) -> list[list[Batch]]:
    """Cut into three microbatches; sequences are of unequal length, so that places without a label come."""
    task, generator = build_task(config), torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        if task.name == "llm":
            rows = [torch.randint(0, VOCABULARY, (n + 3,), generator=generator) for n in range(BATCH)]
            batch = task.collate([{"tokens": row} for row in rows])
            assert bool((batch.labels["y"] == -100).any())
        else:
            images = torch.rand(BATCH, 1, 8, 8, generator=generator)
            batch = task.collate([{"image": image, "label": n} for n, image in enumerate(images)])
        made.append(batch.microbatches(3))
    return made


def float_model(config: Config, folder: Path) -> tuple[Path, dict[str, nn.Module]]:
    """Another model than the one that the run begins with, as a float run leaves it."""
    quant = config.quant.model_copy(update={"enabled": False})
    stages = build_all(config.model_copy(update={"seed": 99, "quant": quant}))
    with torch.no_grad():
        for parameter in (p for stage in stages.values() for p in stage.parameters() if p.dim() > 1):
            parameter.mul_(4.0)  # it has learned something
    tensors = {name: t for stage in stages.values() for name, t in stage.state_dict().items()}
    path = folder / "float.safetensors"
    write_model(path, tensors, {})
    return path, stages


def plain_step(
    batch: list[Batch], student: list[nn.Module], teacher: list[nn.Module], hidden: float
) -> float:
    """Equations of the papers, sample by sample and place by place; gradients stay in the student."""
    mean, count = 0.0, sum(part.size for part in batch)
    kl = nn.KLDivLoss(reduction="sum")
    for part in batch:
        x, t = part.inputs["x"], part.inputs["x"]
        loss = torch.zeros(())
        for number, (stage, taught) in enumerate(zip(student, teacher, strict=True)):
            x, t = stage(x), taught.eval()(t).detach()
            if number + 1 < len(student):
                loss = loss + hidden * ((x - t) ** 2).mean() * part.size
        for logits, soft, y in zip(x, t, part.labels["y"], strict=True):
            if y.dim() == 0:
                logits, soft, y = logits[None], soft[None], y[None]
            places = [n for n, label in enumerate(y.tolist()) if label != -100]
            hard = torch.stack([F.cross_entropy(logits[n], y[n]) for n in places]).mean()
            apart = [
                kl(F.log_softmax(logits[n] / TEMPERATURE, 0), F.softmax(soft[n] / TEMPERATURE, 0))
                for n in places
            ]
            loss = loss + (1 - SHARE) * hard + SHARE * TEMPERATURE**2 * torch.stack(apart).mean()
        (loss / count).backward()  # type: ignore[no-untyped-call]
        mean += float(loss.detach()) / count
    return mean


@pytest.mark.parametrize(
    ("task", "stages", "hidden"),
    [("llm", ("head", "tail"), HIDDEN), ("llm", ("full",), 0.0), ("cv", ("front", "back"), HIDDEN)],
)
async def test_gradients_equal_a_plain_loop(
    task: str, stages: tuple[str, ...], hidden: float, tmp_path: Path
) -> None:
    path, teacher = float_model(config_of(task, stages, None), tmp_path)
    config = config_of(task, stages, str(path), hidden=hidden)
    (*calibration, training) = batches(config, 4)
    plain = BaselineTrainer(config, torch.device("cpu"))
    async with MemorySwarm(config) as swarm:
        for batch in calibration:
            if plain.calibrates:
                plain.calibrate(batch)
                await swarm.calibrate(batch)
        reference = [copy.deepcopy(plain.model.stages[stage]) for stage in stages]
        loss = plain_step(training, reference, list(teacher.values()), hidden)
        before = {n: p.detach().clone() for n, p in plain.model.named_parameters()}
        expected = plain.step(copy.deepcopy(training))
        await swarm.abort_a_step(training)
        result = await swarm.step(training)
        assert expected == pytest.approx(loss, rel=1e-6)
        assert result.loss == pytest.approx(expected, rel=1e-6)
        assert result.scores["distillation_loss"] == pytest.approx(plain.progress.distillation, rel=1e-6)
        assert result.scores["distillation_loss"] > 1e-3
        wanted = {
            f"{s}.{n}": p.grad
            for s, m in zip(stages, reference, strict=True)
            for n, p in m.named_parameters()
        }
        for name, parameter in plain.model.named_parameters():
            gradient = wanted[name.removeprefix("stages.")]
            if gradient is not None and "log_step" not in name:  # the step of plain SGD is the gradient
                moved = (before[name] - parameter.detach()) / 0.1
                assert torch.allclose(moved, gradient, rtol=1e-5, atol=1e-6), name
        theirs = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
        theirs = {n: t for n, t in theirs.items() if t.is_floating_point()}
        assert largest_relative_difference(theirs, swarm.floats()) <= 1e-6
