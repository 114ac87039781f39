"""In which form a stage's output goes to the next: `model_pipeline.activations`."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from distqat.codec.activation_codec import LOSSY, Coded, encode_activation
from distqat.codec.aligned import CodeGrid
from distqat.failpoints import failpoint
from distqat.models.teacher import split
from distqat.quant import ActivationQuantizer, leaving
from distqat.swarm.tensor_frame import Fields, Message

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageOutputs:
    """What a stage made of a microbatch: `needs_grad` and `coded` as in `Message`."""

    tensors: Mapping[str, Tensor]
    needs_grad: frozenset[str] = frozenset()
    coded: Mapping[str, Coded] = field(default_factory=dict)

    def message(self, fields: Fields) -> Message:
        """With these fields, for the next stage."""
        return Message(fields, self.tensors, self.needs_grad, self.coded)


class ActivationEncoder:
    """Codes what leaves a stage. Runs on the compute thread, where the tensors are."""

    def __init__(self, module: nn.Module, activations: str, *, stage: str) -> None:
        """`activations` as configured: auto, fp32, or a lossy codec for what no quantizer made."""
        self._quantizer = None if activations == "fp32" else leaving(module)
        self._lossy = LOSSY.get(activations)
        self._stage = stage
        self._warned = False

    def outputs(self, tensors: Mapping[str, Tensor], needs_grad: Collection[str]) -> StageOutputs:
        """The tensors that the stage returned, with their forms.

        The only one is its quantizer's, unless that calibrates; a lossy form is for those with a gradient,
        and for what its teacher gives, which no quantizer made.
        """
        own, _ = split(tensors)
        grid = grid_of(self._quantizer) if self._quantizer is not None and len(own) == 1 else None
        coded: dict[str, Coded] = {}
        failpoint("activation.encode")
        for name, tensor in tensors.items():
            lossy = self._lossy if name in needs_grad or name not in own else None
            form = encode_activation(tensor, grid if name in own else None, lossy)
            if form is not None:
                coded[name] = form
        if grid is not None and not self._warned and all(form.codec != "aligned" for form in coded.values()):
            self._warned = True
            logger.warning(
                "stage %s: its output is not what its last quantizer made (something computes behind it), or "
                "is not finite; it travels without integer codes",
                self._stage,
            )
        return StageOutputs(tensors, frozenset(needs_grad), coded)


def grid_of(quantizer: ActivationQuantizer) -> CodeGrid | None:
    """Where the values of its tensor lie now; None while it has no step."""
    return None if quantizer.in_float else CodeGrid(float(quantizer.step), *quantizer.code_range)
