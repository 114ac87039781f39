"""Where to cut a chain of blocks so that no stage has much more to do than the others.

The slowest stage sets the pace of a pipeline, so the largest share is what is made small. Costs are whatever
adds up: multiply-accumulates, seconds, bytes. Nothing here knows of models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

from distqat.errors import ModelError

PartCost = Callable[[int, int, int], float]
"""`(part, start, stop)`: what blocks [start, stop) cost as that part."""


def balanced_cuts(
    costs: Sequence[float], parts: int, fixed_first: float = 0, fixed_last: float = 0
) -> list[int]:
    """Cut blocks of these costs into `parts` runs: the largest sum is as small as contiguous cuts allow.

    `fixed_first` and `fixed_last` come on top of the first and the last part (an embedding, a classifier).
    Returns the parts - 1 indices at which a new part starts, rising, each between 1 and len(costs) - 1; no
    part is empty. Among the cuts with that largest sum it is one with the smallest sum of squares, and always
    the same one. Exact, by dynamic programming over prefixes in O(parts * len(costs)**2).

    Raises ModelError when there are fewer blocks than parts, or a cost is negative or not finite.
    """
    count = len(costs)
    if not 1 <= parts <= count:
        raise ModelError(f"{count} blocks cannot be cut into {parts} stages; use 1 to {count}")
    if not all(math.isfinite(cost) and cost >= 0 for cost in (*costs, fixed_first, fixed_last)):
        raise ModelError("the costs of blocks are finite numbers from 0 on; one of these is not")
    sums = list(accumulate(costs, initial=0.0))

    def cost(part: int, start: int, stop: int) -> float:
        own = sums[stop] - sums[start]
        return own + (fixed_first if part == 0 else 0) + (fixed_last if part == parts - 1 else 0)

    return _even_cuts(count, parts, cost, limit=_smallest_largest(count, parts, cost))


def part_costs(
    costs: Sequence[float], cuts: Sequence[int], fixed_first: float = 0, fixed_last: float = 0
) -> list[float]:
    """What each of the parts costs that these cuts make."""
    sums = [sum(costs[start:stop]) for start, stop in zip([0, *cuts], [*cuts, len(costs)], strict=True)]
    sums[0] += fixed_first
    sums[-1] += fixed_last
    return sums


def _smallest_largest(count: int, parts: int, cost: PartCost) -> float:
    """The largest part of the best cut."""
    largest = [math.inf, *(cost(0, 0, stop) for stop in range(1, count + 1))]  # by prefix, in one part so far
    for part in range(1, parts):
        largest = [
            min((max(largest[at], cost(part, at, stop)) for at in range(part, stop)), default=math.inf)
            for stop in range(count + 1)
        ]
    return largest[count]


def _even_cuts(count: int, parts: int, cost: PartCost, *, limit: float) -> list[int]:
    """Of the cuts whose parts all stay within `limit`, the one with the smallest sum of squares."""

    def square(part: int, start: int, stop: int) -> float:
        value = cost(part, start, stop)
        return value**2 if value <= limit else math.inf

    best = [math.inf, *(square(0, 0, stop) for stop in range(1, count + 1))]
    starts: list[list[int]] = []  # by part from the second on, and by prefix: where that part starts
    for part in range(1, parts):
        found = [
            min(((best[at] + square(part, at, stop), at) for at in range(part, stop)), default=(math.inf, 0))
            for stop in range(count + 1)
        ]
        best = [total for total, _ in found]
        starts.append([at for _, at in found])
    cuts: list[int] = []
    stop = count
    for of_part in reversed(starts):
        stop = of_part[stop]
        cuts.insert(0, stop)
    return cuts
