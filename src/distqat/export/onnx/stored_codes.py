"""How weight codes lie in the file: int8, or several of at most 4 bits packed into each byte.

    byte = c0 + levels * c1 + ...       two codes of 4 or 3 bits, five of 2 bits (3 levels, 3**5 = 243)

A table with a row for every byte gives the codes back, already times what they are stored as multiples of
(see `quant.int32_bias`). Its look-up has constants alone, so ONNX Runtime runs it once, as it loads the file,
and chooses the same kernels as for codes that are stored in int8. All operators are older than opset 18.
"""

from __future__ import annotations

import math

import numpy as np

from distqat.export.onnx.integer_weights import WeightCodes
from distqat.export.onnx.onnx_graph import Array, OnnxGraph
from distqat.quant.int32_bias import multiples

MOST_BITS = 4
LEAST_SAVED = 512  # bytes; the nodes that unpack take about as many
INT32 = 6


def stored(graph: OnnxGraph, value: str, codes: WeightCodes) -> str:
    """The name of the int8 codes of a weight, in its own layout; those of a tied table are stored once."""
    source = codes.turned_from
    if source is not None and np.array_equal(source.codes.integers.transpose(source.order), codes.integers):
        whole = stored(graph, source.value, source.codes)
        name = f"{value}.turned"
        if graph.producer(name) is None:
            graph.add("Transpose", [whole], name, perm=source.order)
        return name
    name, bits = f"{value}.integers", codes.bits
    if graph.producer(name) is not None:
        return name
    multiple = next((m for m in (multiples(bits), 1) if not np.any(codes.integers % m)), 1)
    digits = codes.integers // multiple
    levels = 2**bits - 1
    at_once = int(math.log(256, levels))
    fits = np.abs(digits).max(initial=0) <= levels // 2
    if bits > MOST_BITS or not fits or digits.size * (1 - 1 / at_once) < LEAST_SAVED:
        return graph.add_constant(name, codes.integers)
    return _packed(graph, name, digits, levels, multiple)


def _packed(graph: OnnxGraph, name: str, digits: Array, levels: int, multiple: int) -> str:
    at_once = int(math.log(256, levels))
    places = levels ** np.arange(at_once)
    padded = np.zeros(-(-digits.size // at_once) * at_once, np.int64)
    padded[: digits.size] = digits.reshape(-1)
    bytes_N = ((padded.reshape(-1, at_once) + levels // 2) @ places).astype(np.uint8)
    every = np.arange(levels**at_once)[:, None] // places % levels - levels // 2
    table = graph.add_constant(f"codes.{levels}.{multiple}", (every * multiple).astype(np.int8))
    index = graph.add("Cast", [graph.add_constant(f"{name}.packed", bytes_N)], f"{name}.index", to=INT32)
    value = graph.add("Gather", [table, index], f"{name}.unpacked")
    if padded.size > digits.size:
        flat = graph.add_constant("codes.flat", np.array([-1]))
        value = graph.add("Reshape", [value, flat], f"{name}.flat")
        ends = [graph.add_constant(f"codes.{end}", np.array([end])) for end in (0, digits.size)]
        value = graph.add("Slice", [value, *ends], f"{name}.whole")
    shape = graph.add_constant(f"{name}.shape", np.array(digits.shape, np.int64))
    return graph.add("Reshape", [value, shape], name)


def zeros(graph: OnnxGraph, count: int, dtype: type = np.int8) -> str:
    """Zero points of that many channels."""
    return graph.add_constant(f"zeros.{np.dtype(dtype)}.{count}", np.zeros(count, dtype))
