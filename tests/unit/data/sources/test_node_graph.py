"""Neighbourhoods of a graph: padded to one size, repeatable, and exact where nothing is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.data.sources.node_graph import NodeGraph, labels_per_class, neighbourhood_size
from distqat.errors import DataError
from distqat.models import build_stage


def random_graph(nodes: int, edges: int, seed: int) -> NodeGraph:
    rng = np.random.RandomState(seed)
    labels = rng.randint(3, size=nodes)
    x = rng.standard_normal((nodes, 4))
    return NodeGraph.of_edges(x, labels, rng.randint(nodes, size=(2, edges)), [0, 1], range(2, nodes))


def dense(graph: NodeGraph) -> np.ndarray:  # type: ignore[type-arg]
    sample = graph.whole([])
    a = np.zeros((len(graph.y_N), len(graph.y_N)))
    np.add.at(a, (sample["edges"][1].numpy(), sample["edges"][0].numpy()), sample["weights"].numpy())
    return a


def test_the_adjacency_is_that_of_the_paper() -> None:
    edges = np.array([[0, 1, 1, 3, 2, 2], [1, 0, 2, 3, 1, 0]])  # doubled, turned round, and a self-loop
    graph = NodeGraph.of_edges(np.eye(4), np.zeros(4), edges, [0], [1])
    a = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1.0]])
    d = a.sum(axis=1) ** -0.5
    np.testing.assert_allclose(dense(graph), d[:, None] * a * d, rtol=1e-6)


@given(st.integers(2, 8), st.integers(0, 20), st.integers(0, 99), st.integers(1, 3))
def test_a_whole_neighbourhood_gives_what_the_whole_graph_gives(
    nodes: int, edges: int, seed: int, depth: int
) -> None:
    graph = random_graph(nodes, edges, seed)
    model = build_stage("gcn.full", {"num_classes": 3, "in_features": 4, "hidden": 5, "depth": depth})
    whole, names = graph.whole([]), ("x", "edges", "weights")
    with torch.no_grad():
        expected = model(*(whole[name][None] for name in names))["x"][0]
        for node in range(nodes):
            part = graph.around(node, [nodes] * depth, np.random.RandomState(0))
            answer = model(*(part[name][None] for name in names))["x"][0, 0]
            torch.testing.assert_close(answer, expected[node], rtol=1e-4, atol=1e-5)


@given(st.integers(2, 15), st.integers(0, 90), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_neighbourhoods_have_one_size_and_rows_keep_their_sums(
    nodes: int, edges: int, neighbours: list[int]
) -> None:
    graph = random_graph(nodes, edges, seed=1)
    most_nodes, most_edges = neighbourhood_size(neighbours)
    rows = dense(graph).sum(axis=1)
    for node in range(nodes):
        part = graph.around(node, neighbours, np.random.RandomState(node))
        assert part["x"].shape == (most_nodes, 4)
        assert part["edges"].shape == (2, most_edges)
        assert part["y"].tolist() == [graph.y_N[node], *[-100] * (most_nodes - 1)]
        assert torch.equal(part["x"][0], torch.from_numpy(graph.x_NF[node]))
        heard = part["edges"][1] == 0
        used = part["weights"] > 0
        assert int((heard & used).sum()) == 1 + min(neighbours[0], int(np.diff(graph.starts)[node]) - 1)
        assert float(part["weights"][heard].sum()) == pytest.approx(rows[node], rel=1e-5)


def test_the_whole_graph_shows_only_the_labels_asked_for() -> None:
    graph = random_graph(6, 9, seed=2)
    sample = graph.whole(graph.heldout)
    assert sample["y"].tolist() == [-100, -100, *graph.y_N[2:]]
    assert sample["x"].shape == (6, 4)


def test_what_does_not_fit_is_refused() -> None:
    x, y = np.eye(3), np.zeros(3, dtype=np.int64)
    with pytest.raises(DataError, match="outside"):
        NodeGraph.of_edges(x, y, np.array([[0], [3]]), [0], [1])
    with pytest.raises(DataError, match="held out at once"):
        NodeGraph.of_edges(x, y, np.array([[0], [2]]), [0, 1], [1, 2])
    with pytest.raises(DataError, match="labels"):
        NodeGraph.of_edges(x, y[:2], np.array([[0], [2]]), [0], [1])
    with pytest.raises(DataError, match="labels_per_class lower"):
        labels_per_class(y, 3, range(3))


def test_labels_per_class() -> None:
    labelled, heldout = labels_per_class(np.array([0, 0, 1, 0, 1, 1]), 2, [5, 4, 3, 2, 1, 0])
    assert (labelled, heldout) == ([5, 4, 3, 1], [2, 0])
