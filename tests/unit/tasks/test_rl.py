"""PPO: its loss against hand computation, rollouts against environments stepped by hand."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Normal

from distqat.errors import MissingExtra, TaskError
from distqat.models import build_stage
from distqat.tasks import Experience, Player, TaskSettings, get_task
from distqat.tasks.gym_environments import Environments, seed_of, shapes_of
from distqat.tasks.rl import PPOOptions, ProximalPolicy, draw, greedy

Outputs = Mapping[str, Tensor]


def task(environment: str = "CartPole-v1", **options: Any) -> ProximalPolicy:
    built = get_task("rl", TaskSettings(dataset_name=environment, options=options))
    assert isinstance(built, ProximalPolicy)
    return built


def finish(player: Player, answer: Callable[[Outputs], Outputs]) -> Experience:
    rollout = player.rollout()
    asked = next(rollout)
    while True:
        try:
            asked = rollout.send(answer(asked))
        except StopIteration as ended:
            experience: Experience = ended.value
            return experience


def test_the_loss_by_hand() -> None:
    """Two actions, three samples: within the clip, over it with a gain, under it with a loss."""
    old = torch.tensor([0.5, 0.4, 0.5]).log()
    now = torch.tensor([[0.55, 0.45], [0.8, 0.2], [0.3, 0.7]])
    outputs = {"x": now.log(), "value": torch.tensor([1.0, 2.0, 3.0])}
    labels = {
        "action": torch.tensor([0, 0, 0]),
        "log_prob": old,
        "advantage": torch.tensor([1.0, 2.0, -3.0]),
        "target": torch.tensor([1.0, 0.0, 3.0]),
    }
    surrogate = (1.1 * 1 + 1.2 * 2 + 0.8 * -3) / 3  # ratios 1.1, 2 -> 1.2, 0.6 -> 0.8
    error = 0.5 * 4 / 3
    entropy = float(Categorical(now).entropy().mean())
    expected = 0.7 * error - surrogate - 0.03 * entropy
    built = task(value_weight=0.7, entropy_weight=0.03)
    assert float(built.loss(outputs, labels)) == pytest.approx(expected, rel=1e-6)
    scores = built.score(outputs, labels)
    assert (scores["clipped"], scores["count"]) == (2, 3)
    assert scores["entropy"] == pytest.approx(3 * entropy)


def test_a_clipped_ratio_gives_no_gradient() -> None:
    logits = torch.tensor([[2.0, 0.0]], requires_grad=True)
    labels = {
        "action": torch.tensor([0]),
        "log_prob": torch.tensor([math.log(0.5)]),
        "advantage": torch.tensor([1.0]),
        "target": torch.zeros(1),
    }
    built = task(entropy_weight=0.0)
    built.loss({"x": logits, "value": torch.zeros(1)}, labels).backward()
    assert logits.grad is not None
    assert not logits.grad.any()
    labels["advantage"] = torch.tensor([-1.0])  # too likely and bad: the gradient stays
    built.loss({"x": logits, "value": torch.zeros(1)}, labels).backward()
    assert logits.grad[0, 0] > 0


@given(st.integers(1, 6), st.integers(2, 4), st.integers(0, 99))
def test_probabilities_are_those_of_torch_distributions(rows: int, actions: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, log_std = (torch.randn(rows, actions, generator=generator) for _ in range(2))
    chosen, log_prob = draw({"x": x}, generator)
    torch.testing.assert_close(log_prob, Categorical(logits=x).log_prob(chosen))
    moved, density = draw({"x": x, "log_std": log_std}, generator)
    torch.testing.assert_close(density, Normal(x, log_std.exp()).log_prob(moved).sum(1), rtol=1e-4, atol=1e-4)
    assert torch.equal(greedy({"x": x}), x.argmax(1))
    assert torch.equal(greedy({"x": x, "log_std": log_std}), x)
    labels = {
        "action": moved,
        "log_prob": density,
        "advantage": torch.ones(rows),
        "target": torch.zeros(rows),
    }
    scores = task().score({"x": x, "log_std": log_std, "value": torch.zeros(rows)}, labels)
    entropy = float(Normal(x, log_std.exp()).entropy().sum())
    assert scores["entropy"] == pytest.approx(entropy, rel=1e-3, abs=1e-3)
    assert scores["divergence"] == pytest.approx(0, abs=1e-4)


def test_microbatches_add_up() -> None:
    player = task(environments=2, horizon=8).player(0, 0)
    batch = finish(player, policy()).batch
    outputs = policy(seed=1)
    whole = task().loss(outputs(batch.inputs), batch.labels)
    parts = [(task().loss(outputs(p.inputs), p.labels), p.size) for p in batch.microbatches(3)]
    torch.testing.assert_close(sum(loss * size / 16 for loss, size in parts), whole)


def policy(seed: int = 0) -> Callable[[Outputs], Outputs]:
    torch.manual_seed(seed)
    stage = build_stage("ppo.full", {"in_features": 4, "num_actions": 2})

    def answer(inputs: Outputs) -> Outputs:
        with torch.no_grad():
            given: Outputs = stage(*inputs.values())
            return given

    return answer


def test_a_rollout_is_what_the_environments_did() -> None:
    """The same seeds stepped by hand with the actions of the rollout: the same observations and rewards."""
    built = task(environments=3, horizon=40, gamma=0.9, gae_lambda=1.0)
    experience = finish(built.player(pipeline=1, start=7), policy())
    batch, answer = experience.batch, policy()
    assert batch.size == 120
    assert experience.epochs == 4
    seed = seed_of(0, 1, 7)
    again = Environments("CartPole-v1", [seed_of(seed, number) for number in range(3)])
    seen = batch.inputs["x"].view(40, 3, 4)
    actions = batch.labels["action"].view(40, 3)
    rewards, ended = torch.zeros(40, 3), torch.zeros(40, 3)
    for step in range(40):
        assert torch.equal(again.observations, seen[step])
        gave = again.step(actions[step])
        rewards[step], ended[step] = gave.rewards_B, gave.ended_B.float()
        assert not gave.cut_off  # nobody balances 500 steps yet
    target, following = torch.zeros(40, 3), answer({"x": again.observations})["value"]
    for step in reversed(range(40)):  # with lambda 1 the target is the discounted return
        following = rewards[step] + 0.9 * following * (1 - ended[step])
        target[step] = following
    torch.testing.assert_close(batch.labels["target"].view(40, 3), target, rtol=1e-4, atol=1e-4)
    told = answer(batch.inputs)
    expected = Categorical(logits=told["x"]).log_prob(batch.labels["action"])
    torch.testing.assert_close(batch.labels["log_prob"], expected)
    gains = (target - told["value"].view(40, 3)).flatten()
    torch.testing.assert_close(
        batch.labels["advantage"], (gains - gains.mean()) / gains.std(unbiased=False), rtol=1e-3, atol=1e-3
    )
    assert len(experience.returns) == int(ended.sum()) > 0


def test_rollouts_depend_on_seed_pipeline_and_start() -> None:
    built = task(environments=2, horizon=5)
    first, same, other, later = (
        finish(built.player(*place), policy()).batch.inputs["x"] for place in ((0, 0), (0, 0), (1, 0), (0, 9))
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, later)


def test_what_comes_after_a_cut_belongs_to_the_rewards() -> None:
    """Pendulum is only ever cut off: the value of where it stood follows, asked about as one more row."""
    limit = "Pendulum-v1"
    played = Environments(limit, [1, 2], limit=3)
    rows: list[int] = []
    player = task(limit, environments=2, horizon=4, gamma=0.5, gae_lambda=0.0).player(0, 0)
    player._played = played  # type: ignore[attr-defined]

    def answer(inputs: Outputs) -> Outputs:
        rows.append(len(inputs["x"]))
        x = inputs["x"][:, :1]
        return {"x": x, "log_std": torch.zeros_like(x), "value": inputs["x"].sum(dim=1)}

    batch = finish(player, answer).batch
    assert rows == [2, 2, 2, 4, 2]  # the last observations of both came with the fourth question
    assert batch.labels["action"].shape == (8, 1)
    gains = batch.labels["target"].view(4, 2)  # with lambda 0: reward + gamma * value of what followed
    again = Environments(limit, [1, 2], limit=3)
    for step in range(4):
        gave = again.step(batch.labels["action"].view(4, 2, 1)[step])
        after = again.observations if not gave.cut_off else torch.stack([gave.cut_off[0], gave.cut_off[1]])
        torch.testing.assert_close(gains[step], gave.rewards_B + 0.5 * after.sum(dim=1), rtol=1e-4, atol=1e-4)


def test_it_is_judged_by_twenty_episodes() -> None:
    built = task()
    assert built.judges
    assert built.plays

    def left(inputs: Outputs) -> Outputs:
        return {"x": torch.tensor([[1.0, 0.0]]).expand(len(inputs["x"]), 2)}

    def balanced(inputs: Outputs) -> Outputs:
        angle = inputs["x"][:, 2] + 0.5 * inputs["x"][:, 3] + 0.05 * inputs["x"][:, 1]
        return {"x": torch.stack([-angle, angle], dim=1)}

    value, loss, count = built.judge((), left)
    assert 8 < value < 11
    assert math.isnan(loss)
    assert count == 20
    assert built.judge((), left)[0] == value
    assert built.judge((), balanced)[0] > 300


def test_environments_of_other_spaces() -> None:
    assert shapes_of("FrozenLake-v1").observation == 16  # one-hot
    assert shapes_of("Pendulum-v1").continuous
    with pytest.raises(TaskError, match="Box, Discrete"):
        shapes_of("Blackjack-v1")
    with pytest.raises(TaskError, match="no environment 'CartPole-v99'"):
        task("CartPole-v99").player(0, 0)


def test_what_does_not_fit_is_told_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, outputs = {"x": torch.zeros(2, 4)}, {"x": torch.zeros(2, 2), "value": torch.zeros(2)}
    task().check(inputs, outputs)
    with pytest.raises(TaskError, match="in_features: 3, num_actions: 1, continuous: true"):
        task("Pendulum-v1").check(inputs, outputs)
    with pytest.raises(TaskError, match="does not fit"):
        task().check(inputs, {"x": outputs["x"]})
    with pytest.raises(TaskError, match="did you mean 'epochs'"):
        task(epoch=3)
    with pytest.raises(TaskError, match="by playing"):
        task().collate([{}])
    with pytest.raises(TaskError, match="end in a ppo"):
        task().loss({"x": torch.zeros(1, 2)}, {})
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtra, match=r"pip install 'distqat\[rl\]'"):
        task().player(0, 0)


def test_options_have_defaults() -> None:
    assert PPOOptions().environments * PPOOptions().horizon == 1024
