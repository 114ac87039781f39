"""Which form a tensor travels in, and what the receiver refuses."""

from __future__ import annotations

import math

import pytest
import torch

from distqat.codec.activation_codec import DECODERS, LOSSY, Coded, decode_activation, encode_activation
from distqat.codec.aligned import CodeGrid
from distqat.errors import BadContribution, UnknownName

ON_GRID = torch.arange(128.0) * 0.5
OFF_GRID = ON_GRID + 0.1
GRID = CodeGrid(0.5, 0, 255)


def decoded(coded: Coded | None, x: torch.Tensor) -> torch.Tensor:
    assert coded is not None
    return decode_activation(coded.codec, coded.parts, x.shape, x.dtype)


def test_the_grid_comes_first_and_loses_nothing() -> None:
    for lossy in (None, *LOSSY.values()):
        coded = encode_activation(ON_GRID, GRID, lossy)
        assert coded is not None
        assert coded.codec == "aligned"
        assert torch.equal(decoded(coded, ON_GRID), ON_GRID)


def test_without_a_grid_or_off_it_the_tensor_is_as_it_is_unless_a_loss_is_asked_for() -> None:
    assert encode_activation(OFF_GRID, GRID, None) is None
    assert encode_activation(ON_GRID, None, None) is None
    for name, lossy in LOSSY.items():
        coded = encode_activation(OFF_GRID, GRID, lossy)
        assert coded is not None
        assert coded.codec == name
        torch.testing.assert_close(decoded(coded, OFF_GRID), OFF_GRID, atol=0.26, rtol=1e-3)


def test_a_lossy_codec_keeps_the_dtype_and_must_shorten() -> None:
    half = torch.randn(256).bfloat16()
    assert encode_activation(half, None, LOSSY["fp16"]) is None
    assert encode_activation(torch.randn(1), None, LOSSY["int8"]) is None  # a scale for one element
    assert encode_activation(torch.arange(9), None, LOSSY["int8"]) is None
    assert decoded(encode_activation(half, None, LOSSY["int8"]), half).dtype == torch.bfloat16


def test_what_is_not_finite_travels_as_it_is() -> None:
    x = torch.tensor([1.0, math.nan]).repeat(64)
    for lossy in (None, *LOSSY.values()):
        assert encode_activation(x, GRID, lossy) is None


def test_unknown_codecs_and_integers_are_refused() -> None:
    coded = encode_activation(ON_GRID, GRID, None)
    assert coded is not None
    with pytest.raises(UnknownName, match="aligned"):
        decode_activation("alined", coded.parts, (128,), torch.float32)
    for name in DECODERS:
        with pytest.raises(BadContribution, match="int64"):
            decode_activation(name, coded.parts, (128,), torch.int64)
