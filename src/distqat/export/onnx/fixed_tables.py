"""What depends on the length of a sequence alone (masks, rotary tables, rows of positions) is computed once.

Traced models make it anew in every run, by dozens of operators. Here it is a part of what it is for the
longest sequence: computed from constants, so that ONNX Runtime does it when it loads the file, and cut by one
Slice. A table of numbers that depends on the distance of two positions (a causal mask, one with a window) is
stored as the numbers by distance. Each is tried on several shapes first, and left as it was if any bit
differs; nothing is done for a model whose longest sequence is not known, or is long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distqat.export.onnx.onnx_graph import Array, OnnxGraph, attribute
from distqat.export.onnx.ort_session import OrtSession

if TYPE_CHECKING:
    import onnx

LONGEST = 1024
"""A mask for as many positions takes 4 MB of memory; with more, products outweigh what making it costs."""
TAKES_PARTS = ("Add", "Mul", "Sub", "Where", "And")
"""Operators that broadcast: a table with a batch of 1 is to them what it is with one of any size."""


@dataclass(frozen=True)
class _Table:
    """The values for the longest sequence, and the dimensions that have its length."""

    values: Array
    axes: tuple[int, ...]


def fix_tables(graph: OnnxGraph, longest: int | None) -> dict[str, Array]:
    """Replace what depends on the shape of token ids alone, for sequences of up to `longest` tokens.

    Returns the tables for that length, by the values that are parts of them now.
    """
    tokens = graph.inputs[0] if len(graph.inputs) == 1 else ""
    shape = graph.shape(tokens)
    if longest is None or longest > LONGEST or shape is None or len(shape) != 2 or shape[1] is not None:
        return {}
    known = _known(graph, tokens)
    wanted = [name for name in known if _is_used(graph, name, known)]
    tables = _tried(graph, tokens, wanted, longest)
    found = {}
    for name, table in tables.items():
        whole = _by_distance(graph, name, table.values) or _copied(graph, name, tokens, longest)
        part = _cut(graph, name, whole, table.axes, tokens)
        found[part] = table.values
        for node in [node for node in graph.consumers(name) if node.output[0] not in known]:
            for position, given in enumerate(node.input):
                node.input[position] = part if given == name else given
    graph.changed()
    return found


def _known(graph: OnnxGraph, tokens: str) -> set[str]:
    """Values that follow from the shape of the tokens."""
    known: set[str] = set()
    for node in graph.ordered():
        if (node.op_type == "Shape" and node.input[0] == tokens) or (
            any(name in known for name in node.input)
            and all(not name or name in known or graph.constant(name) is not None for name in node.input)
        ):
            known.update(node.output)
    return known


def _is_used(graph: OnnxGraph, name: str, known: set[str]) -> bool:
    users = [node for node in graph.consumers(name) if node.output[0] not in known]
    return bool(users) and name not in graph.outputs and all(node.op_type in TAKES_PARTS for node in users)


def _tried(graph: OnnxGraph, tokens: str, names: list[str], longest: int) -> dict[str, _Table]:
    """The tables that are parts of those of the longest sequence, whatever the batch."""
    if not names:
        return {}
    session = OrtSession(graph.model(names))

    def run(batch: int, length: int) -> Mapping[str, Array]:
        return session.run({tokens: np.zeros((batch, length), np.int64)}, names)

    whole, shorter = run(1, longest), run(1, max(longest - 1, 1))
    others = [run(batch, length) for batch, length in ((1, 1), (2, max(longest // 2, 1)), (3, longest))]
    found: dict[str, _Table] = {}
    for name in names:
        pairs = zip(whole[name].shape, shorter[name].shape, strict=True)
        axes = tuple(axis for axis, (long, short) in enumerate(pairs) if long != short)
        table = _Table(whole[name], axes)
        if axes and all(_is_part(table, each[name]) for each in (shorter, *others)):
            found[name] = table
    return found


def _is_part(table: _Table, other: Array) -> bool:
    if other.ndim != table.values.ndim:
        return False
    kept = tuple(slice(0, size if axis in table.axes else None) for axis, size in enumerate(other.shape))
    try:
        return bool(np.array_equal(np.broadcast_to(table.values[kept], other.shape), other))
    except ValueError:
        return False


def _by_distance(graph: OnnxGraph, name: str, values: Array) -> str | None:
    """The table of numbers that depend on row - column, from those numbers; None for another table."""
    rows, columns = values.shape[-2:]
    if values.size != rows * columns or rows != columns or rows < 2:
        return None
    table = values.reshape(rows, columns)
    numbers = np.concatenate([table[0, ::-1], table[1:, 0]])  # of the distances 1 - rows ... rows - 1
    distance = np.arange(rows)[:, None] - np.arange(columns) + rows - 1
    if not np.array_equal(numbers[distance], table):
        return None
    made = graph.add(
        "Gather", [graph.add_constant(f"{name}.numbers", numbers), _distances(graph, rows)], f"{name}.square"
    )
    shape = graph.add_constant(f"{name}.shape", np.array(values.shape))
    return graph.add("Reshape", [made, shape], f"{name}.longest")


def _distances(graph: OnnxGraph, rows: int) -> str:
    """row - column + rows - 1, for all rows and columns."""
    name = f"distances.{rows}"
    if graph.producer(name) is None:
        count, last = (graph.add_constant(f"count.{n}", np.array(n)) for n in (rows, rows - 1))
        bounds = [
            graph.add_constant("count.0", np.array(0)),
            count,
            graph.add_constant("count.1", np.array(1)),
        ]
        position = graph.add("Range", bounds, f"{name}.position")
        upright = graph.add(
            "Unsqueeze", [position, graph.add_constant("distances.axis", np.array([1]))], f"{name}.row"
        )
        graph.add("Add", [upright, graph.add("Sub", [last, position], f"{name}.column")], name)
    return name


def _copied(graph: OnnxGraph, name: str, tokens: str, longest: int) -> str:
    """The same operators over the shape of one sequence of the longest length."""
    made = f"{name}.longest"
    node = graph.producer(name)
    if node is None or graph.producer(made) is not None:
        return made if node is not None else name
    if node.op_type == "Shape" and node.input[0] == tokens:
        start, end = _bounds(node)
        return graph.add_constant(made, np.array([1, longest], np.int64)[start:end])
    inputs = [each and _copied(graph, each, tokens, longest) for each in node.input]
    graph.add_copy(node, inputs, [f"{output}.longest" for output in node.output])
    return made


def _bounds(node: onnx.NodeProto) -> tuple[int, int | None]:
    end = attribute(node, "end")
    return int(attribute(node, "start", 0)), None if end is None else int(end)


def _cut(graph: OnnxGraph, name: str, whole: str, axes: tuple[int, ...], tokens: str) -> str:
    count = len(axes)
    length = "tokens.length"
    if graph.producer(length) is None:
        graph.add("Shape", [tokens], length, start=1, end=2)
    ends = length
    if count > 1:
        ends = f"{length}.{count}"
        if graph.producer(ends) is None:
            graph.add("Concat", [length] * count, ends, axis=0)
    starts = graph.add_constant(f"starts.{count}", np.zeros(count, np.int64))
    where = graph.add_constant(f"axes.{'.'.join(map(str, axes))}", np.array(axes, np.int64))
    return graph.add("Slice", [whole, starts, ends, where], f"{name}.part")
