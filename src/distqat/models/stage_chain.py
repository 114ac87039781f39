"""The stages of a model one behind the other, in one process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from distqat.models.registry import named_tensors


def outputs_of_each(stages: Iterable[nn.Module], inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """What each stage returns, by name. A stage takes by position what the one before it returned.

    Lazy: a stage runs when its outputs are asked for. Raises whatever the stage raises.
    """
    named = dict(inputs)
    for stage in stages:
        named = named_tensors(stage(*named.values()))
        yield named


def run_stages(stages: Iterable[nn.Module], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The last stage's outputs by name; the inputs themselves where there are no stages."""
    named = dict(inputs)
    for outputs in outputs_of_each(stages, inputs):
        named = outputs
    return named
