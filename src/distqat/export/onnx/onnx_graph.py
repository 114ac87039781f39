"""An ONNX graph that can be taken apart: who makes a value, who uses it, what is constant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from distqat.errors import ExportError

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

IR_VERSIONS = {18: 8, 19: 9, 20: 9}
"""Of the file format, by operator set: what came out with it. Runtimes refuse newer ones. 21 has 10."""


class OnnxGraph:
    """A mutable view of a model; `model()` gives it back, sorted and without what nothing uses."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        self._proto = proto
        self.nodes: list[onnx.NodeProto] = list(proto.graph.node)
        self._constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer
        }
        self._shapes = {
            value.name: [
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in value.type.tensor_type.shape.dim
            ]
            for value in (*proto.graph.input, *proto.graph.value_info)
            if value.type.tensor_type.HasField("shape")
        }
        self.marked: dict[str, tuple[float, int, int]] = {}
        """Scale and code range of what is on a grid, by value."""
        self._added: set[str] = set()
        self._scopes: dict[str, str] = {}
        for node in self.nodes:  # the exporter notes stack traces with paths of this machine: not for a file
            self._scopes[node.output[0]] = _scope(node)
            del node.metadata_props[:]
            node.ClearField("doc_string")
        for value in (*proto.graph.input, *proto.graph.output):
            del value.metadata_props[:]
        self.inputs = [value.name for value in proto.graph.input]
        self.outputs = [output.name for output in proto.graph.output]
        self._producers: dict[str, onnx.NodeProto] | None = None
        self._consumers: dict[str, list[onnx.NodeProto]] = {}

    def producer(self, value: str) -> onnx.NodeProto | None:
        """The node that makes a value; None for inputs and constants."""
        self._index()
        assert self._producers is not None
        return self._producers.get(value)

    def consumers(self, value: str) -> list[onnx.NodeProto]:
        """The nodes that use a value."""
        self._index()
        return self._consumers.get(value, [])

    def constant(self, value: str) -> Array | None:
        """The numbers of a value that is known without running anything."""
        found = self._constants.get(value)
        if found is not None:
            return found
        node = self.producer(value)
        if node is None or node.op_type != "Constant":
            return None
        return np.asarray(attribute(node, "value"))

    def shape(self, value: str) -> list[int | None] | None:
        """As it was traced, None for what may be of any size; None if that is not known."""
        return self._shapes.get(value)

    def scope(self, node: onnx.NodeProto) -> str:
        """The module that a traced node is of, by its name in the model; empty if that is not known."""
        return self._scopes.get(node.output[0], "")

    def add_constant(self, name: str, array: Array) -> str:
        """A new initializer; `name` must be free unless it holds the same numbers."""
        present = self._constants.get(name)
        if present is not None and not (
            present.dtype == array.dtype and np.array_equal(present, array) and present.shape == array.shape
        ):
            raise AssertionError(f"two constants are called {name}")
        self._constants[name] = array
        self._added.add(name)
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """A new node with one output, which is returned."""
        from onnx import helper

        self.nodes.append(
            helper.make_node(op, list(inputs), [output], name=output, domain=domain, **attributes)
        )
        self._producers = None
        return output

    def add_copy(self, node: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """The same operation once more, of other values."""
        copied = type(node)()
        copied.CopyFrom(node)
        copied.input[:], copied.output[:], copied.name = inputs, outputs, outputs[0]
        self.nodes.append(copied)
        self._producers = None

    def changed(self) -> None:
        """Inputs of nodes were changed by hand."""
        self._producers = None

    def remove(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Take nodes out; whatever used their outputs must be rewired."""
        gone = {id(node) for node in nodes}
        self.nodes = [node for node in self.nodes if id(node) not in gone]
        self._producers = None

    def rewire(self, old: str, new: str) -> None:
        """Everything that used `old` uses `new`. An output of the graph keeps its name."""
        if old in self.outputs:
            raise ExportError(f"{old} is an output of the model and would be lost")
        for node in self.consumers(old):
            for position, name in enumerate(node.input):
                if name == old:
                    node.input[position] = new
        self._producers = None

    def added_bytes(self) -> int:
        """Bytes of the constants that were added and are used."""
        used = {name for node in self._sorted(self.outputs) for name in node.input}
        return sum(self._constants[name].nbytes for name in self._added & used)

    def ordered(self) -> list[onnx.NodeProto]:
        """The nodes that the outputs need, each behind those that it depends on."""
        return self._sorted(self.outputs)

    def model(self, extra_outputs: Sequence[str] = (), *, short: bool = False) -> onnx.ModelProto:
        """The graph as a model of its own, with the element types of `extra_outputs` left to inference.

        `short`: values in between get short names, nodes none.
        """
        import onnx
        from onnx import helper, numpy_helper

        nodes = self._sorted([*self.outputs, *extra_outputs])
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            self._proto.graph.name or "model",
            list(self._proto.graph.input),
            [*self._proto.graph.output, *(onnx.ValueInfoProto(name=name) for name in extra_outputs)],
            [numpy_helper.from_array(a, name) for name, a in self._constants.items() if name in used],
        )
        if short:
            _shorten(graph, self._added, extra_outputs)
        domains = {node.domain for node in nodes}
        opsets = [opset for opset in self._proto.opset_import if opset.domain in {"", *domains}]
        made = helper.make_model(graph, opset_imports=opsets, producer_name="distqat")
        newest = max(opset.version for opset in opsets if not opset.domain)
        made.ir_version = min(self._proto.ir_version, IR_VERSIONS.get(newest, 10))
        return made

    def _sorted(self, outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """Only what the outputs need, each node behind those that it depends on."""
        ordered: list[onnx.NodeProto] = []
        seen: set[int] = set()
        stack = [(node, False) for name in reversed(outputs) if (node := self.producer(name)) is not None]
        while stack:
            node, ready = stack.pop()
            if ready:
                ordered.append(node)
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                before = [self.producer(name) for name in node.input]
                stack.extend((n, False) for n in reversed(before) if n is not None and id(n) not in seen)
        return ordered

    def _index(self) -> None:
        if self._producers is not None:
            return
        self._producers, self._consumers = {}, {}
        for node in self.nodes:
            for name in node.output:
                self._producers[name] = node
            for name in dict.fromkeys(node.input):
                self._consumers.setdefault(name, []).append(node)


def _shorten(graph: onnx.GraphProto, added: Set[str], kept: Sequence[str]) -> None:
    """Nodes need no names, and values short ones: in small models names take as much as weights.

    Parameters keep those that they have in the model.
    """
    parameters = [tensor.name for tensor in graph.initializer if tensor.name not in added]
    told = {*(value.name for value in (*graph.input, *graph.output)), *parameters, *kept}
    values = [tensor.name for tensor in graph.initializer] + [n for node in graph.node for n in node.output]
    names = {name: f"v{number:x}" for number, name in enumerate(values) if name and name not in told}
    names = {old: new for old, new in names.items() if new not in told}
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.ClearField("name")
        for each in (node.input, node.output):
            each[:] = [names.get(name, name) for name in each]


def _scope(node: onnx.NodeProto) -> str:
    """From the list of module names that torch's exporter notes; the last is the operation itself."""
    noted = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
    names = re.findall(r"'([^']*)'", noted)
    return names[-2] if len(names) > 1 else ""


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute of a node as a Python value; strings as str, tensors as arrays."""
    from onnx import TensorProto, helper, numpy_helper

    for found in node.attribute:
        if found.name == name:
            value = helper.get_attribute_value(found)
            if isinstance(value, TensorProto):
                return numpy_helper.to_array(value)
            return value.decode() if isinstance(value, bytes) else value
    return default
