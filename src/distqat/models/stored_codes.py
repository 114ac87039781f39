"""Weights that a checkpoint holds as integer or 8-bit codes, as the floats that they stand for.

    scheme                         stored beside `x.weight`                      floats
    FP8 in blocks (DeepSeek)       x.weight_scale_inv [out / 128, in / 128]      codes * scale
    FP8, int8 (compressed-tensors) x.weight_scale, x.weight_zero_point           (codes - zero) * scale
    int8 (bitsandbytes)            x.SCB [out]                                   codes * scale / 127
    MXFP4 (gpt-oss)                in its place: x_blocks, x_scales              FP4 * 2 ** (scale - 127)

A scale of compressed-tensors is one number, one per row, or one per block. Everything else is refused: packed
4-bit codes, codebooks, and codes without a scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from distqat.errors import ModelError

BlockSizes: TypeAlias = "tuple[int, ...]"

INSTEAD = (
    "Take a release of the model in bf16 or fp16, or make one: AutoModelForCausalLM.from_pretrained(...)"
    ".dequantize().save_pretrained(FOLDER)"
)
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})  # as safetensors names numbers that are not codes
CODES = frozenset({"I8", "F8_E4M3", "F8_E5M2"})
BLOCKS, BLOCK_SCALES = "_blocks", "_scales"  # what MXFP4 puts in the place of one tensor
_SCALES, _ZERO, _ROWS = ("_scale_inv", "_scale"), "_zero_point", "SCB"
_BLOCK = (128, 128)  # of FP8 where the configuration does not say
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def scale_of(name: str, kind: str, stored: Container[str], quantization: Mapping[str, Any]) -> str:
    """The name of the scale of the codes in `name`, whose type safetensors calls `kind`.

    Raises ModelError where it is not known what they stand for.
    """
    rows = f"{name.rpartition('.')[0]}.{_ROWS}"
    known = [name + suffix for suffix in _SCALES] + ([rows] if kind == "I8" else [])
    found = next((each for each in known if each in stored), None)
    if found is None or kind not in CODES:
        method = quantization.get("quant_method")
        by = f" (quant_method: {method})" if method else ""
        raise ModelError(
            f"{name!r} holds {kind} codes{by}, and what they stand for is not known here (known are FP8 and "
            f"int8 with a scale beside the tensor, and MXFP4). {INSTEAD}"
        )
    return found


def floats_of(name: str, scale: str, read: Callable[[str], Tensor | None], sizes: BlockSizes) -> Tensor:
    """float32 of the shape of the codes. Raises ModelError where the scale has another shape."""
    codes, steps, zero = read(name), read(scale), read(name + _ZERO)
    assert codes is not None
    assert steps is not None
    numbers = codes.float()
    if zero is not None:
        numbers = numbers - _spread(zero.float(), codes, sizes, name)
    steps = steps.float() / 127 if scale.endswith(f".{_ROWS}") else steps.float()
    return numbers * _spread(steps, codes, sizes, name)


def floats_of_blocks(blocks: Tensor, scales: Tensor) -> Tensor:
    """MXFP4 of experts, uint8 [E, out, in / 32, 16] and [E, out, in / 32] -> bfloat16 [E, in, out]."""
    signs = torch.tensor([*_FP4, *(-value for value in _FP4)], dtype=torch.bfloat16)
    halves = torch.stack([blocks & 0x0F, blocks >> 4], dim=-1)  # [E, out, in / 32, 16, 2]: the low one first
    values = signs[halves.int()].flatten(-2)
    return torch.ldexp(values, scales.int()[..., None] - 127).flatten(-2).transpose(1, 2).contiguous()


def block_sizes(quantization: Mapping[str, Any]) -> BlockSizes:
    """Rows and columns of a block, where the configuration says them."""
    given = quantization.get("weight_block_size") or _BLOCK
    return tuple(map(int, given))


def _spread(scale: Tensor, codes: Tensor, sizes: BlockSizes, name: str) -> Tensor:
    """`scale` with one number for every code: it may have been one for all, for a row, or for a block."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() == 1 and len(scale) == len(codes):
        scale = scale.reshape(-1, *[1] * (codes.dim() - 1))
    if scale.dim() != codes.dim():
        raise ModelError(_misfit(name, scale, codes))
    sizes = (*(1,) * (codes.dim() - len(sizes)), *sizes)[-codes.dim() :]  # leading dimensions: experts
    for dim, (parts, length) in enumerate(zip(scale.shape, codes.shape, strict=True)):
        if parts in (1, length):
            continue
        size = sizes[dim] if math.ceil(length / sizes[dim]) == parts else length // parts
        if math.ceil(length / size) != parts:
            raise ModelError(_misfit(name, scale, codes))
        scale = scale.repeat_interleave(size, dim=dim).narrow(dim, 0, length)
    return scale


def _misfit(name: str, scale: Tensor, codes: Tensor) -> str:
    return f"the scale of {name!r} is {list(scale.shape)}, which does not fit its {list(codes.shape)} codes"
