"""What a trained language model keeps when it is quantized: after training, trained on, and with a teacher.

    python benchmarks/distillation.py --json PATH [--quick] [--settings W4A8 W4A16] [--seeds N]
                                      [--steps N] [--more N] [--validation]

A GPT-2 of a million parameters is trained in float on Python's own text, byte by byte; that file is what most
people begin with. From it: quantized after training; trained on with quantization (`start_from`); and the
same with the float model as its teacher (`quant.teacher`, `quant.distillation`). Figures are of held-out text
that no choice saw: accuracy of the next byte, and its share of the float model's. The goal is 0.99. Recovered
is the share of the loss by quantizing after training that is won back.
"""

from __future__ import annotations

from distqat.terminal import begin, unwinding

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("benchmarks/distillation.py", clean=False)

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantization import SETTINGS, section
from benchmarks.quantization_runs import after_training, one_process
from benchmarks.quantization_work import Effort, Text
from benchmarks.report import describe, facts, output, write_json
from distqat.checkpoint import write_model
from distqat.config import Config
from distqat.models import named_tensors

FLOAT, AFTER, TRAINED_ON, TAUGHT = "float", "after training", "trained on", "with a teacher"
GOAL = 0.99
SHAPE = {"n_layer": 4, "n_embd": 144, "n_head": 4}
QUICK_SHAPE = {"n_layer": 1, "n_embd": 32, "n_head": 2}
DISTILLATION = {"share": 0.5, "temperature": 2.0}
RATE, MORE_RATE = 2e-3, 5e-4
"""Of training in float, and of training on."""


class Language(Text):
    """A GPT-2 of a million parameters; trained on, it takes other batches at a lower rate."""

    def __init__(
        self, effort: Effort, seed: int, shape: Mapping[str, int], begins: Mapping[str, Any] | None = None
    ) -> None:
        """`begins`: keys of the configuration of a run that goes on from a trained model."""
        self._shape, self._begins = shape, begins
        super().__init__(effort, seed)

    def config(self, quant: Mapping[str, Any] | None) -> Config:
        body = super().config(quant).model_dump(mode="json", exclude_unset=True)
        (entry,) = body["model_pipeline"]["pipeline"]
        entry.update(self._shape)
        body["diloco"]["inner_optim"]["adam_lr"] = RATE if self._begins is None else MORE_RATE
        return Config.model_validate({**body, **(self._begins or {})})

    def batches(self, seed: int, count: int) -> Iterator[Any]:
        return super().batches(seed if self._begins is None else seed + 5_000, count)

    @torch.no_grad()
    def judge_accuracy(self, module: nn.Module) -> float:
        """The share of held-out bytes whose most likely guess is right."""
        module.eval()
        right, total = 0, 0
        samples = self._judged[: self.effort.judged]
        for start in range(0, len(samples), 32):
            batch = self.task.collate(samples[start : start + 32])
            logits_BSV = next(iter(named_tensors(module(*batch.inputs.values())).values()))
            (labels_BS,) = batch.labels.values()
            wanted = labels_BS != -100
            right += int(((logits_BSV.argmax(-1) == labels_BS) & wanted).sum())
            total += int(wanted.sum())
        return right / total


def measure(
    effort: Effort, more: int, shape: Mapping[str, int], settings: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """A record per seed, setting and way; the float model of a seed is that of all its settings."""
    for seed in effort.seeds:
        work = Language(effort, seed, shape)
        began = time.monotonic()
        trained = one_process(work, None)
        yield record(work, seed, (FLOAT, FLOAT), trained, began)
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "model.safetensors"
            stage = work.config(None).stages[0]
            write_model(path, {f"{stage}.{n}": t for n, t in trained.state_dict().items()}, {})
            going_on = Language(replace(effort, steps=more), seed, shape, {"start_from": str(path)})
            taught = {"teacher": str(path), "distillation": DISTILLATION}
            for setting in settings:
                began = time.monotonic()
                calibrated = after_training(work, trained, section(setting))
                yield record(work, seed, (setting, AFTER), calibrated, began)
                for way, teacher in ((TRAINED_ON, {}), (TAUGHT, taught)):
                    began = time.monotonic()
                    module = one_process(going_on, {**section(setting, float_share=0.0), **teacher})
                    yield record(work, seed, (setting, way), module, began)


def record(
    work: Language, seed: int, row: tuple[str, str], module: nn.Module, began: float
) -> dict[str, Any]:
    """What is written of one model; `row` is its setting and its way."""
    seconds = time.monotonic() - began
    parameters = sum(p.numel() for p in module.parameters())
    scores = {"accuracy": work.judge_accuracy(module), "loss": work.judge(module).mean}
    return {"seed": seed, "setting": row[0], "way": row[1], "parameters": parameters, **scores, "s": seconds}


def summary(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per setting and way: means over seeds, and the share of the float model's accuracy by seed."""
    floats = {each["seed"]: each["accuracy"] for each in records if each["way"] == FLOAT}
    by_row: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for each in records:
        by_row.setdefault((each["setting"], each["way"]), []).append(each)
    losses = {row: fmean(each["loss"] for each in own) for row, own in by_row.items()}
    rows = []
    for (setting, way), own in by_row.items():
        accuracy, loss = fmean(each["accuracy"] for each in own), losses[setting, way]
        row: dict[str, Any] = {"setting": setting, "way": way, "accuracy": accuracy, "loss": loss}
        if way != FLOAT:
            row["shares"] = [each["accuracy"] / floats[each["seed"]] for each in own]
            row["share"] = fmean(row["shares"])
        lost = losses.get((setting, AFTER), 0.0) - losses[FLOAT, FLOAT]
        if way in (TRAINED_ON, TAUGHT) and lost > 0:
            row["recovered"] = (losses[setting, AFTER] - loss) / lost
        if way == TAUGHT:
            row["good"] = row["share"] >= GOAL
        rows.append(row)
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line per row."""
    table = Table(title="GPT-2 on Python's text", title_justify="left", box=None)
    columns = (
        "setting",
        "way",
        "accuracy",
        "loss",
        "of float's accuracy",
        "by seed",
        "recovered",
        "goal",
        "",
    )
    for column in columns:
        table.add_column(column)
    for row in rows:
        share = f"{row['share']:.4f}" if "share" in row else ""
        seeds = " ".join(f"{each:.4f}" for each in row.get("shares", ()))
        back = f"{row['recovered']:.0%}" if "recovered" in row else ""
        goal = f">= {GOAL}" if "good" in row else ""
        verdict = {True: "ok", False: "MISSED"}.get(row.get("good", ""), "")
        values = f"{row['accuracy']:.4f}", f"{row['loss']:.4f}"
        table.add_row(row["setting"], row["way"], *values, share, seeds, back, goal, verdict)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: the goal was reached; 1: it was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, required=True, metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument(
        "--settings", nargs="+", choices=list(SETTINGS), default=["W4A8", "W4A16"], metavar="SETTING"
    )
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="in float (default: %(default)s)")
    parser.add_argument("--more", type=int, default=600, help="steps of training on (default: %(default)s)")
    parser.add_argument(
        "--validation", action="store_true", help="judge on a part of the training data, for choices"
    )
    args = parser.parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    about = facts()
    console.print(describe(about))
    steps, more = (40, 20) if args.quick else (args.steps, args.more)
    effort = Effort(steps, steps, 20, 32 if args.quick else 400, tuple(range(args.seeds)), args.validation)
    records: list[dict[str, Any]] = []
    for each in measure(effort, more, QUICK_SHAPE if args.quick else SHAPE, args.settings):
        records.append(each)
        row = f"{each['setting']}, {each['way']}"
        console.print(f"seed {each['seed']}, {row}: {each['accuracy']:.4f} ({each['s']:.0f} s)")
        write_json(args.json, about, {"quick": args.quick, "rows": summary(records), "records": records})
    rows = summary(records)
    console.print(table_of(rows))
    return 0 if all(row.get("good", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(unwinding("benchmarks/distillation.py", main))
