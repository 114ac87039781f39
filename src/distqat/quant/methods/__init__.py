"""The registry of quantization methods: a name, the file that holds it, and what it is for.

A method file defines `METHOD`, an instance of `method.Method`. Names are checked without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from distqat.errors import UnknownName

if TYPE_CHECKING:
    from distqat.quant.methods.method import Method


@dataclass(frozen=True)
class Entry:
    """Where a method is, and which side may use it."""

    module: str
    weights: bool = True


METHODS: dict[str, Entry] = {
    "lsq": Entry("distqat.quant.methods.lsq"),
    "lsq+": Entry("distqat.quant.methods.lsq_plus", weights=False),
    "pact": Entry("distqat.quant.methods.pact", weights=False),
    "minmax": Entry("distqat.quant.methods.minmax"),
    "none": Entry("distqat.quant.methods.none"),
}
"""Every method; one line each."""


@cache
def get_method(name: str) -> Method:
    """The method of this name. Raises UnknownName."""
    if name not in METHODS:
        raise UnknownName("quantization method", name, list(METHODS))
    method: Method = import_module(METHODS[name].module).METHOD
    return method


def weight_method(name: str) -> str:
    """The name, if weights can use it; ValueError otherwise."""
    return _checked(name, "weights", [each for each, entry in METHODS.items() if entry.weights])


def activation_method(name: str) -> str:
    """The name, if activations can use it; ValueError otherwise."""
    return _checked(name, "activations", list(METHODS))


def _checked(name: str, side: str, known: list[str]) -> str:
    if name not in known:
        raise ValueError(str(UnknownName(f"quantization method of {side}", name, known)))
    return name
