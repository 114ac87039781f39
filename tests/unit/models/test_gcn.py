"""Graph convolutions over edge lists are those of dense matrices, and stages are the whole model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distqat.errors import ModelError
from distqat.models import build_stage, full_state_dict, sample_input

SMALL: dict[str, Any] = {"num_classes": 3, "in_features": 6, "hidden": 8}
Graphs = tuple[Tensor, Tensor, Tensor]


def graphs(batch: int = 3, nodes: int = 7, seed: int = 0) -> tuple[Graphs, Tensor]:
    """Random undirected graphs as edge lists with padding, and their normalised adjacencies [B, n, n]."""
    generator = torch.Generator().manual_seed(seed)
    x_BNF = torch.randn(batch, nodes, 6, generator=generator)
    a_BNN = (torch.rand(batch, nodes, nodes, generator=generator) < 0.4).float()
    a_BNN = ((a_BNN + a_BNN.mT) > 0).float() * (1 - torch.eye(nodes)) + torch.eye(nodes)
    scale_BN = a_BNN.sum(dim=2) ** -0.5
    a_BNN = scale_BN[:, :, None] * a_BNN * scale_BN[:, None, :]
    most = int((a_BNN > 0).sum(dim=(1, 2)).max()) + 4
    edges, weights = torch.zeros(batch, 2, most, dtype=torch.int64), torch.zeros(batch, most)
    for number, a_NN in enumerate(a_BNN):
        target, source = a_NN.nonzero().T
        edges[number, :, : len(source)] = torch.stack([source, target])
        weights[number, : len(source)] = a_NN[target, source]
    return (x_BNF, edges, weights), a_BNN


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_it_is_the_dense_network_of_the_paper(depth: int) -> None:
    full = build_stage("gcn.full", {**SMALL, "depth": depth})
    for parameter in full.parameters():
        torch.nn.init.normal_(parameter)
    inputs, a_BNN = graphs()
    h = inputs[0]
    for number, layer in enumerate(full.children(), start=1):
        h = a_BNN @ h @ layer.linear.weight.T + layer.bias  # type: ignore[union-attr,operator]
        h = h if number == depth else h.relu()
    outputs = full(*inputs)
    assert list(outputs) == ["x"]
    torch.testing.assert_close(outputs["x"], h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "extra"),
    [
        (("front", "back"), {"depth": 2}),
        (("front", "back"), {"depth": 3}),
        (("head", "body", "tail"), {"depth": 4}),
        (("head", "body1", "body2", "tail"), {"depth": 6}),
        (("front", "back"), {"depth": 4, "cut": ["conv4"]}),
    ],
)
def test_stages_equal_the_full_model(names: tuple[str, ...], extra: dict[str, Any]) -> None:
    kwargs = {**SMALL, **extra, "dropout": 0.3}
    places = [{"stage_index": index, "stage_count": len(names)} for index in range(len(names))]
    stages = [
        build_stage(f"gcn.{name}", {**kwargs, **place}) for name, place in zip(names, places, strict=True)
    ]
    full = build_stage("gcn.full", {key: value for key, value in kwargs.items() if key != "cut"})
    full.load_state_dict(full_state_dict([stage.state_dict() for stage in stages]))
    inputs, _ = graphs()
    y = torch.randint(3, (3 * 7,), generator=torch.Generator().manual_seed(1))
    for training in (False, True):
        torch.manual_seed(3)
        expected = full.train(training)(*inputs)["x"]
        torch.manual_seed(3)
        passed = dict(zip(("x", "edges", "weights"), inputs, strict=True))
        for stage in stages:
            passed = stage.train(training)(*passed.values())
        assert torch.equal(passed["x"], expected)
    F.cross_entropy(passed["x"].flatten(0, 1), y).backward()
    F.cross_entropy(expected.flatten(0, 1), y).backward()
    of_stages = {name: p for stage in stages for name, p in stage.named_parameters()}
    assert of_stages.keys() == dict(full.named_parameters()).keys()
    for name, parameter in full.named_parameters():
        assert torch.equal(parameter.grad, of_stages[name].grad), name  # type: ignore[arg-type]


def test_graphs_of_a_batch_do_not_hear_each_other_and_padding_says_nothing() -> None:
    full = build_stage("gcn.full", SMALL)
    (x, edges, weights), _ = graphs()
    together = full(x, edges, weights)["x"]
    for number in range(3):
        used = weights[number] > 0
        alone = full(x[number][None], edges[number][None, :, used], weights[number][None, used])["x"]
        torch.testing.assert_close(together[number], alone[0])


@pytest.mark.parametrize("names", [("front", "back"), ("head", "body", "tail")])
def test_sample_inputs_fit(names: tuple[str, ...]) -> None:
    kwargs = {**SMALL, "depth": 3, "stage_count": len(names)}
    for index, (one, following) in enumerate(pairwise(names)):
        given, wanted = (sample_input(f"gcn.{name}", 2, kwargs) for name in (one, following))
        assert given is not None
        assert wanted is not None
        passed = build_stage(f"gcn.{one}", {**kwargs, "stage_index": index})(*given.values())
        assert {n: (t.shape, t.dtype) for n, t in passed.items()} == {
            n: (t.shape, t.dtype) for n, t in wanted.items()
        }


def test_sizes_that_make_no_network_are_refused() -> None:
    with pytest.raises(ModelError, match="depth=0 must be at least 1"):
        build_stage("gcn.front", {**SMALL, "depth": 0})
