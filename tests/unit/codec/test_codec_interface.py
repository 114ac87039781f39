"""What every codec must do; the suite runs over the registry."""

from __future__ import annotations

import pytest
import torch

from distqat.codec import CODECS, Codec, get_codec
from distqat.errors import BadContribution

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


@ALL
@pytest.mark.parametrize(
    "shape", [(), (1,), (0,), (3, 0, 2), (7,), (63,), (64,), (65,), (5, 13), (2, 3, 4, 5)]
)
def test_shape_size_and_names_survive(codec: Codec, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    parts = codec.encode(x)
    decoded = codec.decode(parts, shape)
    assert decoded.shape == x.shape
    assert decoded.dtype == torch.float32
    assert tuple(parts) == codec.part_names()
    assert all(part.dim() == 1 and part.is_contiguous() for part in parts.values())
    assert sum(part.numel() * part.element_size() for part in parts.values()) == codec.nbytes(x.numel())
    assert torch.allclose(decoded, x, atol=float(x.abs().max() if x.numel() else 0) / 13)


@ALL
def test_strided_double_and_gradient_tracking_tensors_encode(codec: Codec) -> None:
    x = torch.randn(8, 6, dtype=torch.float64, requires_grad=True).t()
    plain = codec.encode(x.detach().float().contiguous())
    assert all(torch.equal(part, plain[name]) for name, part in codec.encode(x).items())


@ALL
def test_more_than_one_chunk(codec: Codec) -> None:
    x = torch.randn(2**18 + 64 * 3 + 5, generator=torch.Generator().manual_seed(1))
    decoded = codec.decode(codec.encode(x), x.shape)
    tail = codec.decode(codec.encode(x[2**18 :]), (64 * 3 + 5,))
    assert torch.equal(decoded[2**18 :], tail)


@ALL
def test_wrong_parts_are_refused(codec: Codec) -> None:
    good = codec.encode(torch.randn(130))
    for name, part in good.items():
        spoilt = [
            {k: v for k, v in good.items() if k != name},
            {**good, "more": part},
            {**good, name: part[:-1]},
            {**good, name: torch.cat([part, part[:1]])},
            {**good, name: part.double()},
            {**good, name: part[None]},
        ]
        for parts in spoilt:
            with pytest.raises(BadContribution, match=codec.name):
                codec.decode(parts, (130,))


@ALL
def test_input_that_is_not_finite_or_not_float_is_refused(codec: Codec) -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(70)
        x[66] = bad
        with pytest.raises(BadContribution, match="NaN or infinity"):
            codec.encode(x)
    with pytest.raises(ValueError, match="floating-point"):
        codec.encode(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="negative"):
        get_codec(codec.name).decode({}, (-1,))
