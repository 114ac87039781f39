"""The teacher of a stage: seen by states and by nobody else, asked only where something is trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.models import run_stage, run_stages
from distqat.models.auxiliary_loss import take_auxiliary_loss
from distqat.models.teacher import (
    Teacher,
    add_teacher,
    float_copy,
    is_teachers,
    learn_from_stage,
    split,
    teacher_from,
    teacher_of,
)

X = {"x": torch.arange(6.0).view(2, 3)}


class Normed(nn.Module):
    """Two kinds of state, and an inner module with a dot in its names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        self.auxiliary_loss = y.mean() * 0.0 if self.training else y.mean()
        return y


def taught(*, ready: bool = True, first: bool = True, hidden: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    stage = Normed()
    add_teacher(stage, Teacher(float_copy(stage), first=first, hidden=hidden))
    if ready:
        learn_from_stage(stage)
    return stage


def test_only_buffers_tell_of_it() -> None:
    stage, plain = taught(), Normed()
    assert stage.state_dict().keys() == plain.state_dict().keys()
    assert dict(stage.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    assert sum(isinstance(child, nn.BatchNorm1d) for child in stage.modules()) == 1
    names = {name for name, _ in stage.named_buffers() if is_teachers(name)}
    assert names == {"teacher.ready", *(f"teacher.stage/{n.replace('.', '/')}" for n in plain.state_dict())}


def test_it_gives_beside_the_stage_what_the_stage_was_in_eval_mode() -> None:
    stage = taught()
    before = copy.deepcopy(stage)
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.zero_()
    outputs = run_stage(stage, X)
    assert list(outputs) == ["x", "teacher.x"]
    assert torch.equal(outputs["teacher.x"], before.eval()(X["x"]))
    assert not outputs["teacher.x"].requires_grad
    assert take_auxiliary_loss(stage) == 0.0, "the teacher's own loss is none of the stage's"


@pytest.mark.parametrize("why", ["evaluated", "without a graph", "not ready"])
def test_nothing_is_given_where_nothing_is_learned(why: str) -> None:
    stage = taught(ready=why != "not ready")
    stage.train(why != "evaluated")
    with torch.set_grad_enabled(why != "without a graph"):
        assert list(run_stage(stage, X)) == ["x"]


def test_a_stage_takes_its_own_and_the_teacher_what_the_teacher_before_gave() -> None:
    front, back = taught(), taught(first=False)
    alone = copy.deepcopy([front, back])
    outputs = run_stages([front, back], X)
    expected = run_stages([stage.eval() for stage in alone], X)["x"]
    assert torch.equal(outputs["teacher.x"], expected)
    assert list(run_stage(back, X)) == ["x"], "the teacher before it is not ready"
    assert split(outputs) == ({"x": outputs["x"]}, {"x": outputs["teacher.x"]})


def test_the_hidden_state_is_a_loss_of_the_stage_beside_its_own() -> None:
    stage = taught(hidden=0.5)
    outputs = run_stage(stage, X)
    loss = take_auxiliary_loss(stage)
    assert loss is not None
    assert loss.requires_grad
    apart = (outputs["x"] - outputs["teacher.x"]).square().mean()
    assert torch.allclose(loss, 0.5 * apart)


def test_a_state_is_given_its_teacher_at_a_round() -> None:
    stage = taught(ready=False)
    weights = {name: torch.full_like(p, 2.0) for name, p in stage.named_parameters()}
    buffers = dict(stage.named_buffers())
    found = teacher_from(weights, buffers)
    assert int(found["teacher.ready"]) == 1
    assert torch.equal(found["teacher.stage/inner/0/weight"], torch.full((3, 3), 2.0))
    assert torch.equal(found["teacher.stage/inner/1/running_var"], buffers["inner.1.running_var"])
    assert found.keys() == buffers.keys()
    again = teacher_from({name: torch.zeros_like(t) for name, t in weights.items()}, found)
    assert all(torch.equal(again[name], tensor) for name, tensor in found.items()), "once"
    assert teacher_from(weights, {}) == {}


def test_buffers_that_are_loaded_or_moved_are_the_weights() -> None:
    stage = taught().double()
    state = {name: torch.ones_like(t) for name, t in stage.named_buffers() if is_teachers(name)}
    buffers = dict(stage.named_buffers())
    for name, tensor in state.items():
        buffers[name].copy_(tensor)
    outputs = run_stage(stage, {"x": X["x"].double()})
    y = (X["x"].double().sum(1, keepdim=True) + 1).expand(2, 3)
    assert torch.allclose(outputs["teacher.x"], (y - 1) / (1 + 1e-5) ** 0.5 + 1)


def test_the_name_is_taken() -> None:
    stage = taught()
    with pytest.raises(ModelError, match="'teacher'"):
        add_teacher(stage, Teacher(Normed(), first=True))
    assert teacher_of(Normed()) is None
