"""Causal language models of transformers in three uneven stages against the unsplit model: must be exact.

    python benchmarks/families.py [--json PATH] [--only gpt2 llama ...]

For each family a tiny configuration of five blocks, cut into one, three and one. Float32, eval mode, untied
embeddings. Shown are the largest differences of logits and of parameter gradients between the composed stages
and the model of transformers (0 is the goal), and of logits once more where each stage loads its part of what
`save_pretrained` publishes; whether every parameter and every buffer is in just one stage, parameters and
multiply-accumulates per token of each stage, and the blocks that `stages: 3` would choose.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.family_configs import BLOCKS, FAMILIES, VOCABULARY
from benchmarks.report import describe, facts, output, write_json
from distqat.models import build_stage, full_state_dict
from distqat.models.block_costs import balanced, costs_of
from distqat.models.causal_lm import model_class, model_config
from distqat.models.causal_lm_outline import outline

CUTS = ((0, 1), (1, 4), (4, BLOCKS))


@dataclass(frozen=True)
class Compared:
    """One family; differences are maxima of |stages - unsplit|."""

    family: str
    logits: float
    gradients: float
    released: float
    complete: bool
    parameters: list[int]
    costs: list[int]
    balanced: list[tuple[int, int]]

    @property
    def exact(self) -> bool:
        return self.complete and self.logits == self.gradients == self.released == 0.0


def reference(config: dict[str, Any]) -> nn.Module:
    """The unsplit model of transformers."""
    whole = model_config(config, None)
    torch.manual_seed(0)
    model: nn.Module = model_class(whole)._from_config(whole, dtype=torch.float32)
    return model.eval()


def stages_of(config: dict[str, Any], cuts: Sequence[tuple[int, int]] = CUTS) -> list[nn.Module]:
    """Head, bodies and tail."""
    names = ["head", *["body"] * (len(cuts) - 2), "tail"]
    return [
        build_stage(f"hf.{name}", {"config": config, "layers": list(cut)}).eval()
        for name, cut in zip(names, cuts, strict=True)
    ]


def through(stages: Sequence[nn.Module], x: Tensor) -> Tensor:
    """What the composed stages make of token ids."""
    for stage in stages:
        x = stage(x)
    return x


def take_over(stages: Sequence[nn.Module], model: nn.Module) -> None:
    """Give stages the weights of the unsplit model."""
    state = model.state_dict()
    for stage in stages:
        stage.load_state_dict({name: state[name] for name in stage.state_dict()})


def compare(family: str) -> Compared:
    """Build, run forward and backward, and compare."""
    config = {"model_type": family, **FAMILIES[family], "tie_word_embeddings": False}
    whole, stages = reference(config), stages_of(config)
    parameters = [sum(p.numel() for p in stage.parameters()) for stage in stages]
    costs = costs_of(whole, outline(_on_meta(config)))
    complete = _complete(whole, stages) and sum(parameters) == sum(p.numel() for p in whole.parameters())
    take_over(stages, whole)
    x_BT, y_BT = (torch.randint(3, VOCABULARY, (2, 12)) for _ in range(2))
    expected, logits = whole(input_ids=x_BT, use_cache=False).logits, through(stages, x_BT)
    for outcome in (expected, logits):
        F.cross_entropy(outcome.flatten(0, 1), y_BT.flatten()).backward()
    own = {name: p.grad for stage in stages for name, p in stage.named_parameters()}
    return Compared(
        family,
        _largest(expected, logits),
        max(_largest(p.grad, own[name]) for name, p in whole.named_parameters()),
        released(family),
        complete,
        parameters,
        [costs.of(*cut) for cut in CUTS],
        balanced(costs, 3),
    )


@torch.no_grad()
def released(family: str) -> float:
    """Largest difference of logits from the unsplit model, of stages that load their parts of a release.

    `save_pretrained` writes tensors in the layout in which a family was published, here in many files.
    """
    whole = reference({"model_type": family, **FAMILIES[family], "tie_word_embeddings": False})
    for parameter in whole.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.02)  # norms too: ones would hide a mistake
    x_BT = torch.randint(3, VOCABULARY, (2, 12))
    with tempfile.TemporaryDirectory() as folder:
        whole.save_pretrained(folder, max_shard_size="40KB")
        stages = [
            build_stage(f"hf.{name}", {"pretrained": folder, "layers": list(cut)}).eval()
            for name, cut in zip(("head", "body", "tail"), CUTS, strict=True)
        ]
    return _largest(whole(input_ids=x_BT, use_cache=False).logits, through(stages, x_BT))


def _on_meta(config: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return reference(config)


def _complete(whole: nn.Module, stages: Sequence[nn.Module]) -> bool:
    """Every tensor of the state is in one stage, and buffers that a stage makes are those of the whole."""
    buffers = dict(whole.named_buffers())
    made = all(torch.equal(b, buffers[n]) for stage in stages for n, b in stage.named_buffers())
    return made and set(full_state_dict([s.state_dict() for s in stages])) == set(whole.state_dict())


def _largest(one: Tensor | None, other: Tensor | None) -> float:
    if one is None or other is None:  # a parameter that the unsplit model does not use either
        return 0.0 if one is other else float("inf")
    return float((one - other).abs().max())


def table_of(results: Sequence[Compared]) -> Table:
    """One row per family; what the stages hold is in the JSON file."""
    table = Table(title="Five blocks cut into 1 + 3 + 1 against the unsplit model")
    for name in ("family", "logits", "grads", "released", "whole", "parameters, k", "stages: 3"):
        table.add_column(name, justify="left" if name == "family" else "right", no_wrap=True)
    for r in results:
        sizes = " + ".join(f"{count / 1000:.1f}" for count in r.parameters)
        cuts = " ".join(f"{start}-{stop}" for start, stop in r.balanced)
        complete = "yes" if r.complete else "NO"
        differences = (f"{value:.2g}" for value in (r.logits, r.gradients, r.released))
        table.add_row(r.family, *differences, complete, sizes, cuts)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a family is not exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, metavar="PATH")
    parser.add_argument("--only", nargs="+", choices=sorted(FAMILIES), default=list(FAMILIES))
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    console, about = Console(), facts()
    console.print(describe(about))
    results = [compare(family) for family in args.only]
    console.print(table_of(results))
    console.print(f"{sum(r.exact for r in results)} of {len(results)} families exact")
    if args.json is not None:
        write_json(args.json, about, [{**asdict(r), "exact": r.exact} for r in results])
    return 0 if all(r.exact for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
