"""`ppo`: a policy and a value network beside each other, as PPO for control has them (arXiv:1707.06347, 6.1).

    observation -+-> [policy1, tanh] ... [policy<depth>, tanh] -> policy_out -> logits, or means
                 +-> [value1, tanh] ... [value<depth>, tanh] ---> value_out --> value
                 |---- front, head ----|------- body -------|----- back, tail -----|

Both towers are cut at the same layer, so that two hidden tensors travel. Actions are discrete, or continuous
and normally distributed about the means, with standard deviations that are parameters of the last stage.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.models.block_chain import FIRST, BlockChain, Cut, StageName

OUT = "out"
HIDDEN_GAIN, POLICY_GAIN, VALUE_GAIN = math.sqrt(2), 0.01, 1.0  # of orthogonal weights: arXiv:2006.05990, 3.2


class Actor(nn.Module):
    """Consecutive layers of both towers by name, with (inputs, outputs) of each."""

    def __init__(self, sizes: dict[str, tuple[int, int]], *, num_actions: int, continuous: bool) -> None:
        super().__init__()
        self._names = list(sizes)
        self.policy = nn.ModuleDict({name: _layer(size, POLICY_GAIN, name) for name, size in sizes.items()})
        values = {name: (fan_in, 1 if name == OUT else out) for name, (fan_in, out) in sizes.items()}
        self.value = nn.ModuleDict({name: _layer(size, VALUE_GAIN, name) for name, size in values.items()})
        self.log_std = nn.Parameter(torch.zeros(num_actions)) if continuous and OUT in sizes else None

    def forward(self, x: Tensor, value: Tensor | None = None) -> dict[str, Tensor]:
        """x [B, O], or both towers' x and value [B, hidden] -> the same, or x [B, actions] and value [B].

        Of continuous actions the last stage also gives log_std [B, actions].
        """
        value = x if value is None else value
        for name in self._names:
            x, value = self.policy[name](x), self.value[name](value)
            if name != OUT:
                x, value = torch.tanh(x), torch.tanh(value)
        if self._names[-1] != OUT:
            return {"x": x, "value": value}
        outputs = {"x": x, "value": value.squeeze(1)}
        return outputs if self.log_std is None else {**outputs, "log_std": self.log_std.expand_as(x)}


def build(
    stage: StageName,
    in_features: int,
    num_actions: int,
    hidden: int = 64,
    depth: int = 2,
    continuous: bool = False,
    cut: Cut | None = None,
    stage_index: int | None = None,
    stage_count: int | None = None,
) -> Actor:
    """One stage; `in_features` numbers make an observation, `num_actions` is how many actions there are.

    Of continuous actions it is of how many numbers one consists.
    """
    if min(in_features, num_actions, hidden, depth) < 1:
        raise ModelError(f"{in_features=}, {num_actions=}, {hidden=} and {depth=} must be at least 1")
    names = [*(f"layer{i}" for i in range(1, depth + 1)), OUT]
    widths = [in_features, *[hidden] * depth, num_actions]
    sizes = {name: (widths[i], widths[i + 1]) for i, name in enumerate(names)}
    chain = BlockChain(names, [fan_in * fan_out for fan_in, fan_out in sizes.values()])
    part = chain.part(stage, cut, stage_index, stage_count)
    kept = dict(list(sizes.items())[part.start : part.stop])
    return Actor(kept, num_actions=num_actions, continuous=continuous)


def sample_input(stage: StageName, batch_size: int, in_features: int, hidden: int = 64) -> dict[str, Tensor]:
    """Zeros of the stage's input shapes."""
    if stage in ("full", *FIRST):
        return {"x": torch.zeros(batch_size, in_features)}
    return {"x": torch.zeros(batch_size, hidden), "value": torch.zeros(batch_size, hidden)}


def _layer(size: tuple[int, int], gain_out: float, name: str) -> nn.Linear:
    layer = nn.Linear(*size)
    nn.init.orthogonal_(layer.weight, gain_out if name == OUT else HIDDEN_GAIN)
    nn.init.zeros_(layer.bias)
    return layer
