"""What a task is: samples become batches, outputs become a loss and a score.

No torch at run time, so that configuration code can import the package at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Sample = Mapping[str, Any]
"""One element of a data set, as its source yields it."""


@dataclass(frozen=True)
class Batch:
    """Named tensors for the first stage (`inputs`) and for the loss (`labels`); dim 0 counts the samples."""

    inputs: dict[str, Tensor]
    labels: dict[str, Tensor]
    size: int

    def microbatches(self, count: int) -> list[Batch]:
        """Cut along dim 0 into contiguous views whose sizes differ by at most one.

        Never gives an empty part: with fewer samples than `count` there are `size` parts.
        """
        if count < 1:
            raise ValueError(f"a batch is cut into at least one microbatch, not {count}")
        count = max(1, min(count, self.size))
        base, longer = divmod(self.size, count)
        sizes = [base + 1] * longer + [base] * (count - longer)
        inputs = {name: t.split_with_sizes(sizes) for name, t in self.inputs.items()}
        labels = {name: t.split_with_sizes(sizes) for name, t in self.labels.items()}
        return [
            Batch({k: v[i] for k, v in inputs.items()}, {k: v[i] for k, v in labels.items()}, size)
            for i, size in enumerate(sizes)
        ]


class Task(Protocol):
    """What is trained for. Stateless: every method is a function of its arguments."""

    @property
    def name(self) -> str:
        """The task type, without aliases."""

    @property
    def loss_at(self) -> Literal["last_stage", "trainer"]:
        """Where the loss is computed; at the last stage the outputs never travel."""

    @property
    def metric(self) -> str:
        """What `summarize` gives, e.g. `accuracy`."""

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples of a data source to one batch; TaskError if they do not fit the task."""

    def loss(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """Mean loss over the samples given, a float32 scalar with a gradient."""

    def score(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
        """Sums that add up over batches, `count` (samples) among them."""

    def summarize(self, totals: Mapping[str, float]) -> float:
        """The metric from added-up scores."""
