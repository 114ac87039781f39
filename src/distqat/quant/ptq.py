"""Quantization after training: calibrate on some batches, then freeze. What training has to beat."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from distqat.errors import QuantError
from distqat.quant.late_calibration import must_wait, reasons
from distqat.quant.quantizer import ActivationQuantizer, Quantizer
from distqat.quant.quantizer_states import activate, check_observed, quantizers, set_state

logger = logging.getLogger(__name__)


def load_float(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Weights and buffers of the float stage into its quantized, calibrating twin.

    Raises QuantError when one is missing or has another shape.
    """
    own = {
        f"{name}.{entry}" if name else entry
        for name, child in module.named_modules()
        if isinstance(child, Quantizer)
        for entry in child.state_dict()
    }
    state = module.state_dict()
    for name, tensor in state.items():
        if name not in own and (name not in weights or weights[name].shape != tensor.shape):
            raise QuantError(f"{name!r} is missing in the float model, or has another shape there")
    module.load_state_dict({name: state[name] if name in own else weights[name] for name in state})


def start_observing(module: nn.Module) -> None:
    """Everything as in evaluation (no dropout, standing statistics), but quantizers count what they see."""
    module.eval()
    module.training = True  # of this module alone: dummies are told apart where it is entered
    for child in module.modules():
        if isinstance(child, Quantizer):
            child.training = True


def end_observing(module: nn.Module) -> None:
    """calibrating -> frozen, in eval mode; a quantizer that saw nothing has the step for a range of 1.

    Raises QuantError if none saw anything, and for what cannot be quantized as configured.
    """
    check_observed(module)
    tensors = [each for _, each in quantizers(module) if isinstance(each, ActivationQuantizer)]
    for sentence in reasons(activate(module, wait=not all(must_wait(each) for each in tensors))):
        logger.warning("%s", sentence)
    set_state(module, "frozen")
    module.eval()
