"""What is measured: a model, its input, and the configuration of a run over it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_module, build_task
from distqat.models import named_tensors
from distqat.quant import leaving
from distqat.tasks.base import Batch

RUN = "benchmark"


@dataclass(frozen=True)
class Case:
    """One model at one size."""

    name: str
    model: str
    batch: int
    microbatches: int = 4
    img_size: int = 32
    width: float = 1.0  # of resnet18
    hidden: int = 1024  # of mlp
    depth: int = 6
    quantize: bool = False
    max_grad_norm: float | None = None

    def with_quantization(self, quantize: bool) -> Case:
        return replace(self, quantize=quantize)

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Case:
        return cls(**json.loads(text))


CASES = {
    "resnet18": Case("resnet18", "resnet18", batch=32),
    "resnet18-quarter": Case("resnet18-quarter", "resnet18", batch=32, width=0.25),
    "mlp": Case("mlp", "mlp", batch=256),
}
QUICK_CASES = {
    "resnet18": Case("resnet18", "resnet18", batch=8, width=0.25, img_size=16),
    "mlp": Case("mlp", "mlp", batch=32, hidden=256, depth=2),
}


def config_of(case: Case) -> Config:
    """Two stages; rounds never come due."""
    size = {"width": case.width} if case.model == "resnet18" else {"hidden": case.hidden, "depth": case.depth}
    return Config.model_validate(
        {
            "experiment_prefix": RUN,
            "seed": 7,
            "data": {"dataset_name": "digits", "img_size": case.img_size, "num_channels": 3},
            "diloco": {
                "inner_optim": {"type": "adamw", "adam_lr": 1e-3},
                "inner_steps": 1_000_000,
                "outer_steps": 1,
                "batch_size_per_step": case.batch,
                "max_grad_norm": case.max_grad_norm,
            },
            "model_pipeline": {
                "pipeline": [
                    {"model_name": f"{case.model}.{stage}", "num_classes": 10, **size}
                    for stage in ("front", "back")
                ],
                "microbatches": case.microbatches,
            },
            "quant": {"enabled": case.quantize, "warmup": {"float_share": 0}},
        }
    )


def any_config() -> Config:
    """For what is the same in all cases: the network of a process."""
    return Config(experiment_prefix=RUN)


def batches(config: Config, count: int, *, cut: int | None = None) -> list[list[Batch]]:
    """Random images and labels, the same for everybody, cut into microbatches."""
    task, data = build_task(config), config.data
    generator = torch.Generator().manual_seed(3)
    cut = cut or config.model_pipeline.microbatches
    made = []
    for _ in range(count):
        shape = config.diloco.batch_size_per_step, data.num_channels, data.img_size, data.img_size
        images = torch.rand(shape, generator=generator)
        labels = torch.randint(0, 10, shape[:1], generator=generator)
        samples = [{"image": image, "label": int(y)} for image, y in zip(images, labels, strict=True)]
        made.append(task.collate(samples).microbatches(cut))
    return made


def boundary_bytes(config: Config) -> dict[str, int]:
    """Bytes per step of what crosses each link, tensors alone: inputs, activations, gradients, labels.

    A gradient has the size of its activation in float32; where integer codes travel that takes a byte per
    element. The trainer's inputs need no gradient.
    """
    (parts,) = batches(config, 1, cut=1)
    tensors: dict[str, Any] = dict(parts[0].inputs)
    inputs = sum(tensor.nbytes for tensor in tensors.values())
    with torch.device("meta"), torch.no_grad():
        module = build_module(config, config.stages[0], quantize=False)
        outputs = named_tensors(module(*(tensor.to("meta") for tensor in tensors.values())))
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in outputs.values())
    codes = config.model_pipeline.activations != "fp32" and sends_codes(config, config.stages[0])
    activations = sum(tensor.numel() for tensor in outputs.values()) if codes else gradients
    labels = sum(tensor.nbytes for tensor in parts[0].labels.values())
    return {"inputs": inputs, "activations": activations, "gradients": gradients, "labels": labels}


def sends_codes(config: Config, stage: str) -> bool:
    """Whether the output of a stage travels as integer codes once its quantizers are calibrated."""
    with torch.random.fork_rng(devices=[]):
        return leaving(build_module(config, stage)) is not None


def chosen_cases(names: list[str], quick: bool) -> list[Case]:
    """The named cases, each without and with quantization."""
    known = QUICK_CASES if quick else CASES
    chosen = [known[name] for name in names if name in known] or list(known.values())
    return [case.with_quantization(quantize) for case in chosen for quantize in (False, True)]
