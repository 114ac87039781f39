"""How a round makes the next committed state of a stage from the last one and what its replicas send.

Steps (logarithms) and buffers are averaged as they are, outside the outer momentum; only weights have a
pseudo-gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from distqat.codec import Codec, decode_tensors, encode_tensors
from distqat.diloco import outer_optimizer, pseudo_gradient
from distqat.diloco.options import DilocoOptions
from distqat.distributed.serving.committed_state import CommittedState, ReplicaWeights, as_local
from distqat.distributed.transfer.tied_weight_exchange import moved_towards
from distqat.errors import BadContribution
from distqat.failpoints import failpoint
from distqat.models.teacher import is_teachers, teacher_from
from distqat.quant import freeze_in, quantizer_buffer_names
from distqat.quant.batchnorm_statistics import BatchNormStatistics
from distqat.quant.options import WarmupOptions
from distqat.quant.quant_schedule import float_rounds, measures, moment
from distqat.quant.quantizers_in_rounds import QuantizersInRounds

Named = dict[str, Tensor]


class RoundArithmetic:
    """Contribution, result and merge of one stage's rounds."""

    def __init__(
        self,
        options: DilocoOptions,
        codec: Codec,
        module: nn.Module,
        warmup: WarmupOptions | None = None,
        *,
        stands: bool = False,
    ) -> None:
        """`stands`: there are BatchNorms here or in a stage behind, so weights stand in the last round."""
        self.options = options
        self._codec = codec
        self._warmup = warmup or WarmupOptions()
        teacher = {name for name, _ in module.named_buffers() if is_teachers(name)}
        # Constant, quantizers' once they are active: never sent.
        self._fixed = frozenset(quantizer_buffer_names(module) | teacher)
        self._stands = stands
        self._statistics = BatchNormStatistics(module)
        self._quantizers = QuantizersInRounds(module)

    def measuring(self, round: int) -> bool:
        """Whether the weights that `round` has committed are the last: statistics are measured of them."""
        measured = self._stands and measures(self.options.outer_steps, self._warmup)
        return measured and round >= self.options.outer_steps - 1

    def counting(self, round: int) -> bool:
        """Whether quantizers without a step count what comes after the committed state of `round`.

        While a stage trains in float they do so in the last round of that part alone.
        """
        return round + 1 >= float_rounds(self.options, self._warmup)

    def in_float(self, shared: CommittedState) -> bool:
        """Whether the stage trains in float from this state on."""
        return self._quantizers.in_float(shared.buffers)

    def inner_steps(self, round: int) -> int:
        """How many steps follow the committed state of `round` until the next round is due.

        Before the last round, in which nothing is trained, those of two: the run trains as much as any other.
        """
        wanted = self.options.inner_steps
        if self.measuring(round):
            return min(wanted, self._warmup.calibrate_batches)
        return 2 * wanted if self.measuring(round + 1) else wanted

    def steps_by(self, round: int) -> int:
        """How many steps of the schedule are over when the round after `round` is due."""
        last = self.measuring(round + 1)  # statistics are measured after all steps that train
        return self.options.total_steps if last else (round + 1) * self.options.inner_steps

    def contribution(self, shared: CommittedState, base: ReplicaWeights) -> Named:
        """Encoded pseudo-gradient, steps, buffers, and what quantizers without a step counted, by name."""
        failpoint("round.encode")
        delta = pseudo_gradient.pseudo_gradient(shared.anchor, base.weights)
        sent = {f"delta/{key}": part for key, part in encode_tensors(self._codec, delta).items()}
        sent.update({f"step/{name}": tensor for name, tensor in base.steps.items()})
        sent.update({f"buffer/{n}": tensor for n, tensor in base.buffers.items() if n not in self._fixed})
        seen = self._quantizers.seen(shared.buffers, base.buffers, quantizes=self._quantizes(shared))
        sent.update({f"seen/{name}": counts for name, counts in seen.items()})
        return sent

    def result(
        self,
        shared: CommittedState,
        contributions: Sequence[Named],
        samples: Sequence[int],
        copies: Mapping[str, Tensor] | None = None,
    ) -> CommittedState:
        """The next committed state from all contributions in the agreed order.

        `copies` are those that another stage has of tied weights: the anchor that the round begins with is
        moved to the mean of both. docs/decisions/0019-tied-weights.md

        A contribution that is malformed, not finite or of an outlying norm is left out; every member decides
        so from the same bytes. Raises BadContribution when none remains.
        """
        kept, refused = self._usable(shared, contributions, samples)
        weights = pseudo_gradient.capped_weights([each.samples for each in kept])
        if self.measuring(shared.round):
            return self._measured(shared, kept, weights, refused)
        gradient = pseudo_gradient.weighted_mean([each.delta for each in kept], weights)
        anchor, state = outer_optimizer.update(
            shared.anchor, gradient, shared.outer, self.options.outer_optim
        )
        anchor |= moved_towards(copies or {}, shared.anchor, anchor)
        done, round = (shared.round + 1) * self.options.inner_steps, shared.round + 1
        now = moment(done, self.options.total_steps, self._warmup, measuring=self.measuring(round))
        moved = pseudo_gradient.mean_buffers([each.buffers for each in kept], weights)
        buffers, steps = {**shared.buffers, **moved}, self._mean_steps(shared, kept, weights)
        seen = [each.seen for each in kept]
        if self._quantizes(shared):
            buffers, steps = self._quantizers.quantize_at_round(buffers, steps, seen, anchor)
            buffers = teacher_from(anchor, buffers)
        else:
            buffers, steps = self._quantizers.after(buffers, steps, seen, anchor, last=now.steps_frozen)
        steps = self._quantizers.held(buffers, steps, anchor)
        if now.steps_frozen:  # by the round: all decide alike
            buffers = freeze_in(buffers, self._fixed)
        if now.measuring:
            buffers = self._statistics.uncounted(buffers)
        return CommittedState(round, anchor, state, steps, buffers, dict(shared.counters), refused)

    def _quantizes(self, shared: CommittedState) -> bool:
        """Whether the round after `shared` gives a stage that trains in float its quantizers."""
        return self.counting(shared.round) and self.in_float(shared)

    def _measured(
        self,
        shared: CommittedState,
        kept: Sequence[_Decoded],
        weights: Sequence[float],
        refused: frozenset[int],
    ) -> CommittedState:
        """After the last round: everything as it was, but statistics are those of these weights."""
        sent = [each.buffers for each in kept]
        moved = pseudo_gradient.mean_buffers(sent, weights)
        moved |= self._statistics.measured(shared.buffers, sent, pseudo_gradient.capped_weights)
        buffers = {**shared.buffers, **moved}
        return replace(shared, round=shared.round + 1, buffers=buffers, refused=refused)

    def _mean_steps(
        self, shared: CommittedState, kept: Sequence[_Decoded], weights: Sequence[float]
    ) -> Named:
        """Means of the logarithms; of quantizers without a step what was there, which nobody has changed."""
        waiting = self._quantizers.step_names(shared.buffers)
        steps = pseudo_gradient.mean_buffers([each.steps for each in kept], weights)
        return {name: shared.steps[name] if name in waiting else tensor for name, tensor in steps.items()}

    def _usable(
        self, shared: CommittedState, contributions: Sequence[Named], samples: Sequence[int]
    ) -> tuple[list[_Decoded], frozenset[int]]:
        """The contributions that count, decoded, and the numbers of those that do not."""
        decoded: dict[int, _Decoded] = {}
        reasons: list[str] = []
        for number, (tensors, count) in enumerate(zip(contributions, samples, strict=True)):
            try:
                decoded[number] = self._decode(shared, tensors, count)
            except BadContribution as error:
                reasons.append(str(error))
        norms = [each.norm for each in decoded.values()]
        bound = pseudo_gradient.norm_bound(norms, self.options.max_delta_norm_ratio)
        kept = {number: each for number, each in decoded.items() if each.norm <= bound}
        if not kept:
            raise BadContribution(f"no contribution of {len(contributions)} can be used: {reasons[:2]}")
        return list(kept.values()), frozenset(range(len(contributions))) - frozenset(kept)

    def merge(self, new: CommittedState, now: ReplicaWeights, base: ReplicaWeights) -> ReplicaWeights:
        """weights <- anchor_new + (weights_now - base); not finite goes back to the anchor.

        In the last round all have the anchor itself, where weights stand in it.
        """
        if self.measuring(new.round):
            return ReplicaWeights(dict(new.anchor), dict(new.steps), dict(new.buffers))
        moving = {name: tensor for name, tensor in new.buffers.items() if name not in self._fixed}
        floats = [name for name, tensor in moving.items() if tensor.is_floating_point()]
        buffers = new.buffers, now.buffers, base.buffers
        moved = pseudo_gradient.merge(*({name: each[name] for name in floats} for each in buffers))
        merged = ReplicaWeights(
            weights=pseudo_gradient.merge(new.anchor, now.weights, base.weights),
            steps=pseudo_gradient.merge(new.steps, now.steps, base.steps),
            buffers={**new.buffers, **moved},
        )
        return merged if merged.finite() else as_local(new)

    def _decode(self, shared: CommittedState, tensors: Named, samples: int) -> _Decoded:
        parts: dict[str, Named] = {"delta": {}, "step": {}, "buffer": {}, "seen": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            if part not in parts:
                raise BadContribution(f"a contribution holds {key!r}")
            parts[part][name] = tensor
        moving = {n: t for n, t in shared.buffers.items() if n not in self._fixed}
        for name, own, theirs in (("step", shared.steps, parts["step"]), ("buffer", moving, parts["buffer"])):
            if pseudo_gradient.schema_of(own) != pseudo_gradient.schema_of(theirs):
                raise BadContribution(f"the {name}s of a contribution have other names or shapes")
            # Raises unless dtypes agree and all is finite.
            pseudo_gradient.mean_buffers([own, theirs], [0.5, 0.5])
        self._quantizers.check(shared.buffers, parts["seen"], quantizes=self._quantizes(shared))
        schema = pseudo_gradient.schema_of(shared.anchor)
        delta = decode_tensors(self._codec, parts["delta"], schema)
        norm = pseudo_gradient.check_contribution(delta, schema)
        return _Decoded(delta, parts["step"], parts["buffer"], parts["seen"], samples, norm)


@dataclass(frozen=True)
class _Decoded:
    """One contribution: `seen` by quantizer without a step, `norm` of the pseudo-gradient."""

    delta: Named
    steps: Named
    buffers: Named
    seen: Named
    samples: int
    norm: float
