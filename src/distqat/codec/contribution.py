"""A whole contribution as one flat dict of plain tensors, `{name}/{part}`, fit for safetensors and frames."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distqat.codec.codec_interface import Codec
from distqat.errors import BadContribution


def encode_tensors(codec: Codec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts of all tensors, sorted by name; BadContribution names a tensor that is not finite."""
    parts: dict[str, Tensor] = {}
    for name in sorted(tensors):
        parts.update(_prefixed(name, _encode(codec, name, tensors[name])))
    return parts


def decode_tensors(
    codec: Codec, parts: Mapping[str, Tensor], schema: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """float32 tensors by name; BadContribution when `parts` are not exactly those of `schema`."""
    expected = {f"{name}/{part}" for name in schema for part in codec.part_names()}
    if set(parts) != expected:
        missing, extra = sorted(expected - set(parts)), sorted(set(parts) - expected)
        raise BadContribution(f"a contribution lacks {missing[:3]} and has {extra[:3]} beyond its schema")
    decoded: dict[str, Tensor] = {}
    for name in sorted(schema):
        own = {part: parts[f"{name}/{part}"] for part in codec.part_names()}
        try:
            decoded[name] = codec.decode(own, schema[name])
        except BadContribution as error:
            raise BadContribution(f"tensor {name!r}: {error}") from error
    return decoded


def with_error_feedback(
    codec: Codec, delta: Mapping[str, Tensor], residual: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Encode delta + residual; the new residual is what the codec lost (error feedback, arXiv:1901.09847).

    Args:
        delta: what is to be sent.
        residual: what earlier rounds lost; None before the first.
    Returns:
        The parts, and the residual to keep if, and only if, the round commits with this contribution in it.
    """
    parts: dict[str, Tensor] = {}
    lost: dict[str, Tensor] = {}
    for name in sorted(delta):
        wanted = delta[name].detach().float()
        if residual is not None:
            wanted = wanted + residual[name]
        own = _encode(codec, name, wanted)
        lost[name] = wanted - codec.decode(own, wanted.shape)
        parts.update(_prefixed(name, own))
    return parts, lost


def _encode(codec: Codec, name: str, tensor: Tensor) -> dict[str, Tensor]:
    try:
        return codec.encode(tensor)
    except BadContribution as error:
        raise BadContribution(f"tensor {name!r}: {error}") from error


def _prefixed(name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}/{part}": tensor for part, tensor in parts.items()}
