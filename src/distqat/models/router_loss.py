"""The balancing loss of a mixture of experts (Switch Transformer, arXiv:2101.03961, equations 4 to 6).

    weight * E * sum over the experts e of f_e * p_e

f_e is the share of tokens that go to expert e, p_e its mean probability. transformers takes both over all
routers of a model together, so the loss is not a sum over stages. What routers did therefore travels with the
activations: per sample and expert, the sums over the routers so far of means over tokens. The last stage
makes the loss of it, and the gradient of the probabilities takes the way of every other gradient.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distqat.errors import ModelError

PROBABILITIES, SHARES = "expert_probs", "expert_shares"
WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")
"""What families call the weight."""
_FUNCTION = "load_balancing_loss_func"
_ARGUMENTS = ["gate_logits", "num_experts", "top_k", "attention_mask"]


@dataclass(frozen=True)
class RouterBalance:
    """Of a model with `experts` per router, `visited` by a token."""

    experts: int
    visited: int
    weight: float

    @classmethod
    def of(cls, model: nn.Module) -> RouterBalance | None:
        """What the configuration of a model of transformers asks for; None: no such loss.

        As there: `output_router_logits` turns it on, `router_aux_loss_coef` is its weight. Raises ModelError
        for a family that computes another one.
        """
        config: Any = model.config
        function = getattr(sys.modules[type(model).__module__], _FUNCTION, None)
        if not getattr(config, "output_router_logits", False) or function is None:
            return None
        weight = next((w for w in (getattr(model, name, None) for name in WEIGHTS) if w is not None), None)
        experts, visited = (getattr(model, name, None) for name in ("num_experts", "num_experts_per_tok"))
        known = list(inspect.signature(function).parameters) == _ARGUMENTS
        if not known or weight is None or not isinstance(experts, int) or not isinstance(visited, int):
            raise ModelError(
                f"the balancing loss of {type(model).__name__} is not known here; leave it out: "
                "output_router_logits: false"
            )
        return cls(experts, visited, float(weight)) if weight else None

    @staticmethod
    def has_routers(model: nn.Module) -> bool:
        """Whether the model, of which a cut left some blocks, has a router: else it records no logits."""
        recorders: Any = getattr(model, "_can_record_outputs", None) or {}
        kind = getattr(recorders.get("router_logits"), "target_class", None)
        return kind is None or any(isinstance(module, kind) for module in model.modules())

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Before the first router: zeros, float32 [B, E] each, for probabilities and shares."""
        shape = (len(x), self.experts)
        return (
            torch.zeros(shape, device=x.device, dtype=torch.float32),
            torch.zeros(shape, device=x.device, dtype=torch.float32),
        )

    def add(
        self, probs_BE: Tensor, shares_BE: Tensor, router_logits: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """With what the routers of one stage did: logits [B * T, E] of each."""
        for logits in router_logits:
            chances_BTE = torch.softmax(logits, dim=-1).reshape(len(probs_BE), -1, self.experts)
            chosen_BTK = torch.topk(chances_BTE, self.visited, dim=-1).indices
            counts_BE = torch.zeros_like(shares_BE).scatter_add_(
                1, chosen_BTK.flatten(1), torch.ones_like(chosen_BTK.flatten(1), dtype=torch.float32)
            )
            probs_BE = probs_BE + chances_BTE.float().mean(dim=1)
            shares_BE = shares_BE + counts_BE / chances_BTE.shape[1]
        return probs_BE, shares_BE

    def loss(self, probs_BE: Tensor, shares_BE: Tensor) -> Tensor | None:
        """A scalar, of what the routers of all stages did; None where there were none."""
        routers = round(float(shares_BE[0].sum()) / self.visited)
        if routers == 0:
            return None
        shares_E, probs_E = shares_BE.detach().mean(dim=0), probs_BE.mean(dim=0)
        return self.weight * self.experts * (shares_E * probs_E).sum() / routers**2
