"""How much longer a training step takes with quantization: over one in float, in the same process.

    python benchmarks/quantization_time.py --json PATH [--quick] [--steps N] [--cases NAME ...]

Whole steps of the plain loop (`BaselineTrainer`: forward, loss, backward, AdamW) with one torch thread. Float
and quantized models take turns, step by step, so what else the machine does meets all alike; a figure is the
median of a model's steps over the median of the float model's. Quantizers have been calibrated, and each
model has made two steps before; a compiled one compiles in them. `compiled` is `quant.compile: true` over
float, which is not compiled. Time is CPU time. The goal is 1.4, and 5,000 operators of torch per step of
the quarter ResNet; compiled quantizers, which are for GPUs, have none.
"""

from __future__ import annotations

from distqat.terminal import begin, unwinding

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("benchmarks/quantization_time.py", clean=False)

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import describe, facts, output, write_json
from distqat.config import Config
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.tasks.base import Batch

FLOAT = "float"
SETTINGS = {"W8A8": (8, 8), "W4A4": (4, 4)}
GOAL = 1.4
WARM_UP_STEPS = 2
VOCABULARY = 257


@dataclass(frozen=True)
class Case:
    """A model and its batch."""

    name: str
    pipeline: tuple[dict[str, Any], ...]
    shape: tuple[int, ...]  # of a sample: channels, height and width, or tokens
    batch: int
    microbatches: int = 1

    @property
    def text(self) -> bool:
        """Whether samples are tokens."""
        return len(self.shape) == 1


@dataclass
class Way:
    """A case in float, or quantized in one way, and what its steps took."""

    setting: str
    compiled: bool
    trainer: BaselineTrainer
    seconds: list[float] = field(default_factory=list)
    operators: int = 0  # of a step


def _resnet(width: float) -> tuple[dict[str, Any], ...]:
    return ({"model_name": "resnet18.full", "num_classes": 10, "width": width},)


def _gpt(blocks: int, width: int, heads: int, length: int) -> tuple[dict[str, Any], ...]:
    shape = {"n_layer": blocks, "n_embd": width, "n_head": heads, "n_positions": length}
    return ({"model_name": "distilgpt2.full", "dropout": 0.0, "vocab_size": VOCABULARY, **shape},)


CASES = {
    case.name: case
    for case in (
        Case("resnet18 x 0.25, 16 px", _resnet(0.25), (1, 16, 16), 32),
        Case("resnet18 x 0.25, 16 px, 4 microbatches", _resnet(0.25), (1, 16, 16), 32, 4),
        Case("resnet18, 32 px", _resnet(1.0), (3, 32, 32), 32),
        Case("GPT-2, 2 blocks of 64", _gpt(2, 64, 4, 64), (64,), 16),
        Case("GPT-2, 6 blocks of 768", _gpt(6, 768, 12, 64), (64,), 4),
    )
}
QUICK_CASE = Case("resnet18 x 0.1, 8 px", _resnet(0.1), (1, 8, 8), 4)


def config_of(case: Case, setting: str, compiled: bool) -> Config:
    """A run that never comes to its end, so nothing is frozen."""
    if case.text:
        data = {"dataset_name": "python_docs", "task_type": "llm", "tokenizer": "bytes"}
        data |= {"sequence_length": case.shape[0]}
    else:
        data = {"dataset_name": "digits", "num_channels": case.shape[0], "img_size": case.shape[-1]}
    quant: dict[str, Any] = {"enabled": setting != FLOAT, "compile": compiled}
    if setting != FLOAT:
        weight, activation = SETTINGS[setting]
        quant |= {"weight": {"bits": weight}, "activation": {"bits": activation}}
        quant |= {"warmup": {"calibrate_batches": 1, "float_share": 0.0}}
    diloco = {"inner_optim": {"type": "adamw", "adam_lr": 1e-3}, "inner_steps": 1_000_000}
    return Config.model_validate(
        {
            "data": data,
            "diloco": {**diloco, "outer_steps": 1, "batch_size_per_step": case.batch},
            "model_pipeline": {"pipeline": list(case.pipeline), "microbatches": case.microbatches},
            "quant": quant,
        }
    )


def batch_of(case: Case) -> list[Batch]:
    """Random samples and labels in microbatches, the same for everybody."""
    generator = torch.Generator().manual_seed(3)
    shape = (case.batch, *case.shape)
    if case.text:
        x = torch.randint(VOCABULARY, shape, generator=generator)
        y = torch.randint(VOCABULARY, shape, generator=generator)
    else:
        x = torch.randn(shape, generator=generator)
        y = torch.randint(10, shape[:1], generator=generator)
    return Batch({"x": x}, {"y": y}, case.batch).microbatches(case.microbatches)


def ways_of(case: Case, *, compiled: Sequence[bool], settings: Sequence[str] = tuple(SETTINGS)) -> list[Way]:
    """Float first; each calibrated and warm."""
    batch, found = batch_of(case), []
    wanted = [(FLOAT, False), *((setting, each) for each in compiled for setting in settings)]
    for setting, each in wanted:
        torch.manual_seed(0)
        trainer = BaselineTrainer(config_of(case, setting, each), torch.device("cpu"))
        while trainer.calibrates:
            trainer.calibrate(batch)
        for _ in range(WARM_UP_STEPS):
            trainer.step(batch)
        found.append(Way(setting, each, trainer))
    return found


def measure(ways: Sequence[Way], batch: list[Batch], steps: int) -> None:
    """`steps` of each, in turns."""
    for _ in range(steps):
        for way in ways:
            began = time.process_time()
            way.trainer.step(batch)
            way.seconds.append(time.process_time() - began)


def operators(way: Way, batch: list[Batch]) -> int:
    """How many operators of torch a step calls."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        way.trainer.step(batch)
    return sum(event.count for event in seen.key_averages() if event.key.startswith("aten::"))


def records(case: Case, ways: Sequence[Way]) -> list[dict[str, Any]]:
    """The figures of a case; the first of `ways` is float."""
    base = median(ways[0].seconds)
    found = []
    for way in ways:
        seconds = median(way.seconds)
        record = {"case": case.name, "setting": way.setting, "compiled": way.compiled, "ms": 1000 * seconds}
        record["operators"] = way.operators
        if way is not ways[0]:
            record["ratio"] = seconds / base
            if not way.compiled:
                record |= {"goal": GOAL, "good": seconds / base <= GOAL}
        found.append({**record, "samples_ms": [1000 * each for each in way.seconds]})
    return found


def table_of(name: str, found: Sequence[dict[str, Any]]) -> Table:
    """A line per way."""
    table = Table(title=name, title_justify="left", box=None)
    for column in ("setting", "quantizers", "operators", "ms per step", "over float", "goal", ""):
        table.add_column(column)
    for record in found:
        kind = "" if record["setting"] == FLOAT else "compiled" if record["compiled"] else "eager"
        ratio = f"{record['ratio']:.2f}" if "ratio" in record else ""
        goal = f"<= {record['goal']}" if "goal" in record else ""
        verdict = "" if "good" not in record else "ok" if record["good"] else "MISSED"
        table.add_row(
            record["setting"], kind, f"{record['operators']:,}", f"{record['ms']:.1f}", ratio, goal, verdict
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all goals were reached; 1: one was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, required=True, metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument("--steps", type=int, default=20, help="of each way (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--eager", action="store_true", help="leave out what has to be compiled")
    args = parser.parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    about = facts()
    console.print(describe(about))
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for case in [QUICK_CASE] if args.quick else [CASES[name] for name in args.cases]:
        ways = ways_of(case, compiled=(False,) if args.eager else (False, True))
        batch = batch_of(case)
        for way in ways:
            way.operators = operators(way, batch)
        measure(ways, batch, args.steps)
        found += records(case, ways)
        write_json(args.json, about, {"quick": args.quick, "rows": found})
        console.print(table_of(case.name, [record for record in found if record["case"] == case.name]))
    return 0 if all(record.get("good", True) for record in found) else 1


if __name__ == "__main__":
    sys.exit(unwinding("benchmarks/quantization_time.py", main))
