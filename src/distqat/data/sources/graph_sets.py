"""Graphs by name: the digits as nearest neighbours, the karate club, and those of torch_geometric and OGB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distqat.data.embedded import SPLIT_SEED, EmbeddedSource, check_split
from distqat.data.options import DataOptions
from distqat.data.order import permutation
from distqat.data.source import Item
from distqat.data.sources.node_graph import Array, NodeGraph, labels_per_class
from distqat.errors import DataError
from distqat.extras import require
from distqat.tasks.node_pred import GraphOptions
from distqat.tasks.options import parse_options

Split = tuple[list[int], list[int]]
"""Labelled nodes and held-out nodes."""
SEED_WORD = 0xFFFFFFFF

KARATE_EDGES = """
    1: 2 3 4 5 6 7 8 9 11 12 13 14 18 20 22 32; 2: 3 4 8 14 18 20 22 31; 3: 4 8 9 10 14 28 29 33;
    4: 8 13 14; 5: 7 11; 6: 7 11 17; 7: 17; 9: 31 33 34; 10: 34; 14: 34; 15: 33 34; 16: 33 34; 19: 33 34;
    20: 34; 21: 33 34; 23: 33 34; 24: 26 28 30 33 34; 25: 26 28 32; 26: 32; 27: 30 34; 28: 34; 29: 32 34;
    30: 33 34; 31: 33 34; 32: 33 34; 33: 34
"""
"""Who met whom outside the club. W. W. Zachary, "An Information Flow Model for Conflict and Fission in Small
Groups", Journal of Anthropological Research 33(4), 1977, figure 3: 34 members, 78 edges."""
KARATE_HI = frozenset({*range(1, 10), 11, 12, 13, 14, 17, 18, 20, 22})
"""Members who joined Mr. Hi's club after the split (table 1); the others stayed with the officers."""


class NeighbourhoodSource(EmbeddedSource):
    """A sample is a labelled node with its neighbourhood, drawn by seed, epoch and index."""

    def __init__(self, name: str, graph: NodeGraph, neighbours: list[int], *, seed: int) -> None:
        nodes = [{"node": node} for node in graph.labelled]
        super().__init__(name, nodes, [graph.whole(graph.heldout)], seed=seed)
        self._graph = graph
        self._neighbours = neighbours

    def take(self, count: int) -> list[Item]:
        """The next 1 to `count` nodes, each with its sampled neighbourhood."""
        return [self._around(item) for item in super().take(count)]

    def _around(self, item: Item) -> Item:
        key = [self.seed & SEED_WORD, (self.seed >> 32) & SEED_WORD, item.epoch & SEED_WORD, item.index]
        rng = np.random.RandomState(key)  # as in data.order: its stream is the same on every machine
        sample = self._graph.around(item.sample["node"], self._neighbours, rng)
        return Item(item.epoch, item.index, sample)


def open_graph(options: DataOptions, seed: int, read: Callable[[GraphOptions], NodeGraph]) -> EmbeddedSource:
    """A graph as samples; the part to judge by is the whole graph with the labels of held-out nodes.

    Raises TaskError, DataError, MissingExtra.
    """
    check_split(options)
    given = parse_options(GraphOptions, options.options, "node_pred")
    graph = read(given)
    name = f"{options.dataset_name} {given.model_dump_json(exclude={'root'})}"
    if given.batches == "full":
        return EmbeddedSource(name, [graph.whole(graph.labelled)], [graph.whole(graph.heldout)], seed=seed)
    return NeighbourhoodSource(name, graph, given.neighbours, seed=seed)


def digits_graph(given: GraphOptions, pixels: Array, labels: Array) -> NodeGraph:
    """Each of the 1,797 digits is linked to the `k` whose 8x8 pixels are nearest; 20 labels per class."""
    pixels = pixels.astype(np.float32)  # integers 0..16: distances are exact, so ties are the same anywhere
    if given.k >= len(pixels):
        raise DataError(f"data.options.k must be below the number of nodes, {len(pixels)}")
    squares = (pixels**2).sum(axis=1)
    distance_NN = squares[:, None] + squares[None] - 2 * pixels @ pixels.T
    np.fill_diagonal(distance_NN, np.inf)
    nearest_Nk = np.argsort(distance_NN, axis=1, kind="stable")[:, : given.k]
    edges_2M = np.stack([np.repeat(np.arange(len(pixels)), given.k), nearest_Nk.flatten()])
    return NodeGraph.of_edges(pixels / 16, labels, edges_2M, *_split(labels, given.labels_per_class or 20))


def karate(given: GraphOptions) -> NodeGraph:
    """Zachary's karate club: which of two clubs its members joined; features are one-hot numbers."""
    pairs = [
        (int(one) - 1, int(other) - 1)
        for one, _, others in (row.partition(":") for row in KARATE_EDGES.split(";"))
        for other in others.split()
    ]
    y_N = np.array([0 if member in KARATE_HI else 1 for member in range(1, 35)])
    edges_2M = np.array(pairs).T
    split = _split(y_N, given.labels_per_class or 2)
    return NodeGraph.of_edges(np.eye(34, dtype=np.float32), y_N, edges_2M, *split)


def cora(given: GraphOptions) -> NodeGraph:
    """2,708 papers and their citations, with the split of Planetoid (arXiv:1603.08861)."""
    datasets = require("torch_geometric.datasets", extra="graph", why="the data set cora")
    data = _download("cora", given, lambda root: datasets.Planetoid(root, "Cora")[0])
    split = tuple(_numbers(mask.nonzero()) for mask in (data.train_mask, data.test_mask))
    return _of_torch(data, given, (split[0], split[1]))


def ogbn_arxiv(given: GraphOptions) -> NodeGraph:
    """169,343 papers and their citations, with the split of the Open Graph Benchmark (arXiv:2005.00687)."""
    require("torch_geometric", extra="graph", why="the data set ogbn-arxiv")
    ogb = require("ogb.nodeproppred", extra="graph", why="the data set ogbn-arxiv")
    whole = _download("ogbn-arxiv", given, lambda root: ogb.PygNodePropPredDataset("ogbn-arxiv", root))
    parts = whole.get_idx_split()
    return _of_torch(whole[0], given, (_numbers(parts["train"]), _numbers(parts["test"])))


def _split(y_N: Array, count: int) -> Split:
    """Drawn once for all: it must not depend on the run's seed."""
    return labels_per_class(y_N, count, permutation(SPLIT_SEED, 0, 0, len(y_N)))


def _numbers(indices: Any) -> list[int]:
    return [int(index) for index in indices.flatten().tolist()]


def _download(name: str, given: GraphOptions, load: Callable[[str], Any]) -> Any:
    root = Path(given.root).expanduser()
    try:
        return load(str(root))
    except OSError as error:  # what their downloads fail with, urllib's and requests' errors among them
        raise DataError(
            f"the graph {name!r} is not in {root} and cannot be downloaded: {error}; check the network, or "
            "train offline with data.dataset_name: 'digits_graph'"
        ) from error


def _of_torch(data: Any, given: GraphOptions, split: Split) -> NodeGraph:
    y_N = data.y.flatten().numpy()
    if given.labels_per_class is not None:
        split = _split(y_N, given.labels_per_class)
    return NodeGraph.of_edges(data.x.numpy(), y_N, data.edge_index.numpy(), *split)
