"""Classes of nodes of a graph: cross-entropy on the nodes that have a label, and accuracy."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distqat.errors import TaskError
from distqat.options import Options
from distqat.tasks.base import Batch, Forward, Sample, Task
from distqat.tasks.labels import whole
from distqat.tasks.perturbations import noisy

NO_LABEL = -100  # what cross_entropy leaves out
COLUMNS = ("x", "edges", "weights", "y")
JUDGED_AT_ONCE = 64


class GraphOptions(Options):
    """`data.options` of graphs."""

    batches: Literal["sampled", "full"] = "sampled"
    """`sampled`: a sample is a labelled node with its neighbourhood; `full`: it is the whole graph."""
    neighbours: list[int] = Field(default=[10, 10], min_length=1, max_length=8)
    """Of a sampled neighbourhood: how many neighbours at most are taken of a node, hop by hop."""
    labels_per_class: int | None = Field(default=None, ge=1)
    """How many nodes of each class have a label; the others are held out. Unset: the set's own split."""
    k: int = Field(default=10, ge=1)
    """`digits_graph`: how many nearest neighbours a node is linked to."""
    root: str = "~/.cache/distqat/graphs"
    """Folder of downloaded graphs."""


class NodeClassification(Task):
    """Graphs `x` [B, n, F], `edges` int64 [B, 2, E], `weights` [B, E]; labels `y` int64 [B, n].

    A node without a label here has -100: one that is held out, one that stands in a neighbourhood only, or
    padding. Every sample weighs the same in the loss, so that microbatches add up to it.
    """

    name = "node_pred"
    metric = "accuracy"

    def __init__(self, *, num_classes: int | None = None) -> None:
        self.num_classes = num_classes

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Graphs of one size, stacked; TaskError for what is not a graph or for graphs of several sizes."""
        if not samples:
            raise TaskError("a batch needs at least one sample")
        missing = [name for name in COLUMNS if samples[0].get(name) is None]
        if missing:
            raise TaskError(
                f"a sample has no {missing[0]}: node_pred needs columns {', '.join(COLUMNS)}, found: "
                f"{', '.join(sorted(samples[0])) or 'none'}; a graph data set is digits_graph, karate or cora"
            )
        columns = {name: [torch.as_tensor(sample[name]) for sample in samples] for name in COLUMNS}
        for name, tensors in columns.items():
            if any(tensor.shape != tensors[0].shape for tensor in tensors):
                raise TaskError(f"graphs of a batch differ in {name}: all must be padded to one size")
        x_BNF, edges_B2E, weights_BE, y_BN = (torch.stack(tensors) for tensors in columns.values())
        self._check(x_BNF, edges_B2E, y_BN)
        inputs = {
            "x": x_BNF.float(),
            "edges": whole(edges_B2E, "ends of edges"),
            "weights": weights_BE.float(),
        }
        return Batch(inputs, {"y": whole(y_BN, "labels of nodes")}, len(samples))

    def perturbed(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Noise of 0.3 in the features; the graph stays."""
        return replace(batch, inputs={**batch.inputs, "x": noisy(batch.inputs["x"], 0.3, generator)})

    def loss(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """Mean over samples of the mean cross-entropy of a sample's labelled nodes, in float32."""
        nll_BN, seen_BN, _ = self._look(outputs, labels)
        return (nll_BN.sum(dim=1) / seen_BN.sum(dim=1).clamp_min(1)).mean()

    def score(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
        """Numbers of correct answers, of labelled nodes and of samples, and the summed cross-entropy."""
        nll_BN, seen_BN, correct_BN = self._look(outputs, labels)
        return {
            "correct": float(correct_BN.sum()),
            "nodes": float(seen_BN.sum()),
            "nll": float(nll_BN.sum()),
            "count": float(len(seen_BN)),
        }

    def summarize(self, totals: Mapping[str, float]) -> float:
        """Share of labelled nodes that were classified correctly."""
        if totals.get("nodes", 0.0) <= 0.0:
            raise TaskError("accuracy of no nodes is not defined: no held-out node has a label")
        return totals["correct"] / totals["nodes"]

    def judge(self, heldout: Iterable[Sample], forward: Forward) -> tuple[float, float, int]:
        """Accuracy and mean cross-entropy over the held-out nodes, and their number: a sample has many."""
        totals: dict[str, float] = {}
        samples = iter(heldout)
        while group := list(itertools.islice(samples, JUDGED_AT_ONCE)):
            batch = self.collate(group)
            for name, value in self.score(forward(batch.inputs), batch.labels).items():
                totals[name] = totals.get(name, 0.0) + value
        accuracy = self.summarize(totals)
        return accuracy, totals["nll"] / totals["nodes"], int(totals["nodes"])

    def _check(self, x_BNF: Tensor, edges_B2E: Tensor, y_BN: Tensor) -> None:
        nodes = x_BNF.shape[1]
        if x_BNF.dim() != 3 or edges_B2E.dim() != 3 or y_BN.shape != x_BNF.shape[:2]:
            shapes = [list(t.shape[1:]) for t in (x_BNF, edges_B2E, y_BN)]
            raise TaskError(f"a graph has x [n, F], edges [2, E] and y [n], not {shapes}")
        if edges_B2E.numel() and not 0 <= int(edges_B2E.min()) <= int(edges_B2E.max()) < nodes:
            raise TaskError(f"an edge names a node outside [0, {nodes})")
        highest = int(y_BN.max())
        if self.num_classes is not None and highest >= self.num_classes:
            raise TaskError(
                f"label {highest} is outside the classes [0, {self.num_classes}); "
                "set num_classes of the pipeline entries to the data set's number of classes"
            )

    def _look(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Cross-entropy of every node (0 without a label), where labels are, where the answer is right."""
        scores_BNK, y_BN = outputs.get("x"), labels.get("y")
        if scores_BNK is None or y_BN is None or scores_BNK.dim() != 3 or scores_BNK.shape[:2] != y_BN.shape:
            found: list[Any] = [None if t is None else list(t.shape) for t in (scores_BNK, y_BN)]
            raise TaskError(
                f"node_pred needs class scores x [B, n, K] and labels y [B, n], not {found}; "
                "does the pipeline end in the last layers of a gcn?"
            )
        nll = F.cross_entropy(
            scores_BNK.flatten(0, 1).float(), y_BN.flatten(), ignore_index=NO_LABEL, reduction="none"
        )
        return nll.view(y_BN.shape), y_BN != NO_LABEL, scores_BNK.argmax(dim=2) == y_BN
