"""Who produces the tensor that a layer takes: one forward pass over a sample, recorded.

The pass runs in eval mode without gradients. Every torch operation becomes a node; a module's output and a
layer's input are remembered by node, so an operation in place afterwards is a node of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distqat.quant.quantized_layers import layer_kind


@dataclass(eq=False)
class TensorNode:
    """One tensor: the operation that made it (`input`, `constant` or a torch function) and from what."""

    op: str
    inputs: tuple[TensorNode, ...] = ()
    changed: bool = False  # in place, later on
    modules: list[str] = field(default_factory=list)  # that return it, innermost first


@dataclass
class TensorFlow:
    """What a pass through a stage showed."""

    inputs: list[TensorNode]
    outputs: list[TensorNode]
    taken: dict[str, list[TensorNode]]  # per layer that can be quantized, its input at each call
    given: dict[str, list[TensorNode]]  # per such layer, its output at each call
    calls: dict[str, int]


class _Recorder(TorchFunctionMode):
    """Makes a node of every tensor; holds the tensors, so that their ids stay theirs."""

    def __init__(self) -> None:
        super().__init__()
        self._nodes: dict[int, TensorNode] = {}
        self._held: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = list(_tensors(result))
        if made:
            taken = list(_tensors((args, kwargs)))
            inputs = tuple(self.node(tensor) for tensor in taken)
            for tensor in made:
                before = self._nodes.get(id(tensor))
                if before is not None and any(tensor is other for other in taken):
                    before.changed = before.changed or _in_place(func)
                    if not _in_place(func):
                        continue  # handed through: the same tensor, nothing made
                self._add(tensor, TensorNode(getattr(func, "__name__", "?"), inputs))
        return result

    def node(self, tensor: Tensor) -> TensorNode:
        """The newest node of a tensor; a constant if nobody made it here."""
        return self._nodes.get(id(tensor)) or self._add(tensor, TensorNode("constant"))

    def _add(self, tensor: Tensor, node: TensorNode) -> TensorNode:
        self._nodes[id(tensor)] = node
        self._held.append(tensor)
        return node

    def start(self, tensor: Tensor) -> TensorNode:
        """The node of an input of the stage."""
        return self._add(tensor, TensorNode("input"))


def record(module: nn.Module, sample: Sequence[Tensor]) -> TensorFlow:
    """Run `module` over a copy of `sample` and note the flow; nothing of the module changes."""
    recorder = _Recorder()
    flow = TensorFlow([], [], {}, {}, {})
    handles = [
        child.register_forward_hook(_Note(name, layer_kind(child) is not None, flow, recorder))
        for name, child in module.named_modules()
    ]
    training = [(child, child.training) for child in module.modules()]
    inputs = [tensor.clone() for tensor in sample]  # each an object that nobody else holds
    flow.inputs = [recorder.start(tensor) for tensor in inputs]
    try:
        module.eval()
        with torch.no_grad(), recorder:
            output = module(*inputs)
        flow.outputs = [recorder.node(tensor) for tensor in _tensors(output)]
    finally:
        for handle in handles:
            handle.remove()
        for child, was_training in training:
            child.training = was_training
    return flow


class _Note:
    """Forward hook of one module."""

    def __init__(self, name: str, is_layer: bool, flow: TensorFlow, recorder: _Recorder) -> None:
        self._name, self._is_layer, self._flow, self._recorder = name, is_layer, flow, recorder

    def __call__(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        flow, name = self._flow, self._name
        flow.calls[name] = flow.calls.get(name, 0) + 1
        if not isinstance(output, Tensor):
            return
        node = self._recorder.node(output)
        if not any(output is given for given in args):  # handed through: others have the tensor already
            node.modules.append(name)
        if self._is_layer and args and isinstance(args[0], Tensor):
            flow.taken.setdefault(name, []).append(self._recorder.node(args[0]))
            flow.given.setdefault(name, []).append(node)


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
