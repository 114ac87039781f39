"""Quantizers stand where tensors are produced: additions, pooling and the stage boundary carry integers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from distqat.quant import (
    ActivationQuantizer,
    CarriedInput,
    QuantOptions,
    SharedInput,
    StageBoundary,
    activate,
    edges,
    joints,
    quantize_module,
    record,
)

X = torch.randn(4, 2, 6, 6)


class Block(nn.Module):
    """A residual block that adds in place, as transformers' ResNet does."""

    def __init__(self, shortcut: bool) -> None:
        super().__init__()
        self.a, self.norm_a, self.relu_a = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.b, self.norm_b, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.shortcut = nn.Conv2d(4, 4, 1) if shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_b(self.b(self.relu_a(self.norm_a(self.a(x)))))
        y += self.shortcut(x)
        out: Tensor = self.relu(y)
        return out


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.one, self.two = Block(shortcut=True), Block(shortcut=False)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.two(self.one(self.pool(self.relu(self.stem(x))))).mean(dim=(2, 3)))
        return y


class Heads(nn.Module):
    """As a transformer: three layers take one normalized tensor, and the residual stream stays in float."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.out(torch.softmax(self.q(y) * self.k(y), -1) * self.v(y))


def placed(
    module: nn.Module, sample: Tensor, boundary: StageBoundary | None = None, **section: Any
) -> nn.Module:
    quantize_module(
        module,
        QuantOptions.model_validate(section),
        stage="full",
        first=True,
        last=True,
        flow=record(module, [sample]),
        boundary=boundary,
    )
    return module


def inputs(module: nn.Module) -> dict[str, str]:
    kinds = {ActivationQuantizer: "own", CarriedInput: "carried", SharedInput: "shared"}
    return {
        name.removesuffix(".input_quant"): kinds[type(child)]
        for name, child in module.named_modules()
        if name.endswith("input_quant")
    }


def test_residual_additions_and_pooling_carry_integers() -> None:
    model = placed(Residual(), X)
    assert [name for name, _, _ in joints(model)] == [
        "relu", "one.norm_b", "one.relu", "one.shortcut", "two.norm_b", "two.relu",
    ]  # fmt: skip
    assert inputs(model) == {
        "stem": "own", "one.a": "carried", "one.b": "own", "one.shortcut": "carried", "two.a": "carried",
        "two.b": "own", "fc": "own",
    }  # fmt: skip


def test_a_layer_of_fewer_bits_quantizes_the_codes_of_a_joint_again() -> None:
    model = placed(Residual(), X, activation={"bits": 4}, weight={"bits": 4})
    assert {quantizer.bits for _, _, quantizer in joints(model)} == {8}
    kinds = inputs(model)
    assert (kinds["one.a"], kinds["one.shortcut"], kinds["two.a"]) == ("own", "shared", "own")
    assert model.get_submodule("two.a.input_quant").bits == 4


def test_every_sum_adds_codes() -> None:
    """What reaches an addition, and what pooling takes, lies on the grid of its quantizer to the bit."""
    model = placed(Residual(), X)
    model(X)
    activate(model)
    for name, child, quantizer in joints(model):
        seen: list[Tensor] = []
        handle = child.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.clone()))
        model(X)
        handle.remove()
        codes = seen[0].detach() / quantizer.step
        assert torch.equal(codes.round() * quantizer.step, seen[0].detach()), name
        low, high = quantizer.code_range
        assert float(codes.min()) >= low - 0.01
        assert float(codes.max()) <= high + 0.01


def test_gradients_flow_where_a_joint_is_added_to_in_place() -> None:
    model = placed(Residual(), X)
    model(X)
    activate(model)
    model(X).square().mean().backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad
    )


def test_layers_that_take_one_tensor_share_its_quantizer() -> None:
    model, x = placed(Heads(), torch.randn(2, 3, 4), first_last_bits=4, activation={"bits": 4}), X[..., :4]
    assert inputs(model) == {"q": "own", "k": "shared", "v": "shared", "out": "own"}
    assert not list(joints(model))
    model(x)
    activate(model)
    x = x.clone().requires_grad_()
    model(x).square().mean().backward()
    shared = model.get_submodule("k.input_quant")
    assert isinstance(shared, SharedInput)
    assert shared.quantizer is model.get_submodule("q.input_quant")
    names = [name for name, _ in model.named_parameters() if "input_quant" in name]
    assert names == ["q.input_quant.log_step", "out.input_quant.log_step"]
    assert names == [n for n in model.state_dict() if n.endswith("input_quant.log_step")]


def test_a_layer_that_runs_twice_has_its_own_quantizer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(self.a(x))
            return y

    assert inputs(placed(Twice(), torch.randn(2, 4))) == {"a": "own"}


def test_the_boundary_belongs_to_the_stage_that_produces() -> None:
    def parts() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(3)
        whole = Residual()
        return nn.Sequential(whole.stem, whole.relu, whole.one), nn.Sequential(whole.two)

    front, back = parts()
    hidden = front(X)
    found = {}
    for name, module, sample in (("front", front, X), ("back", back, hidden)):
        found[name] = edges(
            module, QuantOptions(), record(module, [sample]), stage=name, first=False, last=False
        )
    assert found == {"front": (True, True), "back": (True, True)}
    placed(front, X, StageBoundary(sends=True))
    placed(back, hidden, StageBoundary(takes=True))
    assert "2.relu" in [name for name, _, _ in joints(front)]
    assert inputs(back)["0.a"] == "carried"
    source = back.get_submodule("0.a.input_quant")
    assert isinstance(source, CarriedInput)
    assert source.source is None


def test_a_float_stream_is_not_quantized_at_the_boundary() -> None:
    model = Heads()
    flow = record(model, [torch.randn(2, 3, 4)])
    assert edges(model, QuantOptions(), flow, stage="body", first=False, last=False) == (False, False)


def test_recording_changes_nothing() -> None:
    model = Residual().train()
    model.one.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    record(model, [X])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (model.training, model.one.training) == (True, False)
    assert not any(child._forward_hooks for child in model.modules())


def test_a_copy_shares_within_itself() -> None:
    model = copy.deepcopy(placed(Heads(), torch.randn(2, 3, 4)))
    shared = model.get_submodule("k.input_quant")
    assert isinstance(shared, SharedInput)
    assert shared.quantizer is model.get_submodule("q.input_quant")


def test_what_hands_its_input_through_gets_no_joint() -> None:
    """A joint there would quantize one path; who took the tensor before it would not have its codes."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.shortcut = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.relu(self.first(x))
            return self.second(x) + self.shortcut(x)

    model = placed(Block(), torch.randn(2, 4))
    assert "shortcut" not in [name for name, _, _ in joints(model)]
    assert inputs(model)["second"] == "own"


def test_a_batch_of_zeros_observes_nothing_at_joints() -> None:
    model = placed(Residual(), X)
    model(X)
    before = {name: value.clone() for name, value in model.named_buffers() if "_quant." in name}
    model(torch.zeros_like(X))
    assert all(torch.equal(before[name], dict(model.named_buffers())[name]) for name in before)


def test_folding_a_norm_into_the_step_keeps_codes() -> None:
    """gamma / sqrt(var + eps) goes into the channel's step: codes stay, with the sign of gamma."""
    model = placed(Residual(), X)
    model(X)
    activate(model)
    conv: Any = model.get_submodule("one.a")
    codes = conv.weight_quant(conv.weight) / conv.weight_quant.step.view(-1, 1, 1, 1)
    factor = torch.tensor([0.3, -2.0, 5.0, 0.01])
    folded = conv.weight_quant(conv.weight) * factor.view(-1, 1, 1, 1)
    step = conv.weight_quant.step * factor.abs()
    again = folded / step.view(-1, 1, 1, 1) * factor.sign().view(-1, 1, 1, 1)
    torch.testing.assert_close(codes.round(), again.round(), rtol=0, atol=0)
    torch.testing.assert_close(again, again.round(), rtol=0, atol=1e-3)
