"""Block codecs: error bound, extremes, packing, and refusal of hostile parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.codec import get_codec
from distqat.codec.blocks import BLOCK
from distqat.errors import BadContribution

QMAX = {"int8": 127, "int4": 7}
# Half a step of the scale that travels, which bfloat16 may have rounded up.
RELATIVE = {"int8": 0.5 / 127 * 1.001, "int4": 0.5 * (1 + 2**-8) / 7 * 1.001}


@pytest.mark.parametrize("name", ["int8", "int4"])
@given(
    numel=st.integers(0, 5 * BLOCK),
    exponent=st.integers(-110, 120),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_error_is_below_half_a_step_of_the_block(
    name: str, numel: int, exponent: int, seed: int, data: st.DataObject
) -> None:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(seed)).clamp(-30, 30) * 2.0**exponent
    codec = get_codec(name)
    parts = codec.encode(x)
    decoded = codec.decode(parts, (numel,))
    assert sum(p.numel() * p.element_size() for p in parts.values()) == codec.nbytes(numel)
    for first in range(0, numel, BLOCK):
        block = x[first : first + BLOCK].double()
        error = (decoded[first : first + BLOCK].double() - block).abs().max()
        assert error <= block.abs().max() * RELATIVE[name]


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_zero_blocks_decode_to_exact_zeros_beside_others(name: str) -> None:
    x = torch.zeros(3 * BLOCK)
    x[BLOCK : 2 * BLOCK] = torch.linspace(-1, 1, BLOCK)
    parts = get_codec(name).encode(x)
    decoded = get_codec(name).decode(parts, x.shape)
    zero_code = {"int8": 0, "int4": 8 | 8 << 4}[name]
    assert set(parts["codes"].view(3, -1)[0].tolist()) == {zero_code}
    assert torch.equal(decoded[:BLOCK], torch.zeros(BLOCK))
    assert torch.equal(decoded[2 * BLOCK :], torch.zeros(BLOCK))
    assert decoded[BLOCK] == pytest.approx(-1, rel=0.01)


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("value", [1e-45, 1e-38, 3e-36, 6e-8, 65504.0, 1e30, 3.4e38])
def test_extremes_stay_finite_and_keep_their_sign(name: str, value: float) -> None:
    x = torch.tensor([value, -value, 0.0])
    decoded = get_codec(name).decode(get_codec(name).encode(x), (3,))
    assert bool(torch.isfinite(decoded).all())
    assert decoded[0] == -decoded[1]
    assert decoded[0] >= 0
    if 1e-34 < value < 1e38:
        assert float(decoded[0]) == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_codes_survive_a_second_trip(name: str) -> None:
    codec = get_codec(name)
    once = codec.encode(torch.randn(1000, generator=torch.Generator().manual_seed(3)))
    decoded = codec.decode(once, (1000,))
    again = codec.decode(codec.encode(decoded), (1000,))
    assert torch.allclose(decoded, again, rtol=0.005, atol=0)


def test_int4_layout_is_low_half_then_high_half() -> None:
    x = torch.tensor([7.0, -7.0, 1.0])  # padded to four codes: 7, -7 low; 1, 0 high
    parts = get_codec("int4").encode(x)
    assert parts["codes"].tolist() == [(7 + 8) | (1 + 8) << 4, (-7 + 8) | (0 + 8) << 4]
    assert parts["scales"].tolist() == [1.0]
    assert get_codec("int4").decode(parts, (3,)).tolist() == [7.0, -7.0, 1.0]


def test_decoding_is_one_float32_product() -> None:
    parts = {"codes": torch.tensor([3, -127], dtype=torch.int8), "scales": torch.tensor([0.1])}
    expected = torch.tensor([3.0, -127.0]) * torch.tensor(0.1)
    assert torch.equal(get_codec("int8").decode(parts, (2,)), expected)


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 1e-40, 3e38])
def test_bad_scales_are_refused(name: str, scale: float) -> None:
    parts = get_codec(name).encode(torch.ones(65))
    parts["scales"][1] = scale
    with pytest.raises(BadContribution, match="scale"):
        get_codec(name).decode(parts, (65,))


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_all_codes_with_the_largest_scale_are_finite(name: str) -> None:
    codec = get_codec(name)
    parts = codec.encode(torch.full((BLOCK,), 3.4e38))
    parts["codes"].fill_(-128 if name == "int8" else 0)
    assert bool(torch.isfinite(codec.decode(parts, (BLOCK,))).all())
