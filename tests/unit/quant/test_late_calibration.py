"""Quantizers that calibration shows nothing to wait, in float, and then have the same step everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from distqat.errors import BadContribution, QuantError
from distqat.quant import (
    ActivationQuantizer,
    QuantOptions,
    SharedInput,
    activate,
    calibrated,
    check_observed,
    freeze_in,
    look_again,
    quantize_module,
    quantizer_buffer_names,
    quantizers,
    reasons,
    record,
    set_state,
)
from distqat.quant.quantizers_in_rounds import QuantizersInRounds

X = torch.randn(6, 4)


class Branch(nn.Module):
    """A branch that starts at zero beside the main path, and a layer that forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.zero, self.after, self.unused = (nn.Linear(4, 4) for _ in range(4))
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        return y + self.after(self.zero(y))


def branch(**options: object) -> tuple[Branch, QuantOptions]:
    torch.manual_seed(3)
    module = Branch()
    made = QuantOptions.model_validate({"skip": [], "warmup": {"calibrate_batches": 2}, **options})
    quantize_module(module, made, stage="full", first=True, last=True)
    return module, made


def states(module: nn.Module) -> dict[str, str]:
    return {quantizer.name.removeprefix("full."): quantizer.state for _, quantizer in quantizers(module)}


def waiting(module: nn.Module) -> set[str]:
    return {name for name, state in states(module).items() if state == "waiting"}


EMPTY = {"zero.weight_quant", "after.input_quant", "unused.input_quant"}


def waits() -> Branch:
    module, options = branch()
    for shown in range(1, 5):
        module(X)
        assert calibrated(module, options, shown) == (shown == 4)
    activate(module, wait=True)
    return module


def test_calibration_ends_after_twice_its_batches_and_names_who_waits_for_what() -> None:
    module, options = branch()
    for _ in range(4):
        module(X)
    assert not calibrated(module, options, 3)
    assert calibrated(module, options, 4)
    said = reasons(activate(module, wait=True))
    assert waiting(module) == EMPTY
    assert [text.partition(":")[0] for text in said] == ["full.after", "full.unused", "full.zero"]
    assert "only zeros came here" in said[0]
    assert "quant.skip" in said[1]
    assert "all weights are zero" in said[2]


def test_without_leave_to_wait_nothing_seen_is_an_error() -> None:
    module, _ = branch()
    module(X)
    with pytest.raises(QuantError, match="has seen no real data"):
        activate(module)


def test_who_waits_passes_values_in_float_and_counts_them() -> None:
    module = waits()
    after: ActivationQuantizer = module.after.input_quant  # type: ignore[assignment]
    assert torch.equal(after(X), X)
    assert int(after.batches) == 1
    assert torch.equal(SharedInput(after, "after")(X), X)
    assert int(after.batches) == 1
    assert module.zero.weight_quant(module.zero.weight) is module.zero.weight
    assert module(torch.zeros(2, 4)).shape == (2, 4)  # a dummy
    assert int(after.batches) == 1
    module.eval()
    module(X)
    assert int(after.batches) == 1


def test_in_one_process_a_step_is_found_once_two_estimates_agree() -> None:
    module = waits()
    for size in (1e-3, 1e-2):
        with torch.no_grad():
            module.zero.weight.copy_(torch.eye(4) * size)
        module(X)
        assert look_again(module) == []
        assert waiting(module) == EMPTY
    module(X)
    assert set(look_again(module)) == {"full.zero.weight_quant", "full.after.input_quant"}
    assert waiting(module) == {"unused.input_quant"}
    largest = float(module.first(X).detach().abs().max()) * 1e-2
    assert largest / 127 / 4 < float(module.after.input_quant.step) < largest / 127 * 1.1  # type: ignore[union-attr,operator,arg-type]
    assert look_again(module) == []


def test_before_steps_freeze_one_estimate_has_to_do_and_the_unseen_wait_on() -> None:
    module = waits()
    with torch.no_grad():
        module.zero.weight.fill_(0.1)
    module(X)
    look_again(module, last=True)
    assert waiting(module) == {"unused.input_quant"}
    set_state(module, "frozen")  # what an export does
    assert set(states(module).values()) == {"frozen"}
    assert float(module.unused.input_quant.step) == pytest.approx(1 / 127)  # type: ignore[union-attr,arg-type]


class Rounds:
    """A committed state and its rounds, by hand."""

    def __init__(self) -> None:
        self.module = waits()
        self.rounds = QuantizersInRounds(self.module)
        self.buffers = {name: tensor.clone() for name, tensor in self.module.named_buffers()}
        self.steps = {n: p.detach().clone() for n, p in self.module.named_parameters() if "quant" in n}

    def round(self, size: float, *, last: bool = False) -> None:
        anchor = {**dict(self.module.named_parameters()), "zero.weight": torch.eye(4) * size}
        seen = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            after = ActivationQuantizer("after", bits=8, signed="auto")
            after.observe(torch.randn(8, 4) * size)
            own = {**self.buffers, "after.input_quant.counts": after.counts}
            seen.append(self.rounds.seen(self.buffers, own))
            self.rounds.check(self.buffers, seen[-1])
        assert set(seen[0]) == {"after.input_quant", "unused.input_quant"}
        self.buffers, self.steps = self.rounds.after(self.buffers, self.steps, seen, anchor, last=last)

    def state(self, name: str) -> int:
        return int(self.buffers[f"{name}.state_code"])


def test_a_round_finds_the_step_from_what_all_replicas_have_counted() -> None:
    rounds = Rounds()
    assert "after.input_quant.log_step" in rounds.rounds.step_names(rounds.buffers)
    rounds.round(1e-3)
    assert (rounds.state("zero.weight_quant"), rounds.state("after.input_quant")) == (3, 3)
    rounds.round(1e-3)
    assert (rounds.state("zero.weight_quant"), rounds.state("after.input_quant")) == (1, 1)
    assert rounds.state("unused.input_quant") == 3
    both = ActivationQuantizer("both", bits=8, signed="auto")
    for seed in (1, 2):
        torch.manual_seed(seed)
        both.observe(torch.randn(8, 4) * 1e-3)
    step, signed, _ = both.initial_step()
    assert signed
    assert float(rounds.steps["after.input_quant.log_step"]) == pytest.approx(math.log(float(step)))
    assert bool(rounds.buffers["after.input_quant.signed"])
    assert not rounds.buffers["after.input_quant.counts"].any()
    assert rounds.steps["zero.weight_quant.log_step"].shape == (4,)


def test_a_round_that_sees_nothing_changes_nothing() -> None:
    rounds = Rounds()
    before = dict(rounds.buffers), dict(rounds.steps)
    rounds.round(0.0, last=True)
    assert all(torch.equal(rounds.buffers[name], tensor) for name, tensor in before[0].items())
    assert all(torch.equal(rounds.steps[name], tensor) for name, tensor in before[1].items())


def test_what_is_known_when_steps_freeze_freezes_with_them() -> None:
    rounds = Rounds()
    rounds.round(1e-3, last=True)
    frozen = freeze_in(rounds.buffers, quantizer_buffer_names(rounds.module))
    assert int(frozen["after.input_quant.state_code"]) == 2
    assert int(frozen["unused.input_quant.state_code"]) == 3


def test_counts_that_are_none_are_no_contribution() -> None:
    rounds = Rounds()
    good = rounds.rounds.seen(rounds.buffers, rounds.buffers)
    bad = {**good, "after.input_quant": good["after.input_quant"] - 1}
    for seen in (bad, {}, {**good, "first.input_quant": good["after.input_quant"]}):
        with pytest.raises(BadContribution):
            rounds.rounds.check(rounds.buffers, seen)


def test_nan_in_every_batch_is_an_error_that_names_the_layer() -> None:
    module, _ = branch()
    for _ in range(2):
        module(X)
    check_observed(module)  # zeros and unused layers are none
    module, _ = branch()
    with torch.no_grad():
        module.zero.bias.fill_(math.nan)
    module(X)
    with pytest.raises(QuantError, match=r"full\.after\.input_quant: every batch .* NaN or infinity"):
        check_observed(module)


def test_a_batch_with_nan_among_others_is_left_out() -> None:
    module, options = branch()
    for x in (X, X * math.nan, X):
        module(x)
    check_observed(module)
    assert int(module.first.input_quant.batches) == 2  # type: ignore[union-attr,arg-type]
    activate(module, wait=True)
    assert states(module)["first.input_quant"] == "active"
    assert calibrated(module, options)


def test_negative_values_alone_do_not_fit_unsigned_codes() -> None:
    module, _ = branch(activation={"signed": False})
    module(-X.abs())
    with pytest.raises(QuantError, match="unsigned but saw no positive value"):
        check_observed(module)


def test_unsigned_codes_are_refused_where_negative_values_come() -> None:
    module, _ = branch(activation={"signed": False})
    module(X)
    with pytest.raises(QuantError, match=r"is unsigned .* saw values down to -\d.*signed: auto"):
        check_observed(module)


def test_what_is_less_than_a_code_below_zero_is_no_negative_value() -> None:
    quantizer = ActivationQuantizer("one", bits=8, signed=False)
    quantizer.observe(torch.tensor([1.0, -1e-4]))
    quantizer.check_observed()
    quantizer.observe(torch.tensor([-0.1]))
    with pytest.raises(QuantError, match=r"down to -0\.1"):
        quantizer.check_observed()


def test_values_too_small_for_a_step_are_not_called_zeros() -> None:
    quantizer = ActivationQuantizer("head.act.input_quant", bits=8, signed="auto")
    quantizer.observe(torch.full((5,), 1e-9))
    (said,) = reasons([quantizer])
    assert said.startswith("head.act: calibration saw only values smaller than 2**-24")


def test_constant_and_tiny_inputs() -> None:
    quantizer = ActivationQuantizer("one", bits=8, signed="auto")
    quantizer.observe(torch.ones(5))
    step, signed, _ = quantizer.initial_step()
    assert not signed
    assert float(step) == pytest.approx(1 / 255, rel=0.1)
    quantizer = ActivationQuantizer("tiny", bits=8, signed="auto")
    quantizer.observe(torch.full((5,), 1e-12))  # nothing that a step could stand for
    assert (int(quantizer.batches), quantizer.looked["zeros"], quantizer.looked["tiny"]) == (0, 0, 1)


def test_placement_copes_with_a_layer_that_the_pass_does_not_use() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.extra, self.used, self.more = (nn.Conv2d(2, 2, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.more(self.used(x))
            return y

    module = Unused()
    flow = record(module, [torch.zeros(1, 2, 3, 3)])
    report = quantize_module(module, QuantOptions(), stage="full", first=True, last=True, flow=flow)
    assert [layer.name for layer in report.layers] == ["extra", "used", "more"]
