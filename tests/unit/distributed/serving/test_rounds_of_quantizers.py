"""What a round does with quantizers: means of logarithms beside the outer momentum, frozen near the end."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from distqat.codec import get_codec
from distqat.diloco.options import DilocoOptions
from distqat.distributed.serving.committed_state import (
    CommittedState,
    ReplicaWeights,
    as_local,
    initial,
)
from distqat.distributed.serving.round_arithmetic import RoundArithmetic
from distqat.quant import QuantOptions, activate, quantize_module, quantizers, step_parameter_names
from distqat.quant.late_calibration import exact_log
from distqat.quant.options import WarmupOptions


def stage() -> nn.Sequential:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2))
    options = QuantOptions.model_validate({"activation": {"method": "lsq+"}})
    quantize_module(module, options, stage="full", first=True, last=True)
    module(torch.randn(16, 4))
    activate(module)
    return module


def states(shared: CommittedState, module: nn.Module) -> set[str]:
    as_local(shared).load(module)
    return {quantizer.state for _, quantizer in quantizers(module)}


def moved(module: nn.Module, shared: CommittedState, by: float) -> ReplicaWeights:
    base = ReplicaWeights.of(module)
    steps = {name: tensor + by for name, tensor in shared.steps.items()}
    return ReplicaWeights({name: t - 0.01 for name, t in base.weights.items()}, steps, base.buffers)


def test_steps_and_offsets_are_means_outside_the_momentum_and_freeze_by_the_round() -> None:
    module = stage()
    options = DilocoOptions(inner_steps=10, outer_steps=3)
    rounds = RoundArithmetic(options, get_codec("fp32"), module, WarmupOptions(freeze_bn_last=0.4))
    shared = initial(module)
    assert set(shared.steps) == step_parameter_names(module)
    assert {name.rpartition(".")[2] for name in shared.steps} == {"log_step", "offset"}
    seen = []
    for _ in range(3):
        before = shared
        sent = [rounds.contribution(shared, moved(module, shared, by)) for by in (0.1, 0.3)]
        assert not [name for name in sent[0] if "state_code" in name]  # nobody tells the others to freeze
        shared = rounds.result(shared, sent, [8, 8])
        for name, tensor in shared.steps.items():
            layer, _, own = name.partition(".weight_quant.")
            wanted = before.steps[name] + 0.2
            if own:  # 8 bits: the step of the new anchor's largest weight, to the bit
                wanted = exact_log(shared.anchor[f"{layer}.weight"].abs().amax(1) / 127)
                assert torch.equal(tensor, wanted)
            torch.testing.assert_close(tensor, wanted, msg=name)
        seen.append(states(shared, module))
    assert seen == [{"active"}, {"active"}, {"frozen"}]
    assert rounds.merge(shared, ReplicaWeights.of(module), as_local(shared)).finite()


class Branch(nn.Module):
    """A branch that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.zero, self.after = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        return y + self.after(self.zero(y))


def test_replicas_find_the_step_of_a_waiting_quantizer_together() -> None:
    torch.manual_seed(1)
    module = Branch()
    quantize_module(module, QuantOptions(), stage="full", first=True, last=True)
    module(torch.randn(16, 4))
    activate(module, wait=True)
    options = DilocoOptions(inner_steps=10, outer_steps=3)
    rounds = RoundArithmetic(options, get_codec("fp32"), module, WarmupOptions(freeze_bn_last=0))
    shared, seen = initial(module), list[set[str]]()
    for _ in range(2):
        sent = []
        for _ in range(2):
            as_local(shared).load(module)
            with torch.no_grad():
                module.zero.weight.copy_(torch.eye(4) * 0.01)  # what the inner steps of a replica make
            module(torch.randn(16, 4))
            sent.append(rounds.contribution(shared, ReplicaWeights.of(module)))
        assert [name for name in sent[0] if name.startswith("seen/")] == ["seen/after.input_quant"]
        result = rounds.result(shared, sent, [8, 8])
        assert result.digest == rounds.result(shared, sent, [8, 8]).digest
        cut = {name: tensor for name, tensor in sent[0].items() if not name.startswith("seen/")}
        assert rounds.result(shared, [cut, sent[1]], [8, 8]).refused == {0}
        shared = result
        seen.append(states(shared, module))
    assert seen == [{"active", "waiting"}, {"active"}]
    assert not [
        name for name in rounds.contribution(shared, ReplicaWeights.of(module)) if name.startswith("seen/")
    ]


def test_the_round_before_the_last_freezes_and_forgets_what_was_counted() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    quantize_module(module, QuantOptions(), stage="full", first=True, last=True)
    module(torch.randn(3, 1, 6, 6))
    activate(module)
    options = DilocoOptions(inner_steps=10, outer_steps=4)
    rounds = RoundArithmetic(
        options, get_codec("fp32"), module, WarmupOptions(freeze_bn_last=0.1), stands=True
    )
    assert [rounds.measuring(round) for round in range(5)] == [False, False, False, True, True]
    assert [rounds.inner_steps(round) for round in range(4)] == [10, 10, 20, 8]
    rounds.options = DilocoOptions(inner_steps=10, outer_steps=5)  # a client that was started again
    assert not rounds.measuring(3)
    rounds.options = options
    shared = replace(initial(module), round=2)
    shared = rounds.result(shared, [rounds.contribution(shared, moved(module, shared, 0.1))], [8])
    assert states(shared, module) == {"frozen"}
    assert int(shared.buffers["1.num_batches_tracked"]) == 0
    local = rounds.merge(shared, moved(module, shared, 0.2), as_local(shared))
    assert all(torch.equal(local.weights[name], tensor) for name, tensor in shared.anchor.items())
    base = ReplicaWeights.of(module)
    buffers = {
        **base.buffers,
        "1.running_mean": torch.full((2,), 3.0),
        "1.num_batches_tracked": torch.tensor(8),
    }
    strays = ReplicaWeights({name: t + 1.0 for name, t in base.weights.items()}, base.steps, buffers)
    last = rounds.result(shared, [rounds.contribution(shared, strays)], [8])
    assert (last.round, last.anchor, last.outer, last.steps) == (4, shared.anchor, shared.outer, shared.steps)
    assert last.buffers["1.running_mean"].tolist() == [3.0, 3.0]
