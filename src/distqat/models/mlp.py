"""`mlp`: a plain perceptron over flattened inputs, without BatchNorm; the smallest model that has stages.

    x -> flatten -> [layer1, ReLU, dropout] ... [layer<depth>, ReLU, dropout] -> fc -> logits
    |------------------------ front, head ----------------|---- back, tail ----|

The front holds the first half of the hidden layers, rounded up.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distqat.errors import ModelError

StageName = Literal["full", "front", "back", "head", "tail"]


class MLP(nn.Module):
    """Hidden layers `first` to `last` (counted from 1), and the classifier when `sizes` has one."""

    def __init__(self, widths: dict[str, tuple[int, int]], dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        for name, (fan_in, fan_out) in widths.items():
            self.add_module(name, nn.Linear(fan_in, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] -> [batch, hidden] or [batch, num_classes]."""
        x_BI = x.flatten(1)
        for name, layer in self.named_children():
            x_BI = layer(x_BI)
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
) -> MLP:
    """One stage of the perceptron; `in_features` defaults to num_channels * img_size**2, `depth` >= 1."""
    if depth < 1 or hidden < 1:
        raise ModelError(f"depth={depth} and hidden={hidden} must be at least 1")
    fan_in = num_channels * img_size**2 if in_features is None else in_features
    widths = {f"layer{i}": (fan_in if i == 1 else hidden, hidden) for i in range(1, depth + 1)}
    widths["fc"] = (hidden, num_classes)
    names = list(widths)
    cut = (depth + 1) // 2
    kept = {"full": names, "front": names[:cut], "head": names[:cut]}.get(stage, names[cut:])
    return MLP({name: widths[name] for name in kept}, dropout)


def sample_input(
    stage: StageName,
    batch_size: int,
    num_channels: int = 3,
    img_size: int = 32,
    in_features: int | None = None,
    hidden: int = 128,
) -> Tensor:
    """Zeros of the stage's input shape; the back takes what the front returns."""
    if stage in ("back", "tail"):
        return torch.zeros(batch_size, hidden)
    if in_features is not None:
        return torch.zeros(batch_size, in_features)
    return torch.zeros(batch_size, num_channels, img_size, img_size)
