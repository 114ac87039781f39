"""Reinforcement learning with proximal policy optimisation. Schulman et al., arXiv:1707.06347.

Instead of a data set, a `PolicyPlayer` lets the model act in environments and makes training samples of what
it saw. It asks for the answers of the model by yielding inputs, so it knows nothing of servers.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from distqat.errors import TaskError
from distqat.options import Options
from distqat.tasks.advantage_estimation import advantages
from distqat.tasks.base import Batch, Experience, Forward, Sample, Task
from distqat.tasks.gym_environments import Environments, Shapes, seed_of, shapes_of

JUDGED_EPISODES = 20
JUDGED_STEPS = 20_000  # of an environment without a time limit; the rewards so far count then
Play = Generator[Mapping[str, Tensor], Mapping[str, Tensor], Experience]


class PPOOptions(Options):
    """`data.options` of reinforcement learning."""

    environments: int = Field(default=8, ge=1, le=1024)
    """Copies that are played at once; one call of the model serves all."""
    horizon: int = Field(default=128, ge=1)
    """Steps of each copy in a rollout: a rollout has environments * horizon samples."""
    epochs: int = Field(default=4, ge=1)
    """How often each sample of a rollout is trained on."""
    gamma: float = Field(default=0.99, ge=0, le=1)
    """Discount of what comes a step later."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Of generalised advantage estimation."""
    clip: float = Field(default=0.2, gt=0)
    """How far the ratio of probabilities may leave 1 before it gives no gradient."""
    value_weight: float = Field(default=0.5, ge=0)
    """Of half the squared error of the value, in the loss."""
    entropy_weight: float = Field(default=0.01, ge=0)
    """Of the entropy of the policy, in the loss."""


class ProximalPolicy(Task):
    """Observations `x` [B, O]; labels `action` int64 [B] or [B, A], `log_prob`, `advantage`, `target` [B].

    The model gives `x` (logits [B, A], or means of continuous actions with `log_std` [B, A]) and `value` [B].
    """

    name = "rl"
    metric = "return"

    def __init__(self, environment: str, options: PPOOptions, *, seed: int = 0) -> None:
        self.environment = environment
        self.options = options
        self.seed = seed

    def player(self, pipeline: int, start: int) -> PolicyPlayer:
        """Who plays for a pipeline, from its batch number `start` on. Raises MissingExtra, TaskError."""
        return PolicyPlayer(self.environment, self.options, seed_of(self.seed, pipeline, start))

    def check(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """TaskError unless the environment fits a model of these inputs and outputs; MissingExtra."""
        shapes = shapes_of(self.environment)
        wanted = {"in_features": shapes.observation, "num_actions": shapes.actions}
        given = {"in_features": inputs["x"].shape[-1], "num_actions": outputs["x"].shape[-1]}
        if wanted != given or shapes.continuous != ("log_std" in outputs) or "value" not in outputs:
            keys = ", ".join(f"{key}: {value}" for key, value in wanted.items())
            raise TaskError(
                f"environment {self.environment!r} does not fit the model: set {keys}, "
                f"continuous: {str(shapes.continuous).lower()} in every entry of a ppo pipeline"
            )

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """TaskError: batches come from rollouts."""
        raise TaskError("task rl has no data set; a trainer makes its batches by playing")

    def loss(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """Eq. 9 with its sign turned: clipped surrogate, value error and entropy, means over the samples."""
        ratio_B, entropy_B, _ = _compare(outputs, labels)
        options, gain_B = self.options, labels["advantage"].float()
        clipped_B = ratio_B.clamp(1 - options.clip, 1 + options.clip)
        surrogate = torch.minimum(ratio_B * gain_B, clipped_B * gain_B).mean()
        error = 0.5 * (outputs["value"].float() - labels["target"].float()).square().mean()
        return options.value_weight * error - surrogate - options.entropy_weight * entropy_B.mean()

    def score(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
        """Sums: entropy, how far the policy went from the one that played (nats), ratios out of the clip."""
        ratio_B, entropy_B, log_ratio_B = _compare(outputs, labels)
        return {
            "entropy": float(entropy_B.sum()),
            "divergence": float((ratio_B - 1 - log_ratio_B).sum()),  # Schulman: joschu.net/blog/kl-approx
            "clipped": float(((ratio_B - 1).abs() > self.options.clip).sum()),
            "count": float(len(ratio_B)),
        }

    def summarize(self, totals: Mapping[str, float]) -> float:
        """TaskError: a return is not a sum over samples."""
        raise TaskError("task rl is judged by playing, not from sums over samples")

    def judge(self, heldout: Iterable[Sample], forward: Forward) -> tuple[float, float, int]:
        """Mean return of 20 episodes, each copy's first, with the likeliest actions; the loss is NaN."""
        seeds = [seed_of("judged", number) for number in range(JUDGED_EPISODES)]
        played = Environments(self.environment, seeds)
        first: dict[int, float] = {}
        try:
            for _ in range(JUDGED_STEPS):
                step = played.step(greedy(forward({"x": played.observations})))
                first = {**step.returns, **first}
                if len(first) == len(seeds):
                    break
            returns = [first.get(number, played.so_far(number)) for number in range(len(seeds))]
        finally:
            played.close()
        return sum(returns) / len(returns), math.nan, len(returns)


class PolicyPlayer:
    """Plays environments with the model and makes samples of it. Episodes go on from rollout to rollout.

    Seeded by the run's seed, the pipeline and where the trainer stands. A trainer that starts again begins
    new episodes: neither environments nor the samples of a rollout are part of a checkpoint.
    """

    def __init__(self, environment: str, options: PPOOptions, seed: int) -> None:
        self._options = options
        self._played = Environments(environment, [seed_of(seed, n) for n in range(options.environments)])
        self._random = torch.Generator().manual_seed(seed)

    @property
    def shapes(self) -> Shapes:
        """What the environment shows and takes."""
        return self._played.shapes

    def rollout(self) -> Play:
        """Yields what the model is asked, is sent what it answers; returns the samples.

        Where an episode was cut off its last observation is asked about with the next ones, as rows behind
        them: the value of where it stood belongs to its rewards.
        """
        options, played = self._options, self._played
        copies, returns = options.environments, list[float]()
        told: dict[str, list[Tensor]] = {"x": [], "value": [], "action": [], "log_prob": []}
        rewards, ended, cut_off = list[Tensor](), list[Tensor](), dict[int, Tensor]()
        for _ in range(options.horizon):
            seen_BO = played.observations
            outputs = yield {"x": torch.cat([seen_BO, *(row[None] for row in cut_off.values())])}
            self._credit(rewards, cut_off, outputs)
            answer = {name: tensor[:copies].float() for name, tensor in outputs.items()}
            action_B, log_prob_B = draw(answer, self._random)
            step = played.step(action_B)
            for name, value in (("x", seen_BO), ("value", answer["value"])):
                told[name].append(value)
            told["action"].append(action_B)
            told["log_prob"].append(log_prob_B)
            rewards.append(step.rewards_B)
            ended.append(step.ended_B)
            cut_off = step.cut_off
            returns += step.returns.values()
        outputs = yield {"x": torch.cat([played.observations, *(row[None] for row in cut_off.values())])}
        self._credit(rewards, cut_off, outputs)
        values_TB = torch.stack(told.pop("value"))
        gains_TB = advantages(
            torch.stack(rewards), values_TB, torch.stack(ended), outputs["value"][:copies].float(),
            gamma=options.gamma, decay=options.gae_lambda,
        )  # fmt: skip
        flat = {name: torch.cat(tensors) for name, tensors in told.items()}
        gains = gains_TB.flatten()
        normal = (gains - gains.mean()) / (gains.std(unbiased=False) + 1e-8)
        labels = {"action": flat["action"], "log_prob": flat["log_prob"]}
        labels |= {"advantage": normal, "target": gains + values_TB.flatten()}
        batch = Batch({"x": flat["x"]}, labels, len(gains))
        return Experience(batch, options.epochs, tuple(returns))

    def _credit(
        self, rewards: list[Tensor], cut_off: Mapping[int, Tensor], outputs: Mapping[str, Tensor]
    ) -> None:
        """Add what would have come after the cut to the last rewards."""
        for row, number in enumerate(cut_off, start=self._options.environments):
            rewards[-1][number] += self._options.gamma * outputs["value"][row].float()


def draw(outputs: Mapping[str, Tensor], random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Actions drawn from the policy, and the logarithms of their probabilities (densities)."""
    if "log_std" in outputs:
        noise_BA = torch.randn(outputs["x"].shape, generator=random)
        action = outputs["x"] + noise_BA * outputs["log_std"].exp()
    else:
        action = torch.multinomial(outputs["x"].softmax(dim=1), 1, generator=random)[:, 0]
    return action, _log_prob(outputs, action)


def greedy(outputs: Mapping[str, Tensor]) -> Tensor:
    """The likeliest actions."""
    return outputs["x"].float().cpu() if "log_std" in outputs else outputs["x"].argmax(dim=1).cpu()


def _compare(outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Ratio of the actions' probabilities, now to when they were taken; entropy; the ratio's logarithm."""
    missing = {"x", "value"} - outputs.keys()
    if missing or labels.keys() != {"action", "log_prob", "advantage", "target"}:
        raise TaskError(
            f"rl needs outputs x and value; the last stage gave {sorted(outputs)}; does it end in a ppo?"
        )
    log_ratio_B = _log_prob(outputs, labels["action"]) - labels["log_prob"].float()
    return log_ratio_B.exp(), _entropy(outputs), log_ratio_B


def _log_prob(outputs: Mapping[str, Tensor], action: Tensor) -> Tensor:
    x_BA = outputs["x"].float()
    if "log_std" in outputs:
        log_std_BA = outputs["log_std"].float()
        scaled_BA = (action - x_BA) / log_std_BA.exp()
        return (-0.5 * scaled_BA.square() - log_std_BA - 0.5 * math.log(2 * math.pi)).sum(dim=1)
    return x_BA.log_softmax(dim=1).gather(1, action[:, None])[:, 0]


def _entropy(outputs: Mapping[str, Tensor]) -> Tensor:
    if "log_std" in outputs:
        return (outputs["log_std"].float() + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=1)
    log_BA = outputs["x"].float().log_softmax(dim=1)
    return -(log_BA.exp() * log_BA).sum(dim=1)
