"""Whole contributions, and error feedback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distqat.codec import CODECS, Codec, decode_tensors, encode_tensors, get_codec, with_error_feedback
from distqat.errors import BadContribution

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        "conv.weight": torch.randn(8, 3, 3, 3, generator=generator),
        "conv.weight/codes": torch.randn(5, generator=generator),  # a name that looks like a part
        "bias": torch.zeros(0),
        "scalar": torch.randn((), generator=generator),
    }


@ALL
def test_a_contribution_survives_a_file(codec: Codec, tmp_path: Path) -> None:
    tensors = some_tensors()
    schema = {name: tuple(t.shape) for name, t in tensors.items()}
    parts = encode_tensors(codec, tensors)
    save_file(parts, tmp_path / "c.safetensors")
    decoded = decode_tensors(codec, load_file(tmp_path / "c.safetensors"), schema)
    assert set(decoded) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(decoded[name], codec.decode(codec.encode(tensor), tensor.shape))


@ALL
def test_another_schema_is_refused(codec: Codec) -> None:
    parts = encode_tensors(codec, {"a": torch.ones(3)})
    with pytest.raises(BadContribution, match="lacks"):
        decode_tensors(codec, parts, {"a": (3,), "b": (1,)})
    with pytest.raises(BadContribution, match="beyond its schema"):
        decode_tensors(codec, parts, {})
    with pytest.raises(BadContribution, match="tensor 'a'"):
        decode_tensors(codec, parts, {"a": (200,)})


def test_the_tensor_that_is_not_finite_is_named() -> None:
    with pytest.raises(BadContribution, match="tensor 'b'"):
        encode_tensors(get_codec("int4"), {"a": torch.ones(3), "b": torch.tensor([float("nan")])})


@ALL
def test_error_feedback_loses_nothing_over_time(codec: Codec) -> None:
    """What was sent plus what is still held equals all that was to be sent."""
    generator = torch.Generator().manual_seed(11)
    deltas = [{"w": torch.randn(100, generator=generator)} for _ in range(8)]
    sent, residual = torch.zeros(100), None
    for delta in deltas:
        before = {"w": delta["w"].clone()}
        parts, residual = with_error_feedback(codec, delta, residual)
        assert torch.equal(delta["w"], before["w"])
        sent = sent + decode_tensors(codec, parts, {"w": (100,)})["w"]
    assert residual is not None
    total = torch.stack([delta["w"] for delta in deltas]).sum(0)
    assert torch.allclose(sent + residual["w"], total, atol=1e-5)
    assert float(residual["w"].abs().max()) < 0.5  # and the residual does not grow


def test_a_residual_is_left_as_it_was() -> None:
    residual = {"w": torch.full((4,), 0.3)}
    with_error_feedback(get_codec("int4"), {"w": torch.ones(4)}, residual)
    assert torch.equal(residual["w"], torch.full((4,), 0.3))
