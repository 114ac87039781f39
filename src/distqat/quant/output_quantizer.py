"""Quantizers of produced tensors, and what stands in front of a layer whose input is quantized already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from torch import Tensor, nn

from distqat.quant.quantizer import ActivationQuantizer
from distqat.quant.token_quantizer import TokenQuantizer

OUTPUT_QUANT = "output_quant"
"""The child of a module whose output is quantized where it is produced; any module may have one."""


def add_joint(module: nn.Module, quantizer: ActivationQuantizer, *, changed_later: bool) -> None:
    """Quantize what `module` returns (one tensor) from now on, as its child `output_quant`.

    `changed_later`: somebody adds to the tensor in place. The backward pass needs it unchanged, so that
    reader gets a copy.
    """
    module.add_module(OUTPUT_QUANT, quantizer)
    module.register_forward_hook(_copied if changed_later else _quantized)


def joints(module: nn.Module) -> Iterator[tuple[str, nn.Module, ActivationQuantizer]]:
    """Name, module and quantizer of every joint, in order."""
    for name, child in module.named_modules():
        quantizer = child._modules.get(OUTPUT_QUANT)
        if isinstance(quantizer, ActivationQuantizer):
            yield name, child, quantizer


def leaving(module: nn.Module) -> ActivationQuantizer | None:
    """The quantizer whose codes are what the stage `module` returns; None where its output is float."""
    return next((quantizer for _, _, quantizer in joints(module) if quantizer.leaves_stage), None)


def link(stages: Sequence[nn.Module]) -> None:
    """Tell layers that take codes of the stage before (all stages are in this process) whose they are.

    Their biases are then rounded as an exported model rounds them. A stage that trains alone does not know
    the step, so stages are linked when a model is assembled.
    """
    for before, stage in pairwise(stages):
        quantizer = leaving(before)
        for child in stage.modules():
            if quantizer is not None and isinstance(child, CarriedInput) and child.source is None:
                child.take_from(quantizer)


class Unquantized(nn.Module):
    """In place of a quantizer on a side that stays in float (method `none`)."""

    bits = 32

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        return x


class CarriedInput(nn.Module):
    """In front of a layer that takes codes: the joint `source` made them (None: the stage before did)."""

    def __init__(self, bits: int, source: str | None, quantizer: ActivationQuantizer | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.source = source
        self._quantizer = [quantizer]  # in a list: its parameters belong to `source` alone

    @property
    def quantizer(self) -> ActivationQuantizer | None:
        """The joint's; None where the stage before has it, and is elsewhere."""
        return self._quantizer[0]

    def take_from(self, quantizer: ActivationQuantizer) -> None:
        """The stage before is here, and this is its joint."""
        self._quantizer[0] = quantizer

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        return x

    def extra_repr(self) -> str:
        """Shown in the printed module."""
        return f"bits={self.bits}, from {'the stage before' if self.source is None else self.source!r}"


class SharedInput(nn.Module):
    """In front of a layer whose input another layer takes too: that layer's quantizer, with its step.

    Quantizing twice with one step is quantizing once, and the gradients of the step add up.
    """

    def __init__(self, quantizer: ActivationQuantizer, source: str) -> None:
        super().__init__()
        self.bits = quantizer.bits
        self.source = source  # the layer that holds the quantizer
        self._quantizer = [quantizer]  # in a list: its parameters belong to `source` alone

    @property
    def quantizer(self) -> ActivationQuantizer:
        """That of the other layer."""
        return self._quantizer[0]

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] as the other layer has it; observed there alone."""
        return x if self.quantizer.in_float else self.quantizer(x)

    def extra_repr(self) -> str:
        """Shown in the printed module."""
        return f"bits={self.bits}, that of {self.source!r}"


InputQuantizer: TypeAlias = ActivationQuantizer | CarriedInput | SharedInput | TokenQuantizer | Unquantized


def quantizer_of(taken: InputQuantizer) -> ActivationQuantizer | None:
    """The quantizer with the step of what a layer takes; None where it has none, or the stage before has."""
    if isinstance(taken, CarriedInput | SharedInput):
        return taken.quantizer
    return taken if isinstance(taken, ActivationQuantizer) else None


def _quantized(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
    result: Tensor = module._modules[OUTPUT_QUANT](output)  # type: ignore[misc]
    return result


def _copied(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return _quantized(module, args, output).clone()
