"""`gcn`: graph convolutions over edge lists. Kipf and Welling, "Semi-Supervised Classification with Graph
Convolutional Networks", arXiv:1609.02907, eq. 2 and 9.

    x -> [dropout, conv1, ReLU] ... [dropout, conv<depth>] -> class scores of every node
         |---- front, head ----|-- body --|---- back, tail ----|

A graph is a list of edges with their weights: the entries of the normalised adjacency, self-loops among them,
which the data brings along. Both travel unchanged with the features from stage to stage. A batch holds B
graphs of n nodes and E edges; an edge of weight 0 is padding.

Cut between any two layers, where multiply-accumulates are balanced or where `cut: [conv2]` says.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distqat.errors import ModelError
from distqat.models.block_chain import FIRST, BlockChain, Cut, StageName

SAMPLE_NODES, SAMPLE_EDGES = 5, 12  # of a sample input; any other number does as well


class GraphConvolution(nn.Module):
    """Â X W + b, with Â as a list of weighted edges: cost linear in the number of edges."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(fan_in, fan_out, bias=False)
        self.bias = nn.Parameter(torch.zeros(fan_out))
        bound = math.sqrt(6 / (fan_in + fan_out))  # Glorot and Bengio, AISTATS 2010
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x_BNF: Tensor, edges_B2E: Tensor, weights_BE: Tensor) -> Tensor:
        """[B, n, fan_in] -> [B, n, fan_out]; edges go from row 0 to row 1, both in [0, n)."""
        h_BNF = self.linear(x_BNF)
        batch, nodes, width = h_BNF.shape
        offsets_B1 = torch.arange(batch, device=edges_B2E.device)[:, None] * nodes  # all graphs as one
        source_M = (edges_B2E[:, 0] + offsets_B1).flatten()
        target_M = (edges_B2E[:, 1] + offsets_B1).flatten()
        flat_MF = h_BNF.reshape(batch * nodes, width)
        said_MF = flat_MF[source_M] * weights_BE.flatten()[:, None].to(flat_MF.dtype)
        heard_MF = torch.zeros_like(flat_MF).index_add(0, target_M, said_MF)
        return heard_MF.view(batch, nodes, width) + self.bias


class GCN(nn.Module):
    """Consecutive layers by name, with (inputs, outputs) of each."""

    def __init__(self, sizes: dict[str, tuple[int, int]], *, last: bool, dropout: float) -> None:
        super().__init__()
        self.last = last
        self.dropout = dropout
        for name, (fan_in, fan_out) in sizes.items():
            self.add_module(name, GraphConvolution(fan_in, fan_out))
        self._scores = list(sizes)[-1] if last else None  # the layer without a ReLU

    def forward(self, x: Tensor, edges: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """[B, n, F], int64 [B, 2, E], [B, E] -> x [B, n, hidden], edges, weights; or x [B, n, classes]."""
        for name, layer in self.named_children():
            x = layer(F.dropout(x, self.dropout, self.training), edges, weights)
            if name != self._scores:
                x = F.relu(x)
        return {"x": x} if self.last else {"x": x, "edges": edges, "weights": weights}


def build(
    stage: StageName,
    num_classes: int,
    in_features: int,
    hidden: int = 64,
    depth: int = 2,
    dropout: float = 0.0,
    cut: Cut | None = None,
    stage_index: int | None = None,
    stage_count: int | None = None,
) -> GCN:
    """One stage; `in_features` is the number of features of a node."""
    if min(num_classes, in_features, hidden, depth) < 1:
        raise ModelError(f"{num_classes=}, {in_features=}, {hidden=} and {depth=} must be at least 1")
    widths = [in_features, *[hidden] * (depth - 1), num_classes]
    sizes = {f"conv{i}": (widths[i - 1], widths[i]) for i in range(1, depth + 1)}
    chain = BlockChain(list(sizes), [fan_in * fan_out for fan_in, fan_out in sizes.values()])
    part = chain.part(stage, cut, stage_index, stage_count)
    return GCN(dict(list(sizes.items())[part.start : part.stop]), last=part.last, dropout=dropout)


def sample_input(stage: StageName, batch_size: int, in_features: int, hidden: int = 64) -> dict[str, Tensor]:
    """Zeros of the stage's input shapes, for graphs of some size."""
    width = in_features if stage in ("full", *FIRST) else hidden
    return {
        "x": torch.zeros(batch_size, SAMPLE_NODES, width),
        "edges": torch.zeros(batch_size, 2, SAMPLE_EDGES, dtype=torch.int64),
        "weights": torch.zeros(batch_size, SAMPLE_EDGES),
    }
