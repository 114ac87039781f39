"""What the blocks of a causal language model compute, and the cuts that give every stage about as much.

Counted are multiply-accumulates per token by weight matrices: of a block, of what runs in front of the blocks
(a look-up in an embedding costs nothing), and of what runs behind them, where the projection to the
vocabulary is often the largest single matrix. Of experts as many count as a token visits. Attention scores
are left out: they grow with the sequence and are much the same in every block. The number depends on the
configuration alone, so every server of a run finds the same cuts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from distqat.models.balanced_cuts import balanced_cuts
from distqat.models.causal_lm_outline import ModelOutline

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
VISITED = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")


@dataclass(frozen=True)
class BlockCosts:
    """Multiply-accumulates per token."""

    before: int
    blocks: tuple[int, ...]
    behind: int

    def of(self, start: int, stop: int) -> int:
        """Of the stage that holds the blocks [start, stop)."""
        first = self.before if start == 0 else 0
        last = self.behind if stop == len(self.blocks) else 0
        return first + sum(self.blocks[start:stop]) + last


def costs_of(model: nn.Module, parts: ModelOutline) -> BlockCosts:
    """Of a whole model, which may be on the meta device."""
    config: Any = model.config
    share = _visited(config)
    blocks: Any = model.get_submodule(parts.path)

    def outside(names: tuple[str, ...]) -> int:
        return sum(_matrices(model.get_submodule(name), 1.0) for name in names)

    return BlockCosts(
        outside(parts.before), tuple(_matrices(block, share) for block in blocks), outside(parts.behind)
    )


def balanced(costs: BlockCosts, stages: int) -> list[tuple[int, int]]:
    """The blocks [start, stop) of each of so many stages."""
    cuts = balanced_cuts(costs.blocks, stages, fixed_first=costs.before, fixed_last=costs.behind)
    bounds = [0, *cuts, len(costs.blocks)]
    return list(pairwise(bounds))


def _matrices(module: nn.Module, share_of_experts: float) -> int:
    """Multiply-accumulates of a token by the weights of two and more dimensions."""
    total = 0.0
    for path, part in module.named_modules():
        if isinstance(part, nn.Embedding):
            continue
        share = share_of_experts if "experts" in path.split(".") else 1.0
        total += sum(share * p.numel() for p in part.parameters(recurse=False) if p.dim() > 1)
    return round(total)


def _visited(config: Any) -> float:
    """The share of the experts of a block that a token visits; 1 where there are none."""
    experts, visited = (
        next((v for v in (getattr(config, name, None) for name in names) if isinstance(v, int) and v), 1)
        for names in (EXPERTS, VISITED)
    )
    return min(1.0, visited / experts)
