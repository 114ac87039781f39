"""What every model of the registry must keep to: a newcomer is tested on arrival.

Each stage alone, then the stages of each pipeline against the unsplit model: equal to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from tests.contract.small_models import MODELS, Cut, SmallStage, full_stage, stage_of, stages_of
from torch import Tensor, nn

from distqat.models import MODEL_TYPES, full_state_dict, named_tensors, run_stages

BATCH = 4
ENTRIES = sorted(MODEL_TYPES)
PIPELINES = [(model, cut) for model in MODELS for cut in MODELS[model].cuts if f"{model}.full" in ENTRIES]

Tensors = Mapping[str, Tensor]


def built(stage: SmallStage, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return stage.build()


def inputs_of(stage: SmallStage) -> dict[str, Tensor]:
    """Random values of the shapes that the stage takes; floats ask for a gradient."""
    generator = torch.Generator().manual_seed(7)

    def filled(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).requires_grad_()
        if stage.integers is None:
            return tensor
        return torch.randint(stage.integers, tensor.shape, generator=generator, dtype=tensor.dtype)

    return {name: filled(tensor) for name, tensor in stage.sample(BATCH).items()}


def run(modules: Sequence[nn.Module], inputs: Tensors, *, training: bool) -> dict[str, Tensor]:
    """Through all stages, by position, with dropout from one seed."""
    torch.manual_seed(3)
    return run_stages([module.train(training) for module in modules], inputs)


def loss(outputs: Tensors) -> Tensor:
    """Of all that has a gradient; weighted, so that entries do not cancel."""
    terms = [t.flatten() for t in outputs.values() if t.requires_grad]
    return sum((torch.linspace(0.5, 1.5, len(t)) * t).mean() + t.square().mean() for t in terms)  # type: ignore[return-value]


def shapes(tensors: Tensors) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def assert_same(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert different == []


def gradients(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None or not parameter.requires_grad, f"no gradient for {name}"
            if parameter.grad is not None:
                found[name] = parameter.grad
    return found


@pytest.mark.parametrize("entry", ENTRIES)
def test_forward_and_backward(entry: str) -> None:
    stage = stage_of(entry)
    module, inputs = built(stage), inputs_of(stage)
    for training in (False, True):
        outputs = run([module], inputs, training=training)
        assert outputs, "a stage returns something"
        for name, tensor in outputs.items():
            assert len(tensor) == BATCH, f"{name}: dim 0 counts the samples"
            assert tensor.isfinite().all(), name
    loss(outputs).backward()
    gradients([module])
    assert any(t.requires_grad for t in outputs.values())
    for name, tensor in inputs.items():
        assert tensor.grad is not None or not tensor.is_floating_point(), f"no gradient for input {name}"


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_meta_device_gives_the_same_shapes(entry: str) -> None:
    stage = stage_of(entry)
    expected = shapes(run([built(stage)], inputs_of(stage), training=False))
    with torch.device("meta"), torch.no_grad():
        module, inputs = stage.build().eval(), stage.sample(BATCH)
        assert all(tensor.is_meta for tensor in module.state_dict().values())
        try:
            outputs = named_tensors(module(*(tensor.to("meta") for tensor in inputs.values())))
        except NotImplementedError:
            pytest.skip("an operation without a meta form")
    assert shapes(outputs) == expected


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_seed_settles_the_initialisation_and_a_state_dict_is_the_whole_state(entry: str) -> None:
    stage = stage_of(entry)
    one, again, other = (built(stage, seed) for seed in (5, 5, 6))
    assert_same(one.state_dict(), again.state_dict())
    assert any(not torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    inputs = inputs_of(stage)
    run([one], inputs, training=True)  # moves the statistics of normalisation
    other.load_state_dict(one.state_dict())
    for training in (False, True):
        assert_same(*(run([module], inputs, training=training) for module in (one, other)))
    assert_same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize(("model", "cut"), PIPELINES, ids=lambda value: getattr(value, "stages", value))
class TestComposed:
    def test_stages_take_what_the_ones_before_give(self, model: str, cut: Cut) -> None:
        passed: Tensors | None = None
        for stage in stages_of(model, cut):
            inputs = inputs_of(stage)
            if passed is not None:
                assert shapes(passed) == shapes(inputs)
            passed = run([built(stage)], inputs, training=False)

    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_they_are_the_unsplit_model(self, model: str, cut: Cut, training: bool) -> None:
        """Outputs, gradients of parameters and inputs, and statistics, to the bit."""
        staged = [built(stage, seed) for seed, stage in enumerate(stages_of(model, cut))]
        whole = built(full_stage(model))
        whole.load_state_dict(full_state_dict([stage.state_dict() for stage in staged]))
        ours, theirs = (inputs_of(full_stage(model)) for _ in range(2))
        composed, expected = run(staged, ours, training=training), run([whole], theirs, training=training)
        assert_same(composed, expected)
        loss(composed).backward()
        loss(expected).backward()
        assert_same(gradients(staged), gradients([whole]))
        for name, tensor in ours.items():
            assert tensor.grad is None or torch.equal(tensor.grad, theirs[name].grad)  # type: ignore[arg-type]
        assert_same(full_state_dict([stage.state_dict() for stage in staged]), whole.state_dict())

    def test_parameters_add_up(self, model: str, cut: Cut) -> None:
        with torch.device("meta"):
            staged = [dict(stage.build().named_parameters()) for stage in stages_of(model, cut)]
            whole = dict(full_stage(model).build().named_parameters())
        assert all(staged), "no stage is without parameters"
        names = [name for stage in staged for name in stage]
        assert sorted(names) == sorted(whole)
        assert sum(p.numel() for stage in staged for p in stage.values()) == sum(
            p.numel() for p in whole.values()
        )


def test_a_model_without_a_line_in_the_table_is_told_what_to_do() -> None:
    with pytest.raises(AssertionError, match=r"'new.head' has no small size.*add 'new' to MODELS"):
        stage_of("new.head")
    with pytest.raises(AssertionError, match=r"'mlp.neck' occurs in no pipeline: add a Cut with 'neck'"):
        stage_of("mlp.neck")
