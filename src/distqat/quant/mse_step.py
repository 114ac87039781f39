"""Steps of least squared quantization error, from weights or from a histogram of activations.

The histogram counts values by sign, exponent and the first four bits of the mantissa, read from the bits of
float32. So it needs no range beforehand, counts are exact integers, and the histogram of two batches is the
sum of theirs, in any order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MANTISSA_BITS = 4
LOWEST_EXPONENT, HIGHEST_EXPONENT = -24, 16
BINS = 1 + (HIGHEST_EXPONENT - LOWEST_EXPONENT) * 2**MANTISSA_BITS
"""Per sign: one for |x| < 2**-24 (zero), then 16 per octave; what is above 2**16 counts into the last."""

_FLOAT32_MANTISSA_BITS, _FLOAT32_BIAS = 23, 127
_POINTS_PER_BIN = 4


def histogram(x: Tensor) -> Tensor:
    """Counts of the finite `x` as int64 [2, BINS]: row 0 for values >= 0, row 1 for values < 0."""
    pattern = x.detach().float().contiguous().view(torch.int32).flatten()
    magnitude = (pattern & 0x7FFFFFFF) >> (_FLOAT32_MANTISSA_BITS - MANTISSA_BITS)
    first = (_FLOAT32_BIAS + LOWEST_EXPONENT) << MANTISSA_BITS
    index = (magnitude - (first - 1)).clamp_(0, BINS - 1)
    index += BINS * (pattern < 0)
    return torch.bincount(index, minlength=2 * BINS).view(2, BINS)


def seen_values(counts: Tensor) -> tuple[bool, bool]:
    """(anything above zero, anything below zero)."""
    return bool(counts[0, 1:].any()), bool(counts[1, 1:].any())


def histogram_step(counts: Tensor, qmin: int, qmax: int) -> float:
    """The step of least squared error for what `counts` holds; something above zero must be in it.

    Searched on a logarithmic grid: 1/16 octave over the 8 octaves below absmax / qmax, then 1/256.
    """
    counts = counts.cpu()
    rows = counts if qmin < 0 else counts[:1]
    highest = int(rows[:, 1:].sum(0).nonzero().max()) + 1
    absmax = float(_edges()[highest])
    values, weights = _weighed(counts if qmin < 0 else counts * torch.tensor([[1], [0]]))
    best = absmax / qmax
    for octaves in (torch.arange(0, -129, -1) / 16, torch.arange(-16, 17) / 256):
        steps = best * torch.exp2(octaves.double())[:, None]
        errors = (steps * (values / steps).round().clamp(qmin, qmax) - values).square() @ weights
        best = float(steps[int(errors.argmin())])
    return best


def largest_value(counts: Tensor, *, negative: bool) -> float:
    """An upper bound of |x| over what `counts` holds, at most a 16th above it; `negative`: of both signs."""
    rows = (counts if negative else counts[:1]).cpu()
    return float(_edges()[int(rows[:, 1:].sum(0).nonzero().max()) + 1])


def shifted_step(counts: Tensor, levels: int, *, search: bool) -> tuple[float, float]:
    """(step, lowest value) for codes 0..`levels` with zero on a code: the range seen, or a better part of it.

    With `search` both ends shrink by up to 4 octaves (the upper) and 2 (the lower), to the least squared
    error. Something other than zero must be in `counts`.
    """
    counts = counts.cpu()
    rows = [int(row[1:].nonzero().max()) + 1 if bool(row[1:].any()) else 0 for row in counts]
    high, low = (float(_edges()[row]) if row else 0.0 for row in rows)
    values, weights = _weighed(counts)
    best, chosen = float("inf"), ((high + low) / levels, -low)
    for up in range(33 if search else 1):
        for down in range(9 if search and low else 1):
            step = (high * 2 ** (-up / 8) + low * 2 ** (-down / 4)) / levels
            zero = round(low * 2 ** (-down / 4) / step)
            codes = (values / step).round().clamp(-zero, levels - zero)
            error = float((codes * step - values).square() @ weights)
            if error < best:
                best, chosen = error, (step, -zero * step)
    return chosen


def largest_steps(weight_CN: Tensor, qmax: int) -> Tensor:
    """Per row of [channels, weights] the step whose largest code is the largest weight; all positive."""
    largest_C: Tensor = torch.linalg.vector_norm(weight_CN.detach().float(), math.inf, dim=1) / qmax
    if bool(largest_C.all()):
        return largest_C
    zero_C = largest_C == 0
    if bool(zero_C.all()):
        return torch.full_like(largest_C, 2 / (qmax * weight_CN.shape[1] ** 0.5))
    return torch.where(zero_C, _mean(largest_C[~zero_C]), largest_C)


def channel_steps(weight_CN: Tensor, qmax: int) -> Tensor:
    """The step of least squared error per row of [channels, weights], symmetric codes; all positive.

    Quarter octaves over the 3.5 octaves below absmax / qmax, then halved intervals around the best. A row of
    zeros gets the mean of the others' steps; if all are zero, what a row of standard deviation
    1 / sqrt(weights) would about need.
    """
    weight_CN = weight_CN.detach().float()
    zero_C = ~weight_CN.any(1)
    largest_C = largest_steps(weight_CN, qmax)
    if bool(zero_C.all()):
        return largest_C
    best_C, error_C = largest_C, _channel_errors(weight_CN, largest_C, qmax)
    offsets = [
        [-quarters / 4 for quarters in range(1, 15)],
        [1 / 8, -1 / 8],
        [1 / 16, -1 / 16],
        [1 / 32, -1 / 32],
    ]
    for level in offsets:
        centre_C = best_C
        for octaves in level:
            step_C = centre_C * 2**octaves
            tried_C = _channel_errors(weight_CN, step_C, qmax)
            better_C = tried_C < error_C
            best_C = torch.where(better_C, step_C, best_C)
            error_C = torch.where(better_C, tried_C, error_C)
    return torch.where(zero_C, _mean(best_C[~zero_C]), best_C)


def _mean(steps: Tensor) -> Tensor:
    """In float32 the same on unlike processors."""
    return steps.double().mean().float()


def _weighed(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Points of the bins that hold something (zero apart), of both signs, and how much each counts."""
    values = _points()
    values = torch.cat([values, -values])
    weights = counts[:, 1:].double().div(_POINTS_PER_BIN).repeat_interleave(_POINTS_PER_BIN, dim=1).flatten()
    seen = weights > 0
    return values[seen], weights[seen]


def _channel_errors(weight_CN: Tensor, step_C: Tensor, qmax: int) -> Tensor:
    step_C1 = step_C[:, None]
    error_CN: Tensor = (weight_CN / step_C1).round_().clamp_(-qmax, qmax).mul_(step_C1).sub_(weight_CN)
    errors_C: Tensor = error_CN.square_().sum(1, dtype=torch.float64)  # processors differ in how they add
    return errors_C


def _edges() -> Tensor:
    """Upper edges of the bins of one sign, float64 [BINS]."""
    per_octave = 2**MANTISSA_BITS
    position = torch.arange(BINS, dtype=torch.float64)
    octave = torch.div(position, per_octave, rounding_mode="floor")
    mantissa = 1 + (position - octave * per_octave) / per_octave
    return torch.ldexp(mantissa, octave + LOWEST_EXPONENT)


def _points() -> Tensor:
    """Evenly spread points of the bins above zero, float64 [(BINS - 1) * points]."""
    edges = _edges()
    inside = (torch.arange(_POINTS_PER_BIN, dtype=torch.float64) + 0.5) / _POINTS_PER_BIN
    return (edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * inside).flatten()
