"""What a round does with quantizers: means of logarithms beside the outer momentum, frozen near the end."""

from __future__ import annotations

import torch
from torch import nn

from distqat.codec import get_codec
from distqat.diloco.options import DilocoOptions
from distqat.distributed.serving.shared import Local, Rounds, Shared, as_local, initial
from distqat.quant import QuantOptions, activate, quantize_module, quantizers, step_parameter_names
from distqat.quant.options import WarmupOptions


def stage() -> nn.Sequential:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2))
    options = QuantOptions.model_validate({"activation": {"method": "lsq+"}})
    quantize_module(module, options, stage="full", first=True, last=True)
    module(torch.randn(16, 4))
    activate(module)
    return module


def states(shared: Shared, module: nn.Module) -> set[str]:
    as_local(shared).load(module)
    return {quantizer.state for _, quantizer in quantizers(module)}


def moved(module: nn.Module, shared: Shared, by: float) -> Local:
    base = Local.of(module)
    steps = {name: tensor + by for name, tensor in shared.steps.items()}
    return Local({name: t - 0.01 for name, t in base.weights.items()}, steps, base.buffers)


def test_steps_and_offsets_are_means_outside_the_momentum_and_freeze_by_the_round() -> None:
    module = stage()
    options = DilocoOptions(inner_steps=10, outer_steps=3)
    rounds = Rounds(options, get_codec("fp32"), module, WarmupOptions(freeze_bn_last=0.4))
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
            torch.testing.assert_close(tensor, before.steps[name] + 0.2, msg=name)
        seen.append(states(shared, module))
    assert seen == [{"active"}, {"active"}, {"frozen"}]
    assert rounds.merge(shared, Local.of(module), as_local(shared)).finite()
