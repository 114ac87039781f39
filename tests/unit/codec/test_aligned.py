"""Integer codes of fake-quantized tensors: the bits come back, or there are no codes."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distqat.codec.aligned import AlignedCodec, CodeGrid
from distqat.errors import BadContribution
from distqat.quant.quantizer import ActivationQuantizer, QuantizerSettings

CODEC = AlignedCodec()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Kind = Literal["signed", "unsigned", "shifted"]


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def quantizer_of(bits: int, kind: Kind, method: str, step: float) -> ActivationQuantizer:
    """An active quantizer of a tensor that leaves its stage."""
    made = ActivationQuantizer("q", bits=bits, signed=kind == "signed", how=QuantizerSettings(method))
    made.begin_calibrated(torch.tensor(step), kind == "signed", torch.tensor(-step * 2**bits / 7))
    made.leaves_stage = True
    return made


def grid_of(quantizer: ActivationQuantizer) -> CodeGrid:
    return CodeGrid(float(quantizer.step), *quantizer.code_range)


@given(
    width=st.integers(2, 8),
    kind=st.sampled_from(["signed", "unsigned", "shifted"]),
    pact=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    exponent=st.floats(-9, 5),
    seed=st.integers(0, 2**32),
)
def test_what_a_quantizer_makes_comes_back_to_the_bit(
    width: int, kind: Kind, pact: bool, dtype: torch.dtype, exponent: float, seed: int
) -> None:
    method = "lsq+" if kind == "shifted" else "pact" if pact else "lsq"
    quantizer = quantizer_of(width, kind, method, 2.0**exponent)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 5, 7, generator=generator) * 2.0**exponent * 2 ** (width - 1)
    y = quantizer(x.to(dtype)).detach()
    parts = CODEC.encode(y.permute(0, 2, 1), grid_of(quantizer))
    assert parts is not None
    assert (parts["codes"].dtype, parts["codes"].shape) == (torch.uint8, (105,))
    assert int(parts["codes"].max()) <= 2**width - 1
    decoded = CODEC.decode(parts, (3, 7, 5)).to(dtype)
    assert torch.equal(bits(decoded), bits(y.permute(0, 2, 1)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_code_of_eight_bits_over_many_steps(dtype: torch.dtype) -> None:
    """In bfloat16 two codes may stand for one value; then either will do."""
    codes = torch.arange(256.0)
    for step in torch.linspace(-6.0, 3.0, 500).exp2().tolist():
        y = (codes * step).to(dtype)
        parts = CODEC.encode(y, CodeGrid(step, 0, 255))
        assert parts is not None, step
        assert dtype == torch.bfloat16 or torch.equal(parts["codes"], codes.to(torch.uint8)), step
        assert torch.equal(bits(CODEC.decode(parts, (256,)).to(dtype)), bits(y)), step


def test_more_than_one_chunk_comes_back() -> None:
    codes = torch.randint(-127, 128, (2**18 + 5,), generator=torch.Generator().manual_seed(1))
    y = codes.float() * 0.03 + 0.0
    parts = CODEC.encode(y, CodeGrid(float(torch.tensor(0.03)), -127, 127))
    assert parts is not None
    assert torch.equal(bits(CODEC.decode(parts, y.shape)), bits(y))


@pytest.mark.parametrize("value", [0.05, -0.0, math.nan, math.inf, -math.inf, 12.8, -12.8])
@pytest.mark.parametrize("place", [0, 2**18])
def test_a_tensor_that_is_off_the_grid_anywhere_has_no_codes(value: float, place: int) -> None:
    y = torch.zeros(2**18 + 1)
    step = float(torch.tensor(0.1))
    assert CODEC.encode(y, CodeGrid(step, -127, 127)) is not None
    y[place] = value
    assert CODEC.encode(y, CodeGrid(step, -127, 127)) is None


@pytest.mark.parametrize(
    "grid",
    [
        CodeGrid(0.0, 0, 255),
        CodeGrid(-0.1, 0, 255),
        CodeGrid(math.nan, 0, 255),
        CodeGrid(math.inf, 0, 255),
        CodeGrid(2.0**-127, 0, 255),
        CodeGrid(2.0**121, 0, 255),
        CodeGrid(0.1, 0, 256),
        CodeGrid(0.1, -128, 128),
        CodeGrid(0.1, 1, 5),
        CodeGrid(0.1, -5, -1),
    ],
)
def test_grids_that_cannot_be_used(grid: CodeGrid) -> None:
    assert CODEC.encode(torch.zeros(3), grid) is None
    with pytest.raises(BadContribution, match="codec aligned"):
        CODEC.decode({"codes": torch.zeros(3, dtype=torch.uint8), "grid": grid.part()}, (3,))


def test_integers_and_doubles_have_no_codes() -> None:
    for dtype in (torch.float64, torch.int64, torch.bool):
        assert CODEC.encode(torch.zeros(3, dtype=dtype), CodeGrid(0.1, 0, 255)) is None


def test_bad_parts_are_refused() -> None:
    good = CODEC.encode(torch.tensor([0.0, 0.5, 1.5]), CodeGrid(0.5, 0, 3))
    assert good is not None
    assert CODEC.decode(good, (3, 1)).tolist() == [[0.0], [0.5], [1.5]]
    above = {**good, "codes": torch.tensor([0, 1, 4], dtype=torch.uint8)}
    half = {**good, "grid": torch.tensor([0.5, -0.5, 3.0])}
    endless = {**good, "grid": torch.tensor([0.5, 0.0, math.inf])}
    short = {**good, "codes": good["codes"][:2]}
    signed = {**good, "codes": good["codes"].to(torch.int8)}
    for parts in (above, half, endless, short, signed, {"codes": good["codes"]}):
        with pytest.raises(BadContribution, match="aligned"):
            CODEC.decode(parts, (3, 1))


def test_nothing_at_all_travels_too() -> None:
    parts = CODEC.encode(torch.empty(0, 4), CodeGrid(0.5, 0, 3))
    assert parts is not None
    assert CODEC.decode(parts, (0, 4)).shape == (0, 4)
