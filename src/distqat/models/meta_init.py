"""Models without memory for their weights, and memory for those that are left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def weights_on_meta() -> Iterator[None]:
    """Modules made in here have their parameters on the meta device, their buffers where they belong.

    Buffers are small (frequencies, masks, constants of an activation), and only the constructor knows what
    is in them. For the whole process, so nothing else should make modules meanwhile.
    """
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        if param is not None and not param.is_meta:  # not touched yet, so it took no memory
            empty = torch.empty_like(param, device="meta")
            self._parameters[name] = nn.Parameter(empty, requires_grad=param.requires_grad)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def materialize(model: nn.Module, device: torch.device) -> None:
    """Give what is on the meta device memory, without values; move the rest."""

    def given(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    apply: Callable[[Callable[[torch.Tensor], torch.Tensor]], nn.Module] = model._apply
    apply(given)
