"""Which layer of an exported model disagrees first: its codes beside those of the fake-quantized model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distqat.export.onnx.activation_nodes import ActivationCodes
from distqat.export.onnx.ort_session import OrtSession
from distqat.export.output_agreement import overlapping
from distqat.quant import ActivationQuantizer, quantizers

TOLERATED_SHARE = 0.02
"""Of a tensor's codes; sums in another order move values that lie between two codes."""


@dataclass(frozen=True)
class LayerAgreement:
    """The codes of one quantized tensor."""

    name: str
    share_apart: float
    """Of its codes, how many differ at all."""
    steps_apart: int
    """The largest difference."""

    @property
    def agrees(self) -> bool:
        """Whether this is what another order of summation explains: few codes, next to the right ones."""
        return self.share_apart <= TOLERATED_SHARE and self.steps_apart <= 1


def compare_layers(
    model: nn.Module, probed: OrtSession, probes: Sequence[ActivationCodes], inputs: Mapping[str, Tensor]
) -> list[LayerAgreement]:
    """Run both on one batch; one entry per quantized tensor, in the order of the graph."""
    expected = _codes(model, inputs)
    found = probed.run({name: t.numpy() for name, t in inputs.items()}, [probe.codes for probe in probes])
    compared = []
    for probe in probes:
        got = torch.from_numpy(found[probe.codes]).to(torch.int64) - probe.zero
        want, got = overlapping(expected[probe.name].reshape(_shape_like(expected[probe.name], got)), got)
        apart = (got - want).abs()
        share = float((apart > 0).double().mean()) if apart.numel() else 0.0
        compared.append(LayerAgreement(probe.name, share, int(apart.max()) if apart.numel() else 0))
    return compared


def _shape_like(expected: Tensor, got: Tensor) -> tuple[int, ...]:
    """The shape to compare in: as it is, or that of the exported tensor where tracing folded dimensions."""
    alike = expected.dim() == got.dim()
    return tuple(expected.shape if alike else got.shape)


def first_apart(layers: Sequence[LayerAgreement]) -> LayerAgreement | None:
    """The first that does not agree."""
    return next((layer for layer in layers if not layer.agrees), None)


@torch.no_grad()
def _codes(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What every quantizer gives in a forward pass in eval mode, as integers."""
    codes: dict[str, Tensor] = {}

    def note(name: str, step: Tensor) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            codes[name] = (output / step).round().to(torch.int64)

        return hook

    handles = [
        quantizer.register_forward_hook(note(name, quantizer.step))
        for name, quantizer in quantizers(model)
        if isinstance(quantizer, ActivationQuantizer)
    ]
    try:
        model.eval()(*inputs.values())
    finally:
        for handle in handles:
            handle.remove()
    return codes
