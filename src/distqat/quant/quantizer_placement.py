"""Where quantizers stand: one per produced tensor, so that integers flow from layer to layer.

    conv -> norm -> [joint] -+-> add -> relu -> [joint] -+-> conv       (carries the joint's codes)
    shortcut ------ [joint] -+                           +-> next add, pooling, the next stage

A tensor that one layer takes is quantized in front of that layer (`input_quant`). A tensor of layers that
several take, or that is added, pooled or sent to the next stage, is quantized where it is produced: the
module that returns it gets a *joint* (`output_quant`), whose 8 bits cost no multiply-accumulate. Layers of 8
bits behind a joint carry its codes; those of fewer bits quantize them again, once for all that take it.

Only sums whose operands all come from layers are integers. Behind embeddings and LayerNorms the residual
stream of a transformer stays in float, as every int8 runtime leaves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from distqat.quant.tensor_producers import TensorFlow, TensorNode

JOINT_BITS = 8
INPUT = "input"
"""The key of what the stage takes, which the stage before quantizes."""

_SAME_CODES = {
    "view", "reshape", "flatten", "unflatten", "transpose", "permute", "contiguous", "squeeze", "unsqueeze",
    "dropout", "max_pool1d", "max_pool2d", "_max_pool1d", "_max_pool2d", "pad", "detach", "__getitem__",
}  # fmt: skip
_CLAMPS = {"relu", "relu_"}  # fused into the requantization of what is before them
_POINTWISE = _CLAMPS | {
    "batch_norm", "gelu", "silu", "leaky_relu", "leaky_relu_", "elu", "tanh", "sigmoid", "hardswish",
}  # fmt: skip
_SUMS = {
    "add", "add_", "__add__", "__iadd__", "__radd__", "mean", "avg_pool1d", "avg_pool2d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d",
}  # fmt: skip
_CONVOLUTIONS = {"conv1d", "conv2d"}
_NORMS = {"batch_norm"}


@dataclass(frozen=True)
class StageBoundary:
    """What is quantized where the pipeline is cut: the stage's input by the stage before, its own output."""

    takes: bool = False
    sends: bool = False


@dataclass(frozen=True)
class LayerInput:
    """How a layer's input is quantized.

    `own`: by a quantizer in front of it. `shared`: by that of the layer `of`, which takes the same tensor.
    `carried`: it already is, by the joint of module `of` (empty: of the root), or by the stage before (None).
    """

    how: str
    of: str | None = None


OWN = LayerInput("own")


@dataclass
class QuantizerPlacement:
    """The quantizers of a stage: joints by module name (True: its tensor is changed in place later)."""

    joints: dict[str, bool] = field(default_factory=dict)
    inputs: dict[str, LayerInput] = field(default_factory=dict)
    wants_codes: bool = False  # a layer takes the stage's only input directly
    has_codes: bool = False  # the stage's only output comes from layers
    sends: str | None = None  # the joint whose codes leave the stage
    norms: dict[str, str] = field(default_factory=dict)  # by convolution, the BatchNorm that folds into it
    requantized: dict[str, str] = field(default_factory=dict)
    """By folded norm, and by quantizer of what a sum adds, that of the result; see `tie_free_steps`."""


def place(flow: TensorFlow, bits: Mapping[str, int], boundary: StageBoundary) -> QuantizerPlacement:
    """The placement for layers quantized to `bits` (of their inputs); `flow` is that of the float stage."""
    return _Placing(flow, bits, boundary).run()


def outer_layers(flow: TensorFlow) -> tuple[set[str], set[str]]:
    """(layers that take an input of the stage as it is, layers whose output leaves it as it is)."""
    inputs, outputs = ({id(_source(node)) for node in nodes} for nodes in (flow.inputs, flow.outputs))
    takers = {name for name, nodes in flow.taken.items() if any(id(_source(n)) in inputs for n in nodes)}
    givers = {name for name, nodes in flow.given.items() if any(id(_source(n)) in outputs for n in nodes)}
    return takers, givers


class _Placing:
    def __init__(self, flow: TensorFlow, bits: Mapping[str, int], boundary: StageBoundary) -> None:
        self._flow, self._bits, self._boundary = flow, bits, boundary
        self._made = {id(node) for name in bits for node in flow.given.get(name, ())}
        self._wanted = {id(_source(node)) for name in bits for node in flow.taken.get(name, ())}
        self._joined: dict[int, str] = {}
        self._placement = QuantizerPlacement()

    def run(self) -> QuantizerPlacement:
        flow, placement = self._flow, self._placement
        first = flow.inputs[0] if len(flow.inputs) == 1 else None
        last = flow.outputs[0] if len(flow.outputs) == 1 else None
        placement.wants_codes = first is not None and id(first) in self._wanted
        placement.has_codes = last is not None and self._from_layers(last)
        for name in self._bits:
            for node in flow.taken.get(name, ()):
                self._want(node)
        self._join_shared()
        if self._boundary.sends and last is not None and self._join(last):
            placement.sends = self._joined[id(_source(last))]
        users = _users(flow)
        self._join_convolutions(last, users)
        placement.norms = dict(self._folding(users))
        for name in self._bits:
            placement.inputs[name] = self._input(name)
        placement.requantized = dict(self._requantized(users))
        return placement

    def _want(self, node: TensorNode) -> None:
        """This tensor is to be integers: if it is a sum, its operands are first."""
        made = _source(node)
        while made.op in _CLAMPS and made.inputs:
            made = _source(made.inputs[0])
        if made.op in _SUMS and self._from_layers(made):
            for operand in _operands(made):
                self._join(operand)

    def _join_shared(self) -> None:
        """Tensors that several layers take, where layers made them: so a cut there changes nothing."""
        takers: dict[int, list[TensorNode]] = {}
        for name in self._bits:
            for node in self._flow.taken.get(name, ()):
                takers.setdefault(id(_source(node)), []).append(_source(node))
        for nodes in takers.values():
            made = nodes[0]
            parts = made.inputs[:1] if made.op in _POINTWISE else _operands(made) if made.op in _SUMS else []
            made_by_layers = id(made) in self._made or (parts and all(map(self._from_layers, parts)))
            if len(nodes) > 1 and made_by_layers:
                self._join(made)

    def _join(self, node: TensorNode) -> bool:
        """Quantize this tensor where it is produced, if a module returns it that runs once."""
        produced = _source(node)
        if id(produced) in self._joined:
            return True
        self._want(produced)
        for name in produced.modules:
            if self._flow.calls[name] == 1:
                self._joined[id(produced)] = name
                self._placement.joints[name] = produced.changed
                return True
        return False

    def _join_convolutions(self, last: TensorNode | None, users: Mapping[int, list[TensorNode]]) -> None:
        """A convolution runs on integers only if what comes out is quantized too (runtimes requantize it)."""
        for name in self._bits:
            for node in self._flow.given.get(name, ()):
                if node.op not in _CONVOLUTIONS:
                    continue
                chain = _fused(node, users)
                quantized = any(id(each) in self._wanted or id(each) in self._joined for each in chain)
                while chain and not quantized and chain[-1] is not last:
                    quantized = self._join(chain.pop())

    def _folding(self, users: Mapping[int, list[TensorNode]]) -> Iterator[tuple[str, str]]:
        """Convolutions, each with the norm that alone takes what it gives."""
        for name in self._bits:
            given = self._flow.given.get(name, [])
            if len(given) != 1 or given[0].op not in _CONVOLUTIONS or id(given[0]) in self._joined:
                continue
            chain = _fused(given[0], users)
            norm = chain[1].modules[:1] if len(chain) > 1 and chain[1].op in _NORMS else []
            if norm and self._flow.calls[norm[0]] == 1 and given[0] not in self._flow.outputs:
                yield name, norm[0]

    def _requantized(self, users: Mapping[int, list[TensorNode]]) -> Iterator[tuple[str, str]]:
        """What is multiplied by a ratio of steps on its way to other codes, and the quantizer of those."""
        for layer, norm in self._placement.norms.items():
            behind = self._quantizer_of(_fused(self._flow.given[layer][0], users)[1:])
            if behind is not None:
                yield norm, behind
        for node in _all_nodes(self._flow):
            name = INPUT if node in self._flow.inputs else self._quantizer_of([node], joints_only=True)
            sums = [user for user in users.get(id(node), []) if user.op in _SUMS]
            if name is None or not sums:
                continue
            clamped = [user for user in users.get(id(sums[0]), []) if user.op in _CLAMPS]
            behind = self._quantizer_of([sums[0], *clamped])
            if behind is not None:
                yield name, behind

    def _quantizer_of(self, nodes: Sequence[TensorNode], *, joints_only: bool = False) -> str | None:
        """The first quantizer that stands behind one of these, by name."""
        for node in nodes:
            if id(node) in self._joined:
                return f"{self._joined[id(node)]}.output_quant".removeprefix(".")
            for name, given in ({} if joints_only else self._placement.inputs).items():
                taken = self._flow.taken.get(name, [])
                if given.how == "own" and len(taken) == 1 and _source(taken[0]) is node:
                    return f"{name}.input_quant"
        return None

    def _from_layers(self, node: TensorNode) -> bool:
        """Whether a tensor can be integers: it comes from quantized layers, or one takes it."""
        made = _source(node)
        if id(made) in self._made or id(made) in self._wanted:
            return True
        if made.op in _POINTWISE:
            return self._from_layers(made.inputs[0])
        if made.op in _SUMS:
            operands = _operands(made)
            return bool(operands) and all(self._from_layers(operand) for operand in operands)
        return False

    def _input(self, name: str) -> LayerInput:
        taken = self._flow.taken.get(name, [])
        if len(taken) != 1:
            return OWN
        produced = _source(taken[0])
        if self._bits[name] >= JOINT_BITS:
            if id(produced) in self._joined:
                return LayerInput("carried", self._joined[id(produced)])
            if self._boundary.takes and produced in self._flow.inputs:
                return LayerInput("carried")
        for other, given in self._placement.inputs.items():
            same = self._flow.taken.get(other, [])  # none of a layer that the pass did not use
            alike = given.how == "own" and len(same) == 1 and self._bits[other] == self._bits[name]
            if alike and _source(same[0]) is produced:
                return LayerInput("shared", other)
        return OWN


def _source(node: TensorNode) -> TensorNode:
    """The tensor whose codes these are."""
    while node.op in _SAME_CODES and node.inputs:
        node = node.inputs[0]
    return node


def _operands(node: TensorNode) -> list[TensorNode]:
    """What a sum adds; a constant among them is not part of the flow."""
    return [each for each in node.inputs if each.op != "constant"]


def _fused(node: TensorNode, users: Mapping[int, list[TensorNode]]) -> list[TensorNode]:
    """Convolution, norm and ReLU in a row, which runtimes make one kernel of."""
    chain = [node]
    for ops in (_NORMS, _CLAMPS):
        following = users.get(id(chain[-1]), [])
        if len(following) == 1 and following[0].op in ops:
            chain.append(following[0])
    return chain


def _users(flow: TensorFlow) -> dict[int, list[TensorNode]]:
    """Who takes a tensor, by its node."""
    users: dict[int, list[TensorNode]] = {}
    for node in _all_nodes(flow):
        for each in node.inputs:
            users.setdefault(id(each), []).append(node)
    return users


def _all_nodes(flow: TensorFlow) -> list[TensorNode]:
    found: dict[int, TensorNode] = {}
    left = [*flow.outputs, *(node for given in flow.given.values() for node in given)]
    while left:
        node = left.pop()
        if id(node) not in found:
            found[id(node)] = node
            left.extend(node.inputs)
    return list(found.values())
