"""A loss of a stage's own, beside that of the task: what keeps the experts of a mixture equally busy, say.

In its forward pass a stage may set `self.auxiliary_loss` to a scalar: the mean over the samples that it was
given, times its weight. Whoever ran the pass takes it, and adds it to the loss of the microbatch.
"""

from __future__ import annotations

from torch import Tensor, nn

from distqat.errors import ModelError

AUXILIARY = "auxiliary_loss"
"""The attribute, and the score under which stages tell it; a step's `loss` contains it."""


def take_auxiliary_loss(stage: nn.Module) -> Tensor | None:
    """The loss that the last forward pass left, which is then forgotten; None: there is none.

    Raises ModelError for anything but a scalar tensor of floats.
    """
    loss = getattr(stage, AUXILIARY, None)
    if loss is None:
        return None
    setattr(stage, AUXILIARY, None)
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.is_floating_point():
        shown = f"{loss.dtype} {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ModelError(
            f"{type(stage).__name__}.{AUXILIARY} is {shown}; it must be a scalar tensor, the mean over the "
            "samples of the pass"
        )
    return loss
