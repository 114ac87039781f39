"""BatchNorm's statistics of weights that stand: the mean over all batches that all replicas have counted.

`num_batches_tracked` counts them, so it travels in states and contributions: it is zero where a replica has
measured nothing yet, and a replica without a batch has no say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var")
_COUNT = "num_batches_tracked"


def tracked_norms(module: nn.Module) -> Iterator[tuple[str, nn.modules.batchnorm._BatchNorm]]:
    """BatchNorms with statistics of their own, by name."""
    for name, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.num_batches_tracked is not None:
            yield name, child


@torch.no_grad()
def begin_measuring(module: nn.Module) -> None:
    """Where a stage has no rounds: what is counted from now on is of the weights as they are."""
    for _, norm in tracked_norms(module):
        norm.num_batches_tracked.zero_()  # type: ignore[union-attr]


class BatchNormStatistics:
    """BatchNorm's statistics of a stage in its rounds; on the named buffers of states."""

    def __init__(self, module: nn.Module) -> None:
        self._norms = [name for name, _ in tracked_norms(module)]

    def uncounted(self, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The committed buffers that the last round begins with: nothing is measured of these weights yet."""
        fresh = dict(buffers)
        for name in self._norms:
            fresh[_of(name, _COUNT)] = torch.zeros_like(buffers[_of(name, _COUNT)])
        return fresh

    def measured(
        self,
        before: Mapping[str, Tensor],
        replicas: Sequence[Mapping[str, Tensor]],
        weigh: Callable[[Sequence[int]], Sequence[float]],
    ) -> dict[str, Tensor]:
        """Statistics over all batches that replicas counted; what none of them counted is as `before`.

        `weigh` makes weights of their counts, which sum to 1.
        """
        found: dict[str, Tensor] = {}
        for name in self._norms:
            counts = [max(0, int(each[_of(name, _COUNT)])) for each in replicas]
            found[_of(name, _COUNT)] = torch.full_like(before[_of(name, _COUNT)], sum(counts))
            weights = weigh(counts)
            for own in (_of(name, each) for each in _STATISTICS):
                found[own] = _mean([r[own] for r in replicas], weights) if any(counts) else before[own]
        return found


def _mean(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """In float64, added in the order given; a part without weight is not looked at."""
    terms = [part.double() * weight for part, weight in zip(parts, weights, strict=True) if weight]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total.to(parts[0].dtype)


def _of(norm: str, own: str) -> str:
    return f"{norm}.{own}" if norm else own
