"""All stages of a model as one module, and its state dict cut back into those of the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distqat.errors import ExportError
from distqat.models import named_tensors


class Whole(nn.Module):
    """The stages in order; each hands what it returns to the next, by position."""

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the last stage returns, by position."""
        return tuple(self.outputs(*inputs).values())

    def outputs(self, *inputs: Tensor) -> dict[str, Tensor]:
        """What the last stage returns, by name."""
        tensors: Sequence[Tensor] = inputs
        named: dict[str, Tensor] = {}
        for stage in self.children():
            named = named_tensors(stage(*tensors))
            tensors = list(named.values())
        return named

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Take over the weights of an assembled model, in which names may be prefixed by their stage.

        Raises ExportError that names what is missing or has another shape.
        """
        for stage_name, stage in self.named_children():
            state: dict[str, Tensor] = {}
            for name, own in stage.state_dict().items():
                prefixed = f"{stage_name}.{name}"
                found = tensors.get(prefixed, tensors.get(name))
                if found is None:
                    raise ExportError(
                        f"{where} lacks {prefixed!r}, which the model of the configuration has; "
                        "give the run's own file with --config-path, and the flags it was started with"
                    )
                if found.shape != own.shape:
                    raise ExportError(
                        f"{where}: {prefixed!r} is {list(found.shape)}, in the model of the configuration "
                        f"{list(own.shape)}; give the run's own file with --config-path"
                    )
                state[name] = found
            stage.load_state_dict(state)
