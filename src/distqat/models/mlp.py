"""`mlp`: a plain perceptron over flattened inputs, without BatchNorm; the smallest model that has stages.

    x -> flatten -> [layer1, ReLU, dropout] ... [layer<depth>, ReLU, dropout] -> fc -> logits
    |--- front, head ---|-------- body1, body2, ... --------|------ back, tail ------|

Cut between any two layers, where multiply-accumulates are balanced or where `cut: [layer3, fc]` says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distqat.errors import ModelError
from distqat.models.block_chain import FIRST, BlockChain, Cut, StageName


class MLP(nn.Module):
    """Consecutive layers by name, `fc` the classifier, with (inputs, outputs) of each."""

    def __init__(self, sizes: dict[str, tuple[int, int]], dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self._names = list(sizes)  # children may be more: quantizers
        for name, (fan_in, fan_out) in sizes.items():
            self.add_module(name, nn.Linear(fan_in, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] -> [batch, hidden] or [batch, num_classes]."""
        x_BI = x.flatten(1)
        for name in self._names:
            x_BI = self.get_submodule(name)(x_BI)
            if name != "fc":
                x_BI = F.dropout(F.relu(x_BI), self.dropout, self.training)
        return x_BI


def build(
    stage: StageName,
    num_classes: int = 10,
    num_channels: int = 3,
    img_size: int = 32,
    in_features: int | None = None,
    hidden: int = 128,
    depth: int = 2,
    dropout: float = 0.0,
    cut: Cut | None = None,
    stage_index: int | None = None,
    stage_count: int | None = None,
) -> MLP:
    """One stage of the perceptron; `in_features` defaults to num_channels * img_size**2, `depth` >= 1."""
    fan_in = num_channels * img_size**2 if in_features is None else in_features
    sizes = _sizes(fan_in, hidden, depth)
    part = _chain(sizes).part(stage, cut, stage_index, stage_count)
    sizes["fc"] = (hidden, num_classes)
    return MLP(dict(list(sizes.items())[part.start : part.stop]), dropout)


def sample_input(
    stage: StageName,
    batch_size: int,
    num_channels: int = 3,
    img_size: int = 32,
    in_features: int | None = None,
    hidden: int = 128,
) -> Tensor:
    """Zeros of the stage's input shape; any but the first takes what a hidden layer gives."""
    if stage not in ("full", *FIRST):
        return torch.zeros(batch_size, hidden)
    if in_features is not None:
        return torch.zeros(batch_size, in_features)
    return torch.zeros(batch_size, num_channels, img_size, img_size)


def _sizes(in_features: int, hidden: int, depth: int) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every layer; of the classifier with one class, so that cuts know no classes."""
    if depth < 1 or hidden < 1:
        raise ModelError(f"depth={depth} and hidden={hidden} must be at least 1")
    layers = {f"layer{i}": (in_features if i == 1 else hidden, hidden) for i in range(1, depth + 1)}
    return {**layers, "fc": (hidden, 1)}


def _chain(sizes: dict[str, tuple[int, int]]) -> BlockChain:
    return BlockChain(list(sizes), [fan_in * fan_out for fan_in, fan_out in sizes.values()])
