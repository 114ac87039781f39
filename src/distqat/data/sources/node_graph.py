"""A graph in memory: its normalised adjacency, which nodes are labelled, and parts of it as samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from distqat.errors import DataError
from distqat.tasks.base import Sample
from distqat.tasks.node_pred import NO_LABEL

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class NodeGraph:
    """N nodes with F features, undirected; row i of the adjacency says what node i hears.

    The adjacency is D^-1/2 (A + I) D^-1/2 (arXiv:1609.02907, section 2), kept row by row: row i stands at
    `starts[i]` to `starts[i + 1]` of `sources` and `weights`, the node itself first.
    """

    x_NF: Array
    y_N: Array
    starts: Array
    sources: Array
    weights: Array
    labelled: tuple[int, ...]
    """Nodes whose label is trained on."""
    heldout: tuple[int, ...]
    """Nodes whose label is only judged by."""

    @classmethod
    def of_edges(
        cls, x_NF: Array, y_N: Array, edges_2M: Array, labelled: Sequence[int], heldout: Sequence[int]
    ) -> NodeGraph:
        """Edges may stand once or in both directions; self-loops and repeated edges count for nothing.

        Raises DataError for edges and labels that do not fit, and for a node both labelled and held out.
        """
        nodes = len(x_NF)
        if y_N.shape != (nodes,) or edges_2M.ndim != 2 or len(edges_2M) != 2:
            raise DataError(
                f"{nodes} nodes need labels [N] and edges [2, M], not {y_N.shape}, {edges_2M.shape}"
            )
        if edges_2M.size and not 0 <= edges_2M.min() <= edges_2M.max() < nodes:
            raise DataError(f"an edge names a node outside [0, {nodes})")
        if set(labelled) & set(heldout):
            raise DataError("a node is labelled and held out at once")
        one, other = edges_2M[:, edges_2M[0] != edges_2M[1]].astype(np.int64)
        codes = np.unique(np.concatenate([one * nodes + other, other * nodes + one]))
        target, source = np.divmod(codes, nodes)
        degree_N = np.bincount(target, minlength=nodes) + 1
        own = np.arange(nodes)
        target, source = np.concatenate([own, target]), np.concatenate([own, source])
        order = np.argsort(target, kind="stable")
        target, source = target[order], source[order]
        scale_N = degree_N.astype(np.float64) ** -0.5
        weights = (scale_N[target] * scale_N[source]).astype(np.float32)
        starts = np.concatenate([[0], np.cumsum(degree_N)])
        return cls(
            np.ascontiguousarray(x_NF, dtype=np.float32), y_N.astype(np.int64), starts, source, weights,
            tuple(map(int, labelled)), tuple(map(int, heldout)),
        )  # fmt: skip

    def whole(self, labels: Sequence[int]) -> Sample:
        """The whole graph as one sample, with the labels of those nodes."""
        y_N = np.full(len(self.y_N), NO_LABEL)
        y_N[list(labels)] = self.y_N[list(labels)]
        return {**self._whole, "y": torch.from_numpy(y_N)}

    def around(self, node: int, neighbours: Sequence[int], rng: np.random.RandomState) -> Sample:
        """A node with its label, and its neighbourhood: `neighbours[0]` of it at most, and so on hop by hop.

        GraphSAGE's scheme (arXiv:1706.02216, algorithm 2), padded to one size; the node is number 0. Nodes of
        the last hop hear only themselves. Where neighbours are left out the others weigh more, so that a row
        keeps its sum: with all taken, as many layers as hops give what they give on the whole graph.
        """
        numbers, sources, targets, weights = {node: 0}, list[int](), list[int](), list[float]()
        hop = [node]
        for most in (*neighbours, 0):
            following: list[int] = []
            for target in hop:
                heard, row = self._hears(target, most, rng)
                for source in heard:
                    if source not in numbers:
                        numbers[source] = len(numbers)
                        following.append(source)
                sources += [numbers[source] for source in heard]
                targets += [numbers[target]] * len(heard)
                weights += row
            hop = following
        return self._padded(list(numbers), (sources, targets, weights), neighbours)

    def _hears(self, node: int, most: int, rng: np.random.RandomState) -> tuple[list[int], list[float]]:
        """The node itself and at most so many of its neighbours, with their weights."""
        row = slice(self.starts[node], self.starts[node + 1])
        sources, weights = self.sources[row], self.weights[row]
        if most >= len(sources) - 1:
            return sources.tolist(), weights.tolist()
        kept = 1 + np.sort(rng.permutation(len(sources) - 1)[:most])
        factor = weights[1:].sum() / weights[kept].sum() if most else 0.0
        return [node, *sources[kept].tolist()], [float(weights[0]), *(weights[kept] * factor).tolist()]

    def _padded(
        self, nodes: list[int], edges: tuple[list[int], list[int], list[float]], neighbours: Sequence[int]
    ) -> Sample:
        most_nodes, most_edges = neighbourhood_size(neighbours)
        sources, targets, weights = edges
        x_nF = np.zeros((most_nodes, self.x_NF.shape[1]), dtype=np.float32)
        x_nF[: len(nodes)] = self.x_NF[nodes]
        edges_2E = np.zeros((2, most_edges), dtype=np.int64)
        edges_2E[:, : len(sources)] = sources, targets
        weights_E = np.zeros(most_edges, dtype=np.float32)
        weights_E[: len(weights)] = weights
        y_n = np.full(most_nodes, NO_LABEL)
        y_n[0] = self.y_N[nodes[0]]
        arrays = {"x": x_nF, "edges": edges_2E, "weights": weights_E, "y": y_n}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @cached_property
    def _whole(self) -> Mapping[str, torch.Tensor]:
        targets = np.repeat(np.arange(len(self.y_N)), np.diff(self.starts))
        return {
            "x": torch.from_numpy(self.x_NF),
            "edges": torch.from_numpy(np.stack([self.sources, targets])),
            "weights": torch.from_numpy(self.weights),
        }


def neighbourhood_size(neighbours: Sequence[int]) -> tuple[int, int]:
    """Nodes and edges, self-loops included, of a neighbourhood at most."""
    nodes, edges, hop = 1, 0, 1
    for most in neighbours:
        edges += hop * (most + 1)
        hop *= most
        nodes += hop
    return nodes, edges + hop


def labels_per_class(y_N: Array, count: int, order: Sequence[int]) -> tuple[list[int], list[int]]:
    """The first `count` nodes of every class, in this order, are labelled, all others held out."""
    seen: dict[int, int] = {}
    labelled: list[int] = []
    for node in order:
        label = int(y_N[node])
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= count:
            labelled.append(node)
    if len(labelled) == len(y_N):
        raise DataError(
            f"{count} labels per class leave none of {len(y_N)} nodes to judge by; "
            "set data.options.labels_per_class lower"
        )
    chosen = set(labelled)
    return labelled, [node for node in order if node not in chosen]
