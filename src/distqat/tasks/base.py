"""What a task is: samples become batches, outputs become a loss and a score.

No torch at run time, so that configuration code can import the package at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
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
    """`data.dataset_name`, for a task that plays in an environment of this name."""
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


WHOLE = Phase("")
"""The one step of a batch that is not cut into phases."""


class Task:
    """What is trained for. Stateless: every method is a function of its arguments.

    A task must have `name`, `metric`, `collate`, `loss`, `score` and `summarize`. What a task without this
    base class has of it under the same names counts as well (`adopted`).
    """

    name: str
    """The task type, without aliases."""
    loss_at: Literal["last_stage", "trainer"] = "last_stage"
    """Where the loss is computed: at the last stage outputs never travel, at the trainer labels do not."""
    metric: str
    """What `summarize` gives, e.g. `accuracy`."""
    heldout_batch: int | None = None
    """Samples that an evaluation looks at together; None: as many as their size allows."""

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples of a data source to one batch; TaskError if they do not fit the task."""
        raise NotImplementedError

    def loss(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """Mean loss over the samples given, a float32 scalar with a gradient."""
        raise NotImplementedError

    def score(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
        """Sums that add up over batches, `count` (samples) among them."""
        raise NotImplementedError

    def summarize(self, totals: Mapping[str, float]) -> float:
        """The metric from added-up scores."""
        raise NotImplementedError

    def soft_loss(
        self,
        outputs: Mapping[str, Tensor],
        teachers: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        temperature: float,
    ) -> Tensor:
        """Mean KL divergence of the model's distributions from its teacher's, of logits over `temperature`.

        Over the same places, and weighed, as `loss`. For tasks whose outputs are logits: distillation.
        """
        raise NotImplementedError

    def collate_at(self, samples: Sequence[Sample], places: Sequence[Place]) -> Batch:
        """As `collate`, for samples that are trained on; `places` tell where each was taken.

        For tasks that draw random numbers (noise, augmentation). What is drawn for a sample depends on the
        seed and its place alone, so that a batch which comes again, also after a restart, has the same bits.
        """
        return self.collate(samples)

    def batch_bytes(self, count: int) -> int | None:
        """No batch of `count` samples takes more; None: batches of one count have one size."""
        return None

    def phases(self, batch: Batch) -> Sequence[tuple[Phase, Batch]]:
        """The committed steps of a batch in order; each has its own inputs and labels of the same samples."""
        return [(WHOLE, batch)]

    def judge(self, heldout: Iterable[Sample], forward: Forward) -> tuple[float, float, int]:
        """Metric, mean loss (NaN where there is none) and the number of samples or episodes looked at.

        For a metric that is not a sum over held-out samples: a return of episodes, a distance.
        """
        raise NotImplementedError

    def perturbed(self, batch: Batch, generator: torch.Generator) -> Batch:
        """`batch` as a model rarely meets it, with the same labels: exported files are checked with it too.

        Noise of a tenth of their deviation, in inputs of floating point; tasks know better.
        """
        from distqat.tasks.perturbations import noisy

        return replace(batch, inputs={n: noisy(x, 0.1, generator) for n, x in batch.inputs.items()})

    def pictures(self, batch: Batch) -> tuple[Tensor, Sequence[str]] | None:
        """Those of a batch [B, C, H, W] as the model sees them, but in [0, 1]; the label of each, or ""."""
        return None

    def show(self, forward: Forward) -> Mapping[str, bytes]:
        """Files for the log folder of a run that has ended, by name."""
        return {}

    def player(self, pipeline: int, start: int) -> Player:
        """Who plays for a pipeline, from its batch number `start` on; what is drawn depends on both.

        For a task without a data set: trainers make its batches by letting the model act.
        """
        raise NotImplementedError

    def check(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """At start: TaskError unless what is played fits a model of these (sample) inputs and outputs."""

    @property
    def judges(self) -> bool:
        """Whether `judge` gives the metric, rather than `score` and `summarize`."""
        return self._overrides("judge")

    @property
    def distills(self) -> bool:
        """Whether a teacher's logits can be learned from."""
        return self._overrides("soft_loss")

    @property
    def phased(self) -> bool:
        """Whether a batch takes several committed steps."""
        return self._overrides("phases")

    @property
    def plays(self) -> bool:
        """Whether a `player` makes the batches."""
        return self._overrides("player")

    def _overrides(self, method: str) -> bool:
        return getattr(getattr(self, method), "__func__", None) is not getattr(Task, method)


class _Adopted(Task):
    """A task that does not inherit from `Task`: what it has of it stands over the defaults."""

    def __init__(self, task: Any) -> None:
        self._task = task
        names = (name for name in dir(Task) if not name.startswith("_") and hasattr(task, name))
        vars(self).update({name: getattr(task, name) for name in names})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def adopted(task: Any) -> Task:
    """`task` itself, or with the defaults where it does not inherit from `Task`."""
    return task if isinstance(task, Task) else _Adopted(task)
