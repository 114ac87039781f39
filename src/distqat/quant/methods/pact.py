"""`pact`: a learned clipping level (arXiv:1805.06085): step = level / qmax.

The level learns from what it clips alone (equation 3); rounding passes gradients straight through. In the
logarithm of the step: d level / d log(step) = level.

The paper begins with a level far too high and lets L2 decay bring it down (section 3.2). Here calibration
begins at the level of least squared error, and there is no decay: an optimizer's would pull log(step) to 0,
which is a step of 1 and no smaller level, and a term in the loss would count once per microbatch.
"""

from __future__ import annotations

from torch import Tensor

from distqat.quant.fake_quantize import fake_quantize, step_size
from distqat.quant.methods.method import QuantizerGrid


class PactMethod:
    """Activations only; signed ones are clipped on both sides."""

    quantizes, learns_step, has_offset, follows_weight = True, True, False, False

    def fake_quantize(
        self, x: Tensor, log_step: Tensor, offset: Tensor | None, grid: QuantizerGrid
    ) -> Tensor:
        """The clipped tensor, rounded with a step that does not see the rounding."""
        step = step_size(log_step)
        scaled = (
            step.detach() + (step - step.detach()) * grid.gradient_scale
        )  # value of step, scaled gradient
        clipped = x.clamp(grid.qmin * scaled, grid.qmax * scaled)
        rounded = fake_quantize(
            clipped.detach(), log_step.detach(), grid.qmin, grid.qmax, axis=grid.axis, gradient_scale=0.0
        )
        return rounded + (clipped - clipped.detach())


METHOD = PactMethod()
