"""The round by which a stage that trained in float becomes quantized."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distqat.errors import BadContribution
from distqat.quant import (
    QuantOptions,
    activate,
    observe_data,
    quantize_module,
    quantizers,
    step_parameter_names,
)
from distqat.quant.quantizers_in_rounds import MOST_COUNTED, QuantizersInRounds

Named = dict[str, Tensor]


class Layers(nn.Module):
    """A computed weight, a norm between layers, a branch of zeros, a layer without use."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 32))
        self.middle, self.zero, self.after, self.unused = (nn.Linear(32, 32) for _ in range(4))
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.middle(torch.relu(self.first(x)))
        return y + self.after(self.zero(y))


def stage(**options: object) -> Layers:
    torch.manual_seed(3)
    module = Layers()
    made = QuantOptions.model_validate({"skip": [], **options})
    quantize_module(module, made, stage="full", first=True, last=True)
    return module


def parts(module: nn.Module) -> tuple[Named, Named, Named]:
    """Anchor, steps and buffers."""
    steps = step_parameter_names(module)
    own = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    buffers = {name: tensor.clone() for name, tensor in module.named_buffers()}
    return (
        {n: t for n, t in own.items() if n not in steps},
        {n: t for n, t in own.items() if n in steps},
        buffers,
    )


def counted(module: nn.Module, batches: Sequence[Tensor]) -> Named:
    """The buffers of a replica that has seen these."""
    replica = copy.deepcopy(module)
    for batch in batches:
        replica(batch)
    return {name: tensor.clone() for name, tensor in replica.named_buffers()}


def states(buffers: Named) -> dict[str, int]:
    end = ".state_code"
    return {n.removesuffix(end): int(t) for n, t in buffers.items() if n.endswith(end)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": {"method": "lsq+"}},
        {"weight": {"bits": 4, "granularity": "per_tensor"}},
        {"weight": {"granularity": "per_group"}},
        {"weight": {"method": "minmax"}, "activation": {"method": "minmax"}},
        {"activation": {"granularity": "per_token"}},
    ],
)
def test_it_does_what_activation_does_for_one_who_has_seen_everything(options: dict[str, object]) -> None:
    module = stage(**options)
    anchor, steps, buffers = parts(module)
    rounds, data = QuantizersInRounds(module), [torch.randn(5, 4) for _ in range(4)]
    assert rounds.in_float(buffers)
    assert rounds.step_names(buffers) >= set(steps)
    anchor["middle.weight"] = anchor["middle.weight"] * 1.5  # the new one is not what a replica has
    anchor["first.parametrizations.weight.original0"] *= 2
    seen = [rounds.seen(buffers, counted(module, each), quantizes=True) for each in (data[:1], data[1:])]
    found, learned = rounds.quantize_at_round(buffers, steps, seen, anchor)

    for batch in data:
        module(batch)
    module.load_state_dict(anchor, strict=False)
    activate(module, wait=True)
    _, expected, wanted = parts(module)
    assert states(found) == states(wanted)
    assert {states(found)[name] for name in ("zero.weight_quant", "first.weight_quant")} <= {1, 3}
    assert all(torch.equal(found[n], t) for n, t in wanted.items() if n.endswith(("counts", "signed")))
    for name, tensor in expected.items():
        torch.testing.assert_close(learned[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert not rounds.in_float(found)
    assert rounds.seen(found, found, quantizes=True).keys() == rounds.seen(found, found).keys()


def test_nothing_is_sent_before_and_nothing_else_is_taken_in_the_round() -> None:
    module = stage()
    _, _, buffers = parts(module)
    rounds = QuantizersInRounds(module)
    assert rounds.seen(buffers, buffers) == {}
    rounds.check(buffers, {})
    seen = rounds.seen(buffers, counted(module, [torch.randn(5, 4)]), quantizes=True)
    assert {name.rpartition(".")[2] for name in seen} == {"input_quant"}
    rounds.check(buffers, seen, quantizes=True)
    for wrong in ({}, {**seen, "first.input_quant": seen["first.input_quant"] + MOST_COUNTED}):
        with pytest.raises(BadContribution):
            rounds.check(buffers, wrong, quantizes=True)
    with pytest.raises(BadContribution):
        rounds.check(buffers, seen)


def test_quantizers_look_away_until_the_round_in_which_they_count() -> None:
    module = stage()
    observe_data(module, on=False)
    assert not any(bool(t.any()) for n, t in counted(module, [torch.randn(5, 4)]).items() if "counts" in n)


@settings(max_examples=15)
@given(
    sizes=st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
    cut=st.integers(1, 6),
)
def test_any_order_and_any_division_among_replicas_gives_the_same_bits(
    sizes: list[float], order: object, cut: int
) -> None:
    module = stage()
    anchor, steps, buffers = parts(module)
    rounds = QuantizersInRounds(module)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(3, 4, generator=generator) * size for size in sizes]

    def result(groups: list[list[Tensor]]) -> Named:
        seen = [rounds.seen(buffers, counted(module, group), quantizes=True) for group in groups]
        found, learned = rounds.quantize_at_round(buffers, steps, seen, anchor)
        return {**found, **learned}

    expected = result([batches])
    shuffled = list(batches)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    groups = [shuffled[i : i + cut] for i in range(0, len(shuffled), cut)]
    got = result([*groups, []])  # and one that has joined just now
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_who_has_seen_nothing_waits_and_gets_its_step_in_a_later_round() -> None:
    module = stage()
    anchor, steps, buffers = parts(module)
    rounds = QuantizersInRounds(module)
    seen = [rounds.seen(buffers, counted(module, [torch.randn(5, 4)]), quantizes=True)]
    buffers, steps = rounds.quantize_at_round(buffers, steps, seen, anchor)
    waiting = {name for name, state in states(buffers).items() if state == 3}
    assert waiting == {"zero.weight_quant", "after.input_quant", "unused.input_quant"}
    assert float(steps["unused.input_quant.log_step"].exp()) == pytest.approx(1 / 127)
    assert set(rounds.seen(buffers, buffers)) == {"after.input_quant", "unused.input_quant"}
    anchor["zero.weight"] = torch.eye(32)
    for _ in range(2):
        seen = [rounds.seen(buffers, buffers)]
        buffers, steps = rounds.after(buffers, steps, seen, anchor)
    assert states(buffers)["zero.weight_quant"] == 1


def test_a_module_holds_what_the_round_has_found() -> None:
    module = stage()
    anchor, steps, buffers = parts(module)
    rounds = QuantizersInRounds(module)
    seen = [rounds.seen(buffers, counted(module, [torch.randn(5, 4)]), quantizes=True)]
    found, learned = rounds.quantize_at_round(buffers, steps, seen, anchor)
    module.load_state_dict({**anchor, **learned, **found})
    assert {q.state for _, q in quantizers(module)} == {"active", "waiting"}
    x = torch.randn(5, 4)
    assert not torch.equal(module.eval()(x), stage().eval()(x))
