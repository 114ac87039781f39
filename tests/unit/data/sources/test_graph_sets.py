"""The graphs by name: their sizes, one split whatever the seed, orders that can be gone back to."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distqat.data.open_source import open_source
from distqat.data.options import DataOptions
from distqat.data.source import Source
from distqat.data.sources.graph_sets import karate
from distqat.errors import DataError, MissingExtra, TaskError
from distqat.tasks.node_pred import GraphOptions


def opened(name: str, seed: int = 0, **options: Any) -> Source:
    given = {"dataset_name": name, "task_type": "node_pred", "options": options}
    return open_source(DataOptions.model_validate(given), seed=seed)


def test_the_karate_club_is_zachary_s() -> None:
    graph = karate(GraphOptions())
    degrees = np.diff(graph.starts) - 1  # itself not counted
    assert (len(degrees), degrees.sum()) == (34, 2 * 78)
    assert (degrees[0], degrees[32], degrees[33]) == (16, 12, 17)  # Mr. Hi, and the officers
    assert np.bincount(graph.y_N).tolist() == [17, 17]
    triangles = np.trace(np.linalg.matrix_power(adjacency(graph), 3)) / 6
    assert triangles == 45


def adjacency(graph: Any) -> Any:
    a = np.zeros((34, 34))
    for node in range(34):
        a[node, graph.sources[graph.starts[node] : graph.starts[node + 1]]] = 1
    return a - np.eye(34)


def test_the_digits_graph_has_one_split_whatever_the_seed() -> None:
    one, other = (opened("digits_graph", seed, batches="full") for seed in (0, 1))
    train, heldout = one.take(8)[0].sample, next(iter(one.heldout()))
    assert len(one.take(8)) == 1  # an epoch is one graph
    assert train["x"].shape == (1797, 64)
    labelled, judged = train["y"] >= 0, heldout["y"] >= 0
    assert (int(labelled.sum()), int(judged.sum())) == (200, 1597)
    assert not (labelled & judged).any()
    assert torch.equal(next(iter(other.heldout()))["y"], heldout["y"])
    assert train["y"][labelled].bincount().tolist() == [20] * 10
    degrees = train["edges"][1].bincount()
    assert int(degrees.min()) >= 11


def test_neighbourhoods_depend_on_seed_epoch_and_index_alone() -> None:
    source = opened("digits_graph", neighbours=[3, 2])
    items = [item for _ in range(10) for item in source.take(41)]
    assert [item.place for item in items] == [(epoch, i) for epoch in (0, 1) for i in range(200)]
    again = opened("digits_graph", neighbours=[3, 2])
    again.restore({"epoch": 0, "index": 123})
    assert same(again.take(1)[0].sample, items[123].sample)
    other_seed = opened("digits_graph", seed=1, neighbours=[3, 2])
    assert not same(other_seed.take(1)[0].sample, items[0].sample)
    assert other_seed.order != source.order
    assert opened("digits_graph", neighbours=[3, 3]).order != source.order
    first = next(i for i in items[200:] if torch.equal(i.sample["x"][0], items[0].sample["x"][0]))
    assert not same(first.sample, items[0].sample)  # the same node hears others in the next epoch


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(one[name], other[name]) for name in ("x", "edges", "weights", "y"))


def test_options_are_checked() -> None:
    with pytest.raises(TaskError, match="no key 'kk' for task node_pred; did you mean 'k'"):
        opened("digits_graph", kk=3)
    with pytest.raises(DataError, match="below the number of nodes"):
        opened("digits_graph", k=1797)
    with pytest.raises(DataError, match="one split"):
        open_source(DataOptions(dataset_name="karate", dataset_split="test"), seed=0)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(MissingExtra, match=r"cora needs .* pip install 'distqat\[graph\]'"):
        opened("cora")


class Papers(SimpleNamespace):
    """What torch_geometric gives for a graph."""

    def __init__(self) -> None:
        masks = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
        super().__init__(
            x=torch.eye(5), y=torch.tensor([0, 1, 0, 1, 0]), edge_index=torch.tensor([[0, 1, 2], [1, 2, 4]]),
            train_mask=masks[0], test_mask=masks[1],
        )  # fmt: skip


def installed(patch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(content)
    patch.setitem(sys.modules, name, module)


def test_cora_is_read_through_torch_geometric(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    asked: list[tuple[str, str]] = []

    def planetoid(root: str, name: str) -> list[Papers]:
        asked.append((root, name))
        return [Papers()]

    installed(monkeypatch, "torch_geometric")
    installed(monkeypatch, "torch_geometric.datasets", Planetoid=planetoid)
    source = opened("cora", batches="full", root=str(tmp_path))
    assert asked == [(str(tmp_path), "Cora")]
    assert source.take(1)[0].sample["y"].tolist() == [0, 1, -100, -100, -100]
    assert next(iter(source.heldout()))["y"].tolist() == [-100, -100, -100, 1, 0]

    def unreachable(root: str, name: str) -> list[Papers]:
        raise OSError("no route to host")

    installed(monkeypatch, "torch_geometric.datasets", Planetoid=unreachable)
    with pytest.raises(DataError, match=r"offline with data\.dataset_name: 'digits_graph'"):
        opened("cora", batches="full", root=str(tmp_path))


def test_ogbn_arxiv_is_read_through_ogb(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    class Dataset(list[Papers]):
        def __init__(self, name: str, root: str) -> None:
            assert (name, root) == ("ogbn-arxiv", str(tmp_path))
            papers = Papers()
            papers.y = papers.y[:, None]  # as OGB has them
            super().__init__([papers])

        def get_idx_split(self) -> dict[str, torch.Tensor]:
            return {"train": torch.tensor([0, 3]), "valid": torch.tensor([1]), "test": torch.tensor([2, 4])}

    installed(monkeypatch, "torch_geometric")
    installed(monkeypatch, "ogb")
    installed(monkeypatch, "ogb.nodeproppred", PygNodePropPredDataset=Dataset)
    source = opened("ogbn-arxiv", batches="full", root=str(tmp_path))
    assert source.take(1)[0].sample["y"].tolist() == [0, -100, -100, 1, -100]
    assert next(iter(source.heldout()))["y"].tolist() == [-100, -100, 0, -100, 0]
