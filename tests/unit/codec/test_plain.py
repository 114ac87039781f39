"""Codecs with one number per element."""

from __future__ import annotations

import pytest
import torch

from distqat.codec import get_codec
from distqat.errors import BadContribution


def test_fp32_is_exact_and_a_copy() -> None:
    x = torch.randn(3, 5)
    parts = get_codec("fp32").encode(x)
    kept = x.clone()
    x.zero_()
    decoded = get_codec("fp32").decode(parts, (3, 5))
    assert torch.equal(decoded, kept)
    decoded.zero_()
    assert torch.equal(parts["values"].view(3, 5), kept)


def test_fp16_saturates_instead_of_overflowing() -> None:
    x = torch.tensor([1e6, -1e6, 1.5, 1e-9])
    decoded = get_codec("fp16").decode(get_codec("fp16").encode(x), (4,))
    assert decoded.tolist() == [65504.0, -65504.0, 1.5, 0.0]


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_values_that_are_not_finite_are_refused_both_ways(name: str) -> None:
    codec = get_codec(name)
    with pytest.raises(BadContribution, match="NaN"):
        codec.encode(torch.tensor([1.0, float("nan")]))
    parts = codec.encode(torch.ones(2))
    parts["values"][0] = float("inf")
    with pytest.raises(BadContribution, match="NaN"):
        codec.decode(parts, (2,))
