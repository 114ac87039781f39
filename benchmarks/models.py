"""Every model and every cut: is it the unsplit model, and how is it dealt out over its stages?

    python benchmarks/models.py [--json PATH] [--models resnet18 mlp ...]

First, in small sizes, the largest absolute difference between composed stages and the unsplit model, float32:
outputs in eval mode, which must be 0, and in training mode outputs and gradients of parameters. Then, in the
sizes that people train and on the meta device, so without their weights: parameters of each stage, bytes that
a sample takes across each boundary in float32, and shares of the multiply-accumulates of a forward pass. The
goal for the largest share is 1.25 times the mean; above it, default cuts are marked as the best that cutting
between blocks allows (models/balanced_cuts.py is exact).
"""

from __future__ import annotations

from distqat.terminal import begin, unwinding

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("benchmarks/models.py", clean=False)

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.contract.small_models import MODELS, Cut, SmallModel, SmallStage, full_stage, stages_of

from benchmarks.model_sizes import NETWORKS, sizes
from benchmarks.report import describe, facts, output, write_json
from distqat.models import MODEL_TYPES, full_state_dict, named_tensors, run_stages
from distqat.models.causal_lm_stage import BlockStage

GOAL = 1.25  # largest share over the mean
BATCH = 4
Row = dict[str, Any]


def difference(model: str, cut: Cut) -> Row:
    """Composed stages against the unsplit model with the same weights, inputs and seed of dropout."""
    torch.manual_seed(0)
    staged = [stage.build() for stage in stages_of(model, cut)]
    whole = full_stage(model).build()
    whole.load_state_dict(full_state_dict([stage.state_dict() for stage in staged]))
    inputs = _filled(full_stage(model))
    found: Row = {"model": model, "cut": _title(cut), "stages": len(staged)}
    for training in (False, True):
        ours, theirs = (_outputs(modules, inputs, training) for modules in (staged, [whole]))
        found["train" if training else "eval"] = max(_apart(ours[name], theirs[name]) for name in theirs)
    for outputs in (ours, theirs):
        sum(t.square().mean() for t in outputs.values() if t.requires_grad).backward()  # type: ignore[union-attr]
    gradients = {n: p.grad for stage in staged for n, p in stage.named_parameters()}
    expected = {n: p.grad for n, p in whole.named_parameters()}
    found["gradients"] = max(_apart(gradients[n], g) for n, g in expected.items() if g is not None)
    return found


def dealt_out(model: str, size: str, small: SmallModel, cut: Cut) -> Row:
    """Parameters, boundary bytes per sample and shares of compute of each stage."""
    parameters, boundaries, compute = [], [], []
    for stage in stages_of(model, cut, small):
        with torch.device("meta"), torch.no_grad():
            module, inputs = stage.build().eval(), stage.sample(1)
            outputs = named_tensors(module(*inputs.values()))
        parameters.append(sum(p.numel() for p in module.parameters()))
        boundaries.append(sum(t.nbytes for t in outputs.values()))
        compute.append(_multiply_accumulates(stage, module, inputs))
    total = sum(compute)
    return {
        "model": model,
        "size": size,
        "cut": _title(cut),
        "parameters": parameters,
        "boundary_bytes": boundaries[:-1],
        "macs": compute,
        "shares": [macs / total for macs in compute],
        "largest_over_mean": max(compute) * len(compute) / total,
        "cut_by": "user" if "cut" in cut.keys or cut.each else "model" if cut == NETWORKS else "balance",
    }


def _multiply_accumulates(stage: SmallStage, module: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Of one sample's forward pass: counted on the meta device where it computes there.

    Causal language models do not: for them those of the weight matrices, which leaves attention scores out.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs.values())
    if counted := counter.get_total_flops():
        return counted // 2
    if isinstance(module, BlockStage):
        matrices = (
            p.numel()
            for part in module.modules()
            if not isinstance(part, nn.Embedding)
            for p in part.parameters(recurse=False)
            if p.dim() > 1
        )
        return sum(matrices) * int(next(iter(inputs.values())).shape[1])
    real = stage.build().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        real(*stage.sample(1).values())
    return counter.get_total_flops() // 2


def _filled(stage: SmallStage) -> dict[str, Tensor]:
    """Random values of the shapes that the stage takes."""
    filled = {}
    for name, tensor in stage.sample(BATCH).items():
        if tensor.is_floating_point():
            tensor = torch.randn_like(tensor)
        elif stage.integers is not None:
            tensor = torch.randint_like(tensor, stage.integers)
        filled[name] = tensor
    return filled


def _outputs(modules: Sequence[nn.Module], inputs: Mapping[str, Tensor], training: bool) -> dict[str, Tensor]:
    torch.manual_seed(1)  # of dropout
    return run_stages([module.train(training) for module in modules], inputs)


def _apart(ours: Tensor | None, theirs: Tensor) -> float:
    if ours is None:
        return float("inf")
    return float((ours.detach().double() - theirs.detach().double()).abs().max())


def _title(cut: Cut) -> str:
    where = cut.keys.get("cut") or [list(keys["layers"]) for keys in cut.each.values() if "layers" in keys]
    return f"{cut.stages.replace(' ', '/')}{f' {where}' if where else ''}"


def _short(count: int) -> str:
    """53.56M, 9.2k."""
    return f"{count / 1e6:.2f}M" if count >= 1e5 else f"{count / 1e3:.1f}k"


def exactness_table(rows: Sequence[Row]) -> Table:
    table = Table(title="max |composed - unsplit|, small sizes (must be 0)", title_justify="left", box=None)
    for name in ("model", "cut", "eval", "train", "gradients"):
        table.add_column(name)
    for row in rows:
        table.add_row(
            row["model"], row["cut"], *(f"{row[name]:.1e}" for name in ("eval", "train", "gradients"))
        )
    return table


def stages_table(rows: Sequence[Row]) -> Table:
    table = Table(title=f"stages (goal: largest <= {GOAL} x mean)", title_justify="left", box=None)
    for name in (
        "model",
        "size",
        "cut",
        "parameters",
        "boundary, kB/sample",
        "compute, %",
        "largest/mean",
    ):
        table.add_column(name)
    for row in rows:
        ratio = f"{row['largest_over_mean']:.2f}"
        if row["largest_over_mean"] > GOAL:
            ratio += {"user": " (as told)", "model": " (two networks)", "balance": " (best)"}[row["cut_by"]]
        table.add_row(
            row["model"],
            row["size"],
            row["cut"],
            " ".join(map(_short, row["parameters"])),
            " ".join(f"{count / 1024:.1f}" for count in row["boundary_bytes"]),
            " ".join(f"{100 * share:.1f}" for share in row["shares"]),
            ratio,
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 if a composed model differs from the unsplit one."""
    known = sorted({name.rpartition(".")[0] for name in MODEL_TYPES})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, metavar="PATH")
    parser.add_argument("--models", nargs="+", choices=known, default=known, metavar="NAME")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    console, about = Console(width=160), facts()
    console.print(describe(about))
    exact = [
        difference(model, cut)
        for model in args.models
        for cut in MODELS[model].cuts
        if f"{model}.full" in MODEL_TYPES
    ]
    console.print(exactness_table(exact))
    dealt = [
        dealt_out(model, size, small, cut)
        for (model, size), small in sizes().items()
        if model in args.models
        for cut in small.cuts
    ]
    console.print(stages_table(dealt))
    if args.json is not None:
        write_json(args.json, about, {"exactness": exact, "stages": dealt})
    return int(any(row["eval"] != 0.0 for row in exact))


if __name__ == "__main__":
    sys.exit(unwinding("benchmarks/models.py", main))
