"""From local weights to a mean pseudo-gradient, and back to local weights.

Members of a round must get the same bits on unlike processors: contributions are added in the order given,
each sum as a separate multiplication and addition, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distqat.errors import BadContribution

Tensors = dict[str, Tensor]


def pseudo_gradient(anchor: Mapping[str, Tensor], local: Mapping[str, Tensor]) -> Tensors:
    """anchor - local: what the inner steps moved, as a gradient. DiLoCo, arXiv:2311.08105."""
    _same_names(anchor, local)
    return {name: anchor[name].detach() - local[name].detach() for name in anchor}


def merge(anchor_new: Mapping[str, Tensor], now: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Tensors:
    """anchor_new + (now - base): the committed anchor with the local work that it does not contain.

    `base` is the snapshot if the own delta was in the set, else the old anchor. An element that has not moved
    since `base` gets the anchor's bits.
    """
    _same_names(anchor_new, now)
    _same_names(anchor_new, base)
    return {
        name: torch.where(now[name] == base[name], anchor, anchor + (now[name] - base[name]))
        for name, anchor in anchor_new.items()
    }


def schema_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes, as `check_contribution` and decoding compare them."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_contribution(
    contribution: Mapping[str, Tensor], schema: Mapping[str, tuple[int, ...]], *, max_norm: float = math.inf
) -> float:
    """The L2 norm of a decoded contribution.

    BadContribution, naming the tensor, for another set of names, another shape, a dtype other than float32, a
    value that is not finite, or a norm above `max_norm`.
    """
    if set(contribution) != set(schema):
        odd = sorted(set(contribution) ^ set(schema))
        raise BadContribution(f"a contribution differs from the stage's tensors in {odd[:3]}")
    squares: dict[str, float] = {}
    for name in sorted(schema):
        tensor = contribution[name]
        if tuple(tensor.shape) != tuple(schema[name]) or tensor.dtype != torch.float32:
            raise BadContribution(
                f"tensor {name!r} must be float32 of shape {tuple(schema[name])}, "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        # float64: the square of no float32 overflows, and NaN or infinity comes through.
        squares[name] = float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
        if not math.isfinite(squares[name]):
            raise BadContribution(f"tensor {name!r} holds NaN or infinity")
    norm = math.sqrt(math.fsum(squares.values()))
    if norm > max_norm:
        largest = max(squares, key=lambda name: squares[name])
        raise BadContribution(
            f"norm {norm:.3g} is above the bound {max_norm:.3g}; tensor {largest!r} has the most of it"
        )
    return norm


def norm_bound(norms: Sequence[float], ratio: float) -> float:
    """`ratio` times the lower median of the norms above zero; infinity when no norm is.

    One outlier among two or more cannot raise the bound. Among two members neither can be told from a
    forger, so the smaller norm counts.
    """
    moved = sorted(norm for norm in norms if norm > 0)
    return ratio * moved[(len(moved) - 1) // 2] if moved else math.inf


def capped_weights(samples: Sequence[int], cap: float = 4.0) -> list[float]:
    """Weights of the members by their committed samples, summing to 1.

    A count stops at `cap` times the lower median of the counts above zero, so that one false count cannot
    take the round over. Where nobody has samples all weigh the same.
    """
    if not samples or any(count < 0 for count in samples):
        raise BadContribution(f"sample counts {list(samples)} must be at least one, none negative")
    worked = sorted(count for count in samples if count > 0)
    if not worked:
        return [1.0 / len(samples)] * len(samples)
    limit = cap * worked[(len(worked) - 1) // 2]
    capped = [min(float(count), limit) for count in samples]
    total = math.fsum(capped)
    return [count / total for count in capped]


def weighted_mean(contributions: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """The weighted mean per tensor, added in the order given; weights are normalised to sum 1."""
    shares = _shares(contributions, weights)
    return {name: _mean([c[name] for c in contributions], shares) for name in contributions[0]}


def mean_buffers(contributions: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """Buffers and quantizer state of a group: floats by weighted mean, integers and flags by maximum.

    Quantizers hold the logarithm of their step, so its mean is the geometric mean of the steps. Shapes and
    dtypes must agree; BadContribution, naming the buffer, otherwise or when one is not finite.
    """
    shares = _shares(contributions, weights)
    averaged: Tensors = {}
    for name, first in contributions[0].items():
        values = [c[name].detach() for c in contributions]
        if any(v.dtype != first.dtype or v.shape != first.shape for v in values):
            raise BadContribution(f"buffer {name!r} differs in dtype or shape between members")
        if not first.is_floating_point():
            averaged[name] = torch.stack(values).amax(0)
            continue
        if not all(bool(torch.isfinite(v).all()) for v in values):
            raise BadContribution(f"buffer {name!r} holds NaN or infinity")
        wide = values if first.dtype == torch.float64 else [v.float() for v in values]
        averaged[name] = _mean(wide, shares).to(first.dtype)
    return averaged


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = values[0] * shares[0]
    for value, share in zip(values[1:], shares[1:], strict=True):
        total.add_(value * share)
    return total


def _shares(contributions: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> list[float]:
    if not contributions or len(contributions) != len(weights):
        raise BadContribution(f"{len(contributions)} contributions and {len(weights)} weights")
    for other in contributions[1:]:
        _same_names(contributions[0], other)
    if any(not (math.isfinite(w) and w >= 0) for w in weights) or math.fsum(weights) <= 0:
        raise BadContribution(f"weights {list(weights)} must be finite, not negative, and not all zero")
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _same_names(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    if one.keys() != other.keys():
        odd = sorted(one.keys() ^ other.keys())
        raise BadContribution(f"sets of tensors differ in {odd[:3]}")
