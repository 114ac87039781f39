"""A stress set: held-out samples as a model rarely meets them, where answers are close and codes far out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from distqat.export.output_agreement import OutputAgreement, RunsModel
from distqat.tasks import Batch, Task

SEED = 1797
ANSWERS = 3600


@dataclass(frozen=True)
class Agreed:
    """How far an engine agrees with the fake-quantized model on some samples."""

    samples: int
    places: int
    """Answers: one per sample, or one per labelled place of sequences."""
    agreement: float
    largest_error: float

    def rows(self) -> list[str]:
        """Of a table for people, where these are answers on the stress set."""
        return [
            f"| same answer, stress set of {self.places:,} answers | {self.agreement:.3%} |",
            f"| largest error, stress set | {self.largest_error:.3g} |",
        ]


def perturbed(task: Task, batches: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
    """Without end: the batches again and again, perturbed otherwise each time; the same in every run."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        for batch in batches():
            yield task.perturbed(batch, generator)


def agreed(
    reference: RunsModel,
    engines: Mapping[str, RunsModel],
    batches: Iterable[Batch],
    answers: int | None = None,
) -> dict[str, Agreed]:
    """Of each engine, on all batches, or until there are `answers` answers."""
    found = {name: OutputAgreement() for name in engines}
    samples = places = 0
    for batch in batches:
        expected = next(iter(reference(batch.inputs).values()))
        for name, engine in engines.items():
            found[name].add(expected, next(iter(engine(batch.inputs).values())), batch.labels)
        samples += batch.size
        before, places = places, max(each.places for each in found.values())
        if answers is not None and (places >= answers or places == before):  # nothing more: no label here
            break
    return {
        name: Agreed(samples, each.places, each.share, each.largest_error) for name, each in found.items()
    }
