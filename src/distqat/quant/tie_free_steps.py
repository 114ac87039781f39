"""Steps by which no integer lies between two codes, so that every engine rounds to the same one.

Codes become other codes by a factor: of a sum of products, input step * weight step * k / output step; of
what a sum of residuals adds, its step / output step. Engines multiply in float32, each in its own order, and
where the result is nearly half-way between two codes they round differently. In a deep network that grows:
of one code in 400,000 in the first block of a ResNet-50 came 15 % of the codes in its last.

A whole number times p / d with an odd d is never half-way, and no nearer to it than 1 / (2 d): far more than
float32 errs by. So factors are moved to the nearest such ratio, by some 1e-4 of themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distqat.quant.folded_batchnorm import FoldedNorm
from distqat.quant.int32_bias import multiples
from distqat.quant.output_quantizer import leaving, quantizer_of
from distqat.quant.quantize_stage import requantized
from distqat.quant.quantizer import ActivationQuantizer
from distqat.quant.quantizer_placement import INPUT
from distqat.quant.weight_quantizer import WeightQuantizer

LARGEST = 4095
"""Denominators: 1 / (2 * 4095) of a code is four times what float32 errs by at the largest code."""
TRIES = 8
MOVED = 2e-7
"""Relative; what is nearer has been moved already, up to float32."""


def odd_ratio(ratio: Tensor) -> Tensor:
    """float64: the nearest of some p / d to each positive `ratio`; d is odd, about LARGEST where p > 1."""
    wanted = ratio.double()
    best = torch.full_like(wanted, torch.inf)
    for less in range(TRIES):
        p = ((wanted * LARGEST).floor() - less).clamp_min(1)
        found = p / (((p / wanted - 1) / 2).round() * 2 + 1)
        best = torch.where((found - wanted).abs() < (best - wanted).abs(), found, best)
    return best


@torch.no_grad()
def remove_ties(stages: Sequence[nn.Module]) -> int:
    """Move steps of quantizers and factors of folded norms of all stages, in place; how many were moved.

    Quantizers must be frozen. What is in float, or not followed by a quantizer, is left as it is.
    """
    behind: dict[ActivationQuantizer, ActivationQuantizer] = {}
    norms: list[tuple[FoldedNorm, ActivationQuantizer]] = []
    before: nn.Module | None = None
    for stage in stages:
        for name, other in requantized(stage).items():
            follower = (before and leaving(before)) if name == INPUT else stage.get_submodule(name)
            quantizer = stage.get_submodule(other)
            assert isinstance(quantizer, ActivationQuantizer)
            if isinstance(follower, FoldedNorm):
                norms.append((follower, quantizer))
            elif isinstance(follower, ActivationQuantizer):
                behind[follower] = quantizer
        before = stage
    moved: set[ActivationQuantizer] = set()
    for quantizer in behind:
        _move(quantizer, behind, moved)
    return len(moved) + sum(_move_factor(norm, quantizer) for norm, quantizer in norms)


def _move(
    quantizer: ActivationQuantizer,
    behind: dict[ActivationQuantizer, ActivationQuantizer],
    moved: set[ActivationQuantizer],
) -> None:
    """Those behind first: their steps are what this one is a ratio of. One denominator for all of a sum."""
    chain = [quantizer]
    while (following := behind.get(chain[-1])) is not None and following not in moved:
        chain.append(following)
    for each in reversed(chain):
        other = behind.get(each)
        if other is None or each in moved or other is each:
            continue
        ratio = (each.step.double() / other.step.double() * LARGEST).round() / LARGEST
        if float(ratio) > 0:
            each.log_step.copy_((ratio * other.step.double()).log())
            moved.add(each)


def _move_factor(norm: FoldedNorm, quantizer: ActivationQuantizer) -> bool:
    layer, weight = norm.convolution, norm.convolution.weight_quant
    taken = quantizer_of(layer.input_quant)
    if taken is None or not isinstance(weight, WeightQuantizer):
        return False
    deviation_C = (norm.running_var.double() + norm.eps).sqrt()
    factor_C = norm.weight.double() / deviation_C
    stored_C = taken.step.double() * weight.step.double() / multiples(weight.bits) / quantizer.step.double()
    ratio_C = (stored_C * factor_C).abs()
    by_C = odd_ratio(ratio_C) / ratio_C
    new_C = torch.where((ratio_C > 0) & ((by_C - 1).abs() > MOVED), factor_C * by_C, factor_C)
    norm.weight.copy_(new_C * deviation_C)
    norm.bias.add_(norm.running_mean.double() * (new_C - factor_C))
    return True
