"""Quantizers of a stage in its rounds: what replicas send of them, and what a round makes of it.

Whoever has no step counts values (an int64 histogram per tensor), and a round adds what all replicas have
counted: integers, so any order gives the same bits. Steps of weights come from the anchor that the round
gives. A stage that trains in float first gets all its steps so at one round (`quantize_at_round`); afterwards
those that have seen nothing wait (`late_calibration`), and get theirs in a later one (`after`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from distqat.errors import BadContribution
from distqat.quant.late_calibration import alike, exact_log
from distqat.quant.quantized_layers import QuantizedLayer
from distqat.quant.quantizer import STATES, ActivationQuantizer
from distqat.quant.weight_quantizer import WeightQuantizer

_CALIBRATING, _ACTIVE, _FROZEN, _WAITING = (STATES.index(each) for each in STATES)
MOST_COUNTED = 2**48
"""By one replica in one round; more is not honest, and sums would overflow."""

Named = dict[str, Tensor]
Estimate = tuple[Tensor, bool, Tensor | None]
"""Step, whether signed, offset where there is one."""


class QuantizersInRounds:
    """Works on the named tensors of a committed state; the module says only which quantizers there are."""

    def __init__(self, module: nn.Module) -> None:
        names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        self._tensors = {n: q for n, q in module.named_modules() if isinstance(q, ActivationQuantizer)}
        self._weights = {
            f"{name}.weight_quant" if name else "weight_quant": _Weight.of(layer, names)
            for name, layer in module.named_modules()
            if isinstance(layer, QuantizedLayer) and isinstance(layer.weight_quant, WeightQuantizer)
        }

    def in_float(self, buffers: Mapping[str, Tensor]) -> bool:
        """Whether a stage with these buffers trains in float: its quantizers still calibrate."""
        return any(self._in(_CALIBRATING, buffers, names) for names in (self._tensors, self._weights))

    def seen(
        self, shared: Mapping[str, Tensor], own: Mapping[str, Tensor], *, quantizes: bool = False
    ) -> Named:
        """Of a replica's buffers what it has counted, by quantizers that wait by the committed buffers.

        `quantizes`: the round gives all quantizers of a stage in float their steps, so those count as well.
        """
        return {name: own[f"{name}.counts"] for name in self._counting(shared, quantizes)}

    def check(
        self, shared: Mapping[str, Tensor], seen: Mapping[str, Tensor], *, quantizes: bool = False
    ) -> None:
        """Raises BadContribution unless `seen` has what it must have."""
        wanted = self._counting(shared, quantizes)
        if set(seen) != set(wanted):
            raise BadContribution(f"a contribution counts {sorted(set(seen) ^ set(wanted))[:2]} otherwise")
        for name, counts in seen.items():
            own = shared[f"{name}.counts"]
            fits = counts.dtype == own.dtype and counts.shape == own.shape
            if not fits or bool(((counts < 0) | (counts > MOST_COUNTED)).any()):
                raise BadContribution(f"what a contribution has counted at {name!r} are not counts")

    @torch.no_grad()
    def quantize_at_round(
        self,
        buffers: Named,
        steps: Named,
        seen: Sequence[Mapping[str, Tensor]],
        anchor: Mapping[str, Tensor],
    ) -> tuple[Named, Named]:
        """(buffers, steps) of the round by which a stage that trained in float becomes quantized.

        What `activate` does for one replica, here by what all of them have counted and by the new anchor.
        Those that have seen nothing wait. `buffers` and `steps` are those of the last committed state, `seen`
        has an entry per contribution, `anchor` is the new one.
        """
        found = self._estimates(_CALIBRATING, buffers, seen, anchor)
        calibrating = [
            *self._in(_CALIBRATING, buffers, self._tensors),
            *self._in(_CALIBRATING, buffers, self._weights),
        ]
        state = {**anchor, **buffers}
        buffers, steps = dict(buffers), dict(steps)
        for name in calibrating:
            if name in found:
                self._begin(buffers, name, found[name])
                _note(steps, name, found[name])
                continue
            weight = self._weights.get(name)
            unseen = self._tensors[name].unseen_step if weight is None else weight.initial_step(state)
            _note(steps, name, (unseen, True, None))
            buffers[f"{name}.state_code"] = torch.full_like(buffers[f"{name}.state_code"], _WAITING)
        return buffers, steps

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

        Arguments as of `quantize_at_round`. `last`: steps are frozen from now on.
        """
        found = self._estimates(_WAITING, buffers, seen, anchor)
        buffers, steps = dict(buffers), dict(steps)
        for name, estimate in found.items():
            if last or alike(steps[f"{name}.log_step"], exact_log(estimate[0])):
                self._begin(buffers, name, estimate)
            _note(steps, name, estimate)
        return buffers, steps

    def held(self, buffers: Named, steps: Named, anchor: Mapping[str, Tensor]) -> Named:
        """Steps of weights within what the new anchor gives; a mean of steps is of replicas' weights."""
        tensors, steps = {**anchor, **buffers}, dict(steps)
        frozen = [n for n in self._in(_FROZEN, buffers, self._weights) if self._weights[n].quantizer.follows]
        for name in (*self._in(_ACTIVE, buffers, self._weights), *frozen):
            key, weight = f"{name}.log_step", self._weights[name]
            bounded = weight.quantizer.held(steps[key], weight.value(tensors), exact_log)
            steps[key] = bounded.to(steps[key].dtype)
        return steps

    def step_names(self, buffers: Mapping[str, Tensor]) -> set[str]:
        """Parameters of the quantizers without a step: nothing is learned of them, so nothing is averaged."""
        names = [
            name
            for state in (_CALIBRATING, _WAITING)
            for each in (self._tensors, self._weights)
            for name in self._in(state, buffers, each)
        ]
        return {f"{name}.{own}" for name in names for own in ("log_step", "offset")}

    def _estimates(
        self,
        state: int,
        buffers: Mapping[str, Tensor],
        seen: Sequence[Mapping[str, Tensor]],
        anchor: Mapping[str, Tensor],
    ) -> dict[str, Estimate]:
        """Of the quantizers in this state those of which something is known by now."""
        found: dict[str, Estimate] = {}
        for name in self._in(state, buffers, self._tensors):
            quantizer, counts = self._tensors[name], torch.stack([each[name] for each in seen]).sum(0)
            if quantizer.can_begin(counts):
                step, signed, offset = quantizer.initial_step(counts)
                found[name] = step, signed, offset if quantizer.offset is not None else None
        tensors = {**anchor, **buffers}
        for name in self._in(state, buffers, self._weights):
            weight = self._weights[name]
            if not weight.may_wait or bool(weight.value(tensors).any()):
                found[name] = weight.initial_step(tensors), True, None
        return found

    def _begin(self, buffers: Named, name: str, estimate: Estimate) -> None:
        buffers[f"{name}.state_code"] = torch.full_like(buffers[f"{name}.state_code"], _ACTIVE)
        if name in self._tensors:
            buffers[f"{name}.signed"] = torch.full_like(buffers[f"{name}.signed"], estimate[1])

    def _counting(self, buffers: Mapping[str, Tensor], quantizes: bool) -> list[str]:
        states = (_CALIBRATING, _WAITING) if quantizes else (_WAITING,)
        return [name for state in states for name in self._in(state, buffers, self._tensors)]

    @staticmethod
    def _in(state: int, buffers: Mapping[str, Tensor], names: Mapping[str, object]) -> list[str]:
        return [name for name in names if int(buffers[f"{name}.state_code"]) == state]


@dataclass(frozen=True)
class _Weight:
    """The weight of a layer by the tensors of a committed state. `may_wait`: it can be all zero by itself."""

    quantizer: WeightQuantizer
    value: Callable[[Mapping[str, Tensor]], Tensor]
    may_wait: bool

    @classmethod
    def of(cls, layer: QuantizedLayer, names: Mapping[int, str]) -> _Weight:
        """`names` of parameters and buffers by their ids."""
        quantizer = layer.weight_quant
        assert isinstance(quantizer, WeightQuantizer)
        assert isinstance(layer, nn.Module)
        if not parametrize.is_parametrized(layer):  # whose weight would be computed by looking at it
            name = names[id(layer.weight)]
            return cls(quantizer, lambda tensors: tensors[name], not quantizer.method.follows_weight)
        return cls(
            quantizer, _computed(layer.get_submodule("parametrizations.weight"), names), may_wait=False
        )

    def initial_step(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The first step, of these tensors."""
        return self.quantizer.initial_step(self.value(tensors))


def _computed(made: nn.Module, names: Mapping[int, str]) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """What a parametrization makes of a state's tensors, in float64: replicas round to the same float32."""
    own = {n: names[id(t)] for n, t in (*made.named_parameters(), *made.named_buffers())}

    def value(tensors: Mapping[str, Tensor]) -> Tensor:
        given = {name: tensors[whole] for name, whole in own.items()}
        wide = {
            n: t.to(torch.float64, copy=True) if t.is_floating_point() else t.clone()
            for n, t in given.items()
        }
        weight: Tensor = functional_call(made, wide, ())
        return weight.float()

    return value


def _note(steps: Named, name: str, estimate: Estimate) -> None:
    step, _, lowest = estimate
    key = f"{name}.log_step"
    steps[key] = exact_log(step).reshape(steps[key].shape).to(steps[key].dtype)
    if lowest is not None:
        steps[f"{name}.offset"] = lowest.to(steps[f"{name}.offset"].dtype)
