"""BatchNorms that fold into a quantized convolution, computed as the integer model has them.

    y = gamma * (conv(x) + b - mean) / sqrt(variance + eps) + beta = k * conv(x) + shift

k goes into the weight's step (Jacob et al., arXiv:1712.05877, section 3.2), shift is an int32 bias. Once
steps are frozen and statistics stand, shift lies on the grid of that bias; before, nothing is different.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distqat.quant.int32_bias import folded_step, snapped
from distqat.quant.output_quantizer import Unquantized, quantizer_of
from distqat.quant.quantized_layers import QuantizedLayer

_CONVOLUTION = "_convolution"


class FoldedNorm:
    """Mixin of the twins of BatchNorm1d and BatchNorm2d; parameters, buffers and names stay."""

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    eps: float
    training: bool

    def forward(self, input: Tensor) -> Tensor:
        """[batch, channels, ...], what the convolution gave, its own bias included."""
        folded = self.folded()
        if folded is None:
            normed: Tensor = super().forward(input)  # type: ignore[misc]
            return normed
        factor_C, shift_C = folded
        own_C = self.convolution.bias
        added_C = shift_C if own_C is None else shift_C - factor_C * own_C.double()
        shape = (-1, *[1] * (input.dim() - 2))
        factor, added = (each.float().view(shape) for each in (factor_C, added_C))
        return torch.addcmul(added, input, factor).to(input.dtype)

    @property
    def convolution(self) -> QuantizedLayer:
        """The layer in front."""
        found: QuantizedLayer = self.__dict__[_CONVOLUTION][0]
        return found

    def folded(self) -> tuple[Tensor, Tensor] | None:
        """(k, shift), both float64 [C], shift as int32 has it; None while steps or statistics still move."""
        layer = self.convolution
        taken, weight = quantizer_of(layer.input_quant), layer.weight_quant
        if self.training or taken is None or isinstance(weight, Unquantized):
            return None
        if taken.state != "frozen" or weight.state != "frozen":
            return None
        factor_C, shift_C = self._affine(layer.bias)
        step_C = folded_step(weight.step, factor_C)
        return factor_C, snapped(shift_C, taken.step, step_C, weight.bits)

    def _affine(self, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        factor_C = self.weight.double() / (self.running_var.double() + self.eps).sqrt()
        moved_C = -self.running_mean.double() if bias is None else bias.double() - self.running_mean.double()
        return factor_C, moved_C * factor_C + self.bias.double()


class FoldedNorm1d(FoldedNorm, nn.BatchNorm1d):  # type: ignore[misc]
    """[batch, channels, length]."""


class FoldedNorm2d(FoldedNorm, nn.BatchNorm2d):  # type: ignore[misc]
    """[batch, channels, height, width]."""


TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: FoldedNorm1d,
    nn.BatchNorm2d: FoldedNorm2d,
}


def fold_norm(norm: nn.Module, layer: nn.Module) -> bool:
    """Let `norm` know, in place, the quantized layer that it folds into; False if it cannot fold.

    The layer's own bias is part of the folded one from then on, so it is not rounded by itself.
    """
    twin = TWINS.get(type(norm))
    own: Any = norm
    if twin is None or own.running_mean is None or own.weight is None or own.bias is None:
        return False
    norm.__class__ = twin
    norm.__dict__[_CONVOLUTION] = [layer]  # in a list: it is a module of its own elsewhere in the stage
    assert isinstance(layer, QuantizedLayer)
    layer.snaps_bias = False
    return True


@torch.no_grad()
def unfold_norm(norm: FoldedNorm) -> None:
    """A plain BatchNorm again, in place, whose own bias makes the shift the rounded one."""
    folded = norm.folded()
    plain: Any = norm
    if folded is not None:
        _, exact_C = norm._affine(norm.convolution.bias)
        moved_C = (norm.bias.double() + folded[1] - exact_C).float()
        plain.bias = nn.Parameter(moved_C, requires_grad=False)
    plain.__class__ = next(kind for kind, twin in TWINS.items() if isinstance(norm, twin))
    del plain.__dict__[_CONVOLUTION]
