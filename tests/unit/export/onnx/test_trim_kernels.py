"""Kernel positions that only meet padding are left out, and nothing else changes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch.nn import functional as F

from distqat.export.onnx.integer_weights import WeightCodes
from distqat.export.onnx.onnx_graph import OnnxGraph, attribute
from distqat.export.onnx.trim_kernels import KernelAxis, trim_kernels


def test_by_hand() -> None:
    assert KernelAxis(1, 3, 1, 1, 1, 1).trimmed() == (1, KernelAxis(1, 1, 1, 1, 0, 0))
    assert KernelAxis(2, 3, 2, 1, 1, 1).trimmed() == (1, KernelAxis(2, 2, 2, 1, 0, 0))
    assert KernelAxis(2, 3, 1, 1, 1, 1).trimmed() == (0, KernelAxis(2, 3, 1, 1, 1, 1))
    assert KernelAxis(8, 7, 2, 1, 3, 3).trimmed() == (0, KernelAxis(8, 7, 2, 1, 3, 3))


@given(
    size=st.integers(1, 6),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pad=st.integers(0, 4),
)
def test_the_convolution_gives_the_same(size: int, kernel: int, stride: int, dilation: int, pad: int) -> None:
    axis = KernelAxis(size, kernel, stride, dilation, pad, pad)
    assume(size + 2 * pad >= dilation * (kernel - 1) + 1)
    first, found = axis.trimmed()
    x = torch.randint(-9, 9, (2, 3, size)).double()
    weight = torch.randint(-9, 9, (4, 3, kernel)).double()
    expected = F.conv1d(F.pad(x, (pad, pad)), weight, stride=stride, dilation=dilation)
    kept = weight[:, :, first : first + found.kernel]
    padded = F.pad(x, (found.before, found.after))
    assert torch.equal(F.conv1d(padded, kept, stride=stride, dilation=dilation), expected)
    assert found.kernel <= kernel


def graph(size: int | str) -> tuple[OnnxGraph, dict[str, WeightCodes]]:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4, kernel_shape=[3, 3])]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 2, size, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    codes = WeightCodes("layer", np.arange(36, dtype=np.int8).reshape(2, 2, 3, 3), np.ones(2), 0, 8)
    return OnnxGraph(helper.make_model(made)), {"w": codes}


def test_codes_and_attributes_are_changed_together() -> None:
    made, weights = graph(5)
    assert trim_kernels(made, weights) == 1
    assert weights["w"].integers.shape == (2, 2, 3, 1)
    assert weights["w"].integers[0, 0].tolist() == [[1], [4], [7]]
    assert attribute(made.nodes[0], "pads") == [1, 0, 1, 0]
    assert attribute(made.nodes[0], "kernel_shape") == [3, 1]


def test_sizes_that_may_vary_leave_the_kernel_whole() -> None:
    made, weights = graph("height")
    assert trim_kernels(made, weights) == 0
    assert weights["w"].integers.shape == (2, 2, 3, 3)
