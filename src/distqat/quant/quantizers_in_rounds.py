"""Quantizers of a stage in its rounds: what replicas send of them, and what a round makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distqat.errors import BadContribution
from distqat.quant.late_calibration import alike, exact_log
from distqat.quant.quantized_layers import QuantizedLayer
from distqat.quant.quantizer import STATES, ActivationQuantizer
from distqat.quant.weight_quantizer import WeightQuantizer

_ACTIVE, _WAITING = STATES.index("active"), STATES.index("waiting")

Named = dict[str, Tensor]


class QuantizersInRounds:
    """Waiting quantizers of a stage in its rounds: what replicas send of them, and what a round makes of it.

    Works on the named tensors of a committed state; the module says only which quantizers there are.
    """

    def __init__(self, module: nn.Module) -> None:
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._tensors = {n: q for n, q in module.named_modules() if isinstance(q, ActivationQuantizer)}
        self._weights = {
            f"{name}.weight_quant" if name else "weight_quant": (layer.weight_quant, names[id(layer.weight)])
            for name, layer in module.named_modules()
            if isinstance(layer, QuantizedLayer)
            and isinstance(layer.weight_quant, WeightQuantizer)
            and id(layer.weight) in names
        }

    def seen(self, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Named:
        """Of a replica's buffers what it has counted, by quantizers that wait by the committed buffers."""
        return {name: own[f"{name}.counts"] for name in self._waiting(shared, self._tensors)}

    def check(self, shared: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> None:
        """Raises BadContribution unless `seen` has what it must have."""
        wanted = self._waiting(shared, self._tensors)
        if set(seen) != set(wanted):
            raise BadContribution(f"a contribution counts {sorted(set(seen) ^ set(wanted))[:2]} otherwise")
        for name, counts in seen.items():
            own = shared[f"{name}.counts"]
            if counts.dtype != own.dtype or counts.shape != own.shape or bool((counts < 0).any()):
                raise BadContribution(f"what a contribution has counted at {name!r} are not counts")

    @torch.no_grad()
    def after(
        self,
        buffers: Named,
        steps: Named,
        seen: Sequence[Mapping[str, Tensor]],
        anchor: Mapping[str, Tensor],
        *,
        last: bool = False,
    ) -> tuple[Named, Named]:
        """(buffers, steps) after a round: new estimates, and states of the quantizers that are active now.

        `buffers` and `steps` are those of the last committed state, `seen` has an entry per contribution,
        `anchor` is the new one. `last`: steps are frozen from now on.
        """
        found: dict[str, tuple[Tensor, bool, Tensor | None]] = {}
        for name in self._waiting(buffers, self._tensors):
            counts = torch.stack([each[name] for each in seen]).sum(0)
            if self._tensors[name].can_begin(counts):
                step, signed, offset = self._tensors[name].initial_step(counts)
                found[name] = step, signed, offset if self._tensors[name].offset is not None else None
        for name in self._waiting(buffers, self._weights):
            quantizer, weight = self._weights[name]
            if bool(anchor[weight].any()):
                found[name] = quantizer.initial_step(anchor[weight]), True, None
        buffers, steps = dict(buffers), dict(steps)
        for name, (step, signed, lowest) in found.items():
            key, log_step = f"{name}.log_step", exact_log(step)
            if last or alike(steps[key], log_step):
                buffers[f"{name}.state_code"] = torch.full_like(buffers[f"{name}.state_code"], _ACTIVE)
                if name in self._tensors:
                    buffers[f"{name}.signed"] = torch.full_like(buffers[f"{name}.signed"], signed)
            steps[key] = log_step.reshape(steps[key].shape).to(steps[key].dtype)
            if lowest is not None:
                steps[f"{name}.offset"] = lowest.to(steps[f"{name}.offset"].dtype)
        return buffers, steps

    def step_names(self, buffers: Mapping[str, Tensor]) -> set[str]:
        """Parameters of the quantizers that wait: nothing is learned of them, so nothing is averaged."""
        waiting = {*self._waiting(buffers, self._tensors), *self._waiting(buffers, self._weights)}
        return {f"{name}.{own}" for name in waiting for own in ("log_step", "offset")}

    def _waiting(self, buffers: Mapping[str, Tensor], names: Mapping[str, object]) -> list[str]:
        return [name for name in names if int(buffers[f"{name}.state_code"]) == _WAITING]
