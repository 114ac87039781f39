"""Steps of least squared quantization error, from weights or from a histogram of activations.

The histogram counts values by sign, exponent and the first four bits of the mantissa, read from the bits of
float32. So it needs no range beforehand, counts are exact integers, and the histogram of two batches is the
sum of theirs, in any order.
"""

from __future__ import annotations

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
    values = _points()
    values = torch.cat([values, -values])
    weights = counts[:, 1:].double().div(_POINTS_PER_BIN).repeat_interleave(_POINTS_PER_BIN, dim=1).flatten()
    seen = weights > 0
    values, weights = values[seen], weights[seen]
    best = absmax / qmax
    for octaves in (torch.arange(0, -129, -1) / 16, torch.arange(-16, 17) / 256):
        steps = best * torch.exp2(octaves.double())[:, None]
        errors = (steps * (values / steps).round().clamp(qmin, qmax) - values).square() @ weights
        best = float(steps[int(errors.argmin())])
    return best


def channel_steps(weight_CN: Tensor, qmax: int) -> Tensor:
    """The step of least squared error per row of [channels, weights], symmetric codes; all positive.

    Quarter octaves over the 3.5 octaves below absmax / qmax, then halved intervals around the best. A row of
    zeros gets the mean of the others' steps; if all are zero, what a row of standard deviation
    1 / sqrt(weights) would about need.
    """
    weight_CN = weight_CN.detach().float()
    largest_C = weight_CN.abs().amax(1) / qmax
    zero_C = largest_C == 0
    if bool(zero_C.all()):
        return torch.full_like(largest_C, 2 / (qmax * weight_CN.shape[1] ** 0.5))
    largest_C = torch.where(zero_C, largest_C[~zero_C].mean(), largest_C)
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
    return torch.where(zero_C, best_C[~zero_C].mean(), best_C)


def _channel_errors(weight_CN: Tensor, step_C: Tensor, qmax: int) -> Tensor:
    step_C1 = step_C[:, None]
    error_CN: Tensor = (weight_CN / step_C1).round_().clamp_(-qmax, qmax).mul_(step_C1).sub_(weight_CN)
    errors_C: Tensor = error_CN.square_().sum(1)
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
