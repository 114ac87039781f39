"""What a task is: samples become batches, outputs become a loss and a score.

No torch at run time, so that configuration code can import the package at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Sample = Mapping[str, Any]
"""One element of a data set, as its source yields it."""

Place = tuple[int, int]
"""Epoch, and index in its order of training."""

Forward = Callable[[Mapping[str, "Tensor"]], Mapping[str, "Tensor"]]
"""The whole model in eval mode: named inputs to the last stage's named outputs."""


@dataclass(frozen=True)
class TaskSettings:
    """What the configuration says to a task: shapes of batches, and the task's own keys."""

    num_classes: int | None = None
    """Labels lie in [0, num_classes); None checks only that they are not negative."""
    num_channels: int = 3
    """Channels C of image batches [B, C, H, W]."""
    img_size: int = 32
    """Their height and width, in pixels."""
    vocab_size: int | None = None
    """Token ids lie in [0, vocab_size); None checks only that they are not negative."""
    sequence_length: int = 128
    """Tokens T of the batches [B, T]."""
    dataset_name: str = ""
    """`data.dataset_name`, for a task whose data set is no list of samples."""
    seed: int = 0
    """Of the run, for what a task draws."""
    latent: int | None = None
    """Numbers L of a sample's noise, where a stage of the model says so."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`data.options`: keys that only this task and its data sets know."""


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


@runtime_checkable
class Drawing(Protocol):
    """A task that draws random numbers for its training samples: noise, augmentation.

    What it draws for a sample depends on the seed and the sample's place alone, so that a batch which comes
    again, also after a restart, has the same bits.
    """

    def collate_at(self, samples: Sequence[Sample], places: Sequence[Place]) -> Batch:
        """As `collate`, which is for samples that are not trained on; `places` tell where each was taken."""


@runtime_checkable
class Bounded(Protocol):
    """A task whose batches of one count differ in size, as recordings do."""

    @property
    def heldout_batch(self) -> int:
        """Samples that an evaluation looks at together."""

    def batch_bytes(self, count: int) -> int:
        """No batch of `count` samples takes more; shared memory is laid out for it."""


@runtime_checkable
class Judging(Protocol):
    """A task whose metric is no sum over held-out samples: a return of episodes, a distance."""

    def judge(self, heldout: Iterable[Sample], forward: Forward) -> tuple[float, float, int]:
        """Metric, mean loss (NaN where there is none) and the number of samples or episodes looked at."""


@runtime_checkable
class Pictured(Protocol):
    """A task whose samples are pictures: a sheet of the first batch lets a person look at them."""

    def pictures(self, batch: Batch) -> tuple[Tensor, Sequence[str]]:
        """Those of a batch [B, C, H, W] as the model sees them, but in [0, 1]; the label of each, or ""."""


@runtime_checkable
class Showing(Protocol):
    """A task whose outputs are worth looking at."""

    def show(self, forward: Forward) -> Mapping[str, bytes]:
        """Files for the log folder of a run that has ended, by name."""


@dataclass(frozen=True)
class Phase:
    """One committed step of a batch that takes several: which stages it trains; the others are frozen."""

    name: str
    trains: Literal["all", "last", "before_last"] = "all"

    def trained(self, position: int, stages: int) -> bool:
        """Whether the stage at `position` (from 0) of `stages` is trained in this phase.

        A model in one stage always is: it finds out from its inputs which part of it learns.
        """
        return stages == 1 or self.trains == "all" or (position == stages - 1) == (self.trains == "last")


@runtime_checkable
class Phased(Protocol):
    """A task that takes several steps per batch, each of which trains some of the stages."""

    def phases(self, batch: Batch) -> Sequence[tuple[Phase, Batch]]:
        """The steps in order, each with its own inputs and labels of the same samples."""


@dataclass(frozen=True)
class Experience:
    """What a rollout gave."""

    batch: Batch
    """All its samples; they are trained on in batches of the configured size, in an order of every epoch."""
    epochs: int
    """How often each is trained on before the next rollout."""
    returns: tuple[float, ...] = ()
    """Sums of rewards of the episodes that ended in it."""


class Player(Protocol):
    """Acts with the model and makes samples of what happens."""

    def rollout(self) -> Generator[Mapping[str, Tensor], Mapping[str, Tensor], Experience]:
        """Yields what the model is asked (named inputs of any number of rows), is sent what it answers."""


@runtime_checkable
class Interactive(Protocol):
    """A task without a data set: a trainer makes its batches by letting the model act."""

    def player(self, pipeline: int, start: int) -> Player:
        """Who plays for a pipeline, from its batch number `start` on; what is drawn depends on both."""

    def check(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """At start: TaskError unless what is played fits a model of these (sample) inputs and outputs."""
