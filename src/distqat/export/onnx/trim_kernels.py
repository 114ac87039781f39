"""Kernel positions that only ever meet padding: a 3 x 3 kernel over a picture of 1 x 1 has one that counts.

ONNX Runtime's integer kernels multiply padding as anything else, those in float leave it out. Without these
positions the result is the same to the bit, and the weight smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distqat.export.onnx.integer_weights import WeightCodes
from distqat.export.onnx.onnx_graph import OnnxGraph, attribute

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class KernelAxis:
    """One spatial dimension of a convolution: the size of what comes in, and how the kernel goes over it."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    """Padding on both sides."""

    @property
    def outputs(self) -> int:
        """How many positions the kernel takes."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (self.size + self.before + self.after - reach) // self.stride + 1

    def trimmed(self) -> tuple[int, KernelAxis]:
        """(first position that counts, the axis with those that do); (0, itself) where all do."""
        starts = [out * self.stride - self.before for out in range(self.outputs)]
        counting = [
            tap
            for tap in range(self.kernel)
            if any(0 <= start + tap * self.dilation < self.size for start in starts)
        ]
        if not counting or len(counting) == self.kernel:
            return 0, self
        first, kernel = counting[0], counting[-1] - counting[0] + 1
        before = self.before - first * self.dilation
        reach = (self.outputs - 1) * self.stride + self.dilation * (kernel - 1) + 1
        after = max(reach - self.size - before, 0)
        found = KernelAxis(self.size, kernel, self.stride, self.dilation, before, after)
        return (first, found) if before >= 0 and found.outputs == self.outputs else (0, self)


def trim_kernels(graph: OnnxGraph, weights: Mapping[str, WeightCodes]) -> int:
    """Shrink the kernels of convolutions whose input has a fixed size, where that helps; returns how many."""
    trimmed = 0
    for node in [n for n in graph.nodes if n.op_type == "Conv" and n.input[1] in weights]:
        codes = weights[node.input[1]]
        axes = _axes(node, codes.integers.shape[2:], graph.shape(node.input[0]))
        if axes is None or len(graph.consumers(node.input[1])) > 1:
            continue
        found = [axis.trimmed() for axis in axes]
        kept: tuple[Any, ...] = (..., *(slice(first, first + axis.kernel) for first, axis in found))
        if all(axis == before for (_, axis), before in zip(found, axes, strict=True)):
            continue
        codes.integers = np.ascontiguousarray(codes.integers[kept])
        pads = [axis.before for _, axis in found] + [axis.after for _, axis in found]
        _set(node, "pads", pads)
        _set(node, "kernel_shape", [axis.kernel for _, axis in found])
        trimmed += 1
    return trimmed


def _axes(
    node: onnx.NodeProto, kernel: tuple[int, ...], shape: list[int | None] | None
) -> list[KernelAxis] | None:
    if shape is None or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    count = len(kernel)
    strides, dilations = (attribute(node, key) or [1] * count for key in ("strides", "dilations"))
    pads = attribute(node, "pads") or [0] * (2 * count)
    axes = []
    for i, size in enumerate(shape[2:]):
        if size is None:
            return None
        axes.append(KernelAxis(size, kernel[i], strides[i], dilations[i], pads[i], pads[i + count]))
    return axes


def _set(node: onnx.NodeProto, name: str, values: list[int]) -> None:
    from onnx import helper

    kept = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, values)])
