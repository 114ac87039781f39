"""What torch's exporter writes in more operators than it takes, in the forms that ONNX Runtime fuses.

| as traced | instead |
|---|---|
| x * Reciprocal(Sqrt(variance)) of an RMSNorm | x / Sqrt(variance), which is fused to one kernel |
| Reshape to three dimensions, Transpose, Reshape back, of keys | one Transpose |
| zeros where a softmax is NaN, behind a mask that leaves something in each row | nothing |

The float file stays as it was traced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distqat.export.onnx.onnx_graph import Array, OnnxGraph, attribute

if TYPE_CHECKING:
    import onnx

TO_THE_END = np.iinfo(np.int64).max


def tidy(graph: OnnxGraph) -> None:
    """All of it, in place; before values get other names."""
    for node in list(graph.nodes):
        if node.op_type == "Reciprocal":
            _divide(graph, node)
        elif node.op_type == "Transpose":
            _turn_keys(graph, node)


def drop_nan_guards(graph: OnnxGraph, masks: dict[str, Array]) -> None:
    """Remove what stands in for rows that a mask closes whole; `masks` has the numbers of the masks."""
    for guard in [node for node in graph.nodes if node.op_type == "IsNaN"]:
        softmax = graph.producer(guard.input[0])
        scores = (
            graph.producer(softmax.input[0]) if softmax is not None and softmax.op_type == "Softmax" else None
        )
        chosen = graph.consumers(guard.output[0])
        if scores is None or scores.op_type != "Add" or [node.op_type for node in chosen] != ["Where"]:
            continue
        numbers = next((masks[name] for name in scores.input if name in masks), None)
        fits = chosen[0].input[2] == guard.input[0] and chosen[0].output[0] not in graph.outputs
        if numbers is not None and fits and np.isfinite(numbers.max(axis=-1)).all():
            graph.rewire(chosen[0].output[0], guard.input[0])
            graph.remove([guard, chosen[0]])


def _divide(graph: OnnxGraph, node: onnx.NodeProto) -> None:
    root, users = graph.producer(node.input[0]), graph.consumers(node.output[0])
    if root is None or root.op_type != "Sqrt" or [user.op_type for user in users] != ["Mul"]:
        return
    scaled = users[0]
    given = [name for name in scaled.input if name != node.output[0]]
    if len(given) == 1:
        scaled.op_type = "Div"
        scaled.input[:] = [given[0], root.output[0]]
        graph.remove([node])


def _turn_keys(graph: OnnxGraph, turn: onnx.NodeProto) -> None:
    flat, users = graph.producer(turn.input[0]), graph.consumers(turn.output[0])
    if list(attribute(turn, "perm") or ()) != [0, 2, 1] or flat is None or flat.op_type != "Reshape":
        return
    if len(users) != 1 or users[0].op_type != "Reshape" or users[0].output[0] in graph.outputs:
        return
    x, back = flat.input[0], users[0]
    if _parts(graph, flat.input[1], x) != [None, (-2, -1), (-1, TO_THE_END)]:
        return
    if _parts(graph, back.input[1], x) == [(0, -2), (-1, TO_THE_END), (-2, -1)]:
        graph.remove([turn, back])
        graph.add("Transpose", [x], back.output[0], perm=[0, 1, 3, 2])


def _parts(graph: OnnxGraph, shape: str, of: str) -> list[tuple[int, int] | None] | None:
    """Of a shape that is joined from slices of the shape of `of`: their bounds; None among them for -1."""
    joined = graph.producer(shape)
    if joined is None or joined.op_type != "Concat":
        return None
    found: list[tuple[int, int] | None] = []
    for name in joined.input:
        number, part = graph.constant(name), graph.producer(name)
        if number is not None and number.tolist() == [-1]:
            found.append(None)
            continue
        whole = graph.producer(part.input[0]) if part is not None and part.op_type == "Slice" else None
        if part is None or whole is None or whole.op_type != "Shape" or whole.input[0] != of:
            return None
        bounds = [graph.constant(each) for each in part.input[1:3]]
        if len(part.input) > 3 or any(each is None or each.size != 1 for each in bounds):
            return None
        start, end = (int(each.reshape(())) for each in bounds if each is not None)
        found.append((0 if start == np.iinfo(np.int64).min else start, end))
    return found
