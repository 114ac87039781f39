"""Environments of gymnasium as tensors: several copies of one, stepped together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distqat.errors import TaskError
from distqat.extras import require


@dataclass(frozen=True)
class Shapes:
    """What an environment shows and takes."""

    observation: int
    """Numbers of an observation, flattened."""
    actions: int
    """Discrete actions, or numbers of a continuous one."""
    continuous: bool


@dataclass(frozen=True)
class Step:
    """What one step of all copies gave."""

    rewards_B: Tensor
    ended_B: Tensor
    """Whether the episode is over, one way or the other."""
    cut_off: dict[int, Tensor]
    """Copies whose episode was only cut off (a time limit), and the observation [O] where it stood."""
    returns: dict[int, float]
    """Copies whose episode is over, and its sum of rewards."""


class Environments:
    """Copies of one environment, each with a seed of its own; one whose episode is over begins anew.

    Raises MissingExtra, and TaskError for a name that gymnasium does not know or spaces of another kind than
    numbers and choices.
    """

    def __init__(self, name: str, seeds: Sequence[int], *, limit: int | None = None) -> None:
        """`limit`: steps after which an episode is cut off; None: as the environment has it."""
        self._copies = [_make(name, limit) for _ in seeds]
        self.shapes = _shapes(self._copies[0], name)
        starts = zip(self._copies, seeds, strict=True)
        self._now = [self._flat(copy.reset(seed=seed)[0]) for copy, seed in starts]
        self._returns = [0.0] * len(seeds)

    @property
    def observations(self) -> Tensor:
        """[B, O]"""
        return torch.stack(self._now)

    def step(self, actions: Tensor) -> Step:
        """One step of every copy; actions int64 [B] or float [B, A], which are brought into their bounds."""
        rewards, ended, cut_off, returns = (
            list[float](),
            list[bool](),
            dict[int, Tensor](),
            dict[int, float](),
        )
        for number, (copy, action) in enumerate(zip(self._copies, actions, strict=True)):
            seen, reward, over, cut, _ = copy.step(self._action(copy, action))
            self._now[number] = self._flat(seen)
            self._returns[number] += float(reward)
            rewards.append(float(reward))
            ended.append(bool(over or cut))
            if ended[-1]:
                if not over:
                    cut_off[number] = self._now[number]
                returns[number], self._returns[number] = self._returns[number], 0.0
                self._now[number] = self._flat(copy.reset()[0])
        return Step(torch.tensor(rewards), torch.tensor(ended), cut_off, returns)

    def so_far(self, number: int) -> float:
        """Sum of rewards of the episode that a copy is in."""
        return self._returns[number]

    def close(self) -> None:
        """Close all copies of the environment."""
        for copy in self._copies:
            copy.close()

    def _flat(self, seen: Any) -> Tensor:
        space = self._copies[0].observation_space
        if hasattr(space, "n"):
            return torch.nn.functional.one_hot(torch.tensor(int(seen - space.start)), int(space.n)).float()
        return torch.from_numpy(np.array(seen, dtype=np.float32).reshape(-1))

    def _action(self, copy: Any, action: Tensor) -> Any:
        space = copy.action_space
        if not self.shapes.continuous:
            return int(action) + int(space.start)
        return np.clip(action.numpy().reshape(space.shape), space.low, space.high).astype(space.dtype)


def shapes_of(name: str) -> Shapes:
    """What an environment shows and takes. Raises as Environments does."""
    environment = _make(name, None)
    try:
        return _shapes(environment, name)
    finally:
        environment.close()


def seed_of(*words: object) -> int:
    """A seed for whatever the words name, 31 bits, the same on every machine."""
    digest = hashlib.sha256("|".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _make(name: str, limit: int | None) -> Any:
    gymnasium = require("gymnasium", extra="rl", why="task rl")
    try:
        return gymnasium.make(name, **({} if limit is None else {"max_episode_steps": limit}))
    except gymnasium.error.Error as error:
        told = " ".join(str(error).split())
        raise TaskError(
            f"gymnasium has no environment {name!r}: {told}; set data.dataset_name: CartPole-v1 or another"
        ) from error


def _shapes(environment: Any, name: str) -> Shapes:
    seen, taken = environment.observation_space, environment.action_space
    observation = _numbers(seen) if not hasattr(seen, "n") else int(seen.n)
    actions = _numbers(taken) if not hasattr(taken, "n") else int(taken.n)
    if observation is None or actions is None:
        raise TaskError(
            f"environment {name!r} shows {seen} and takes {taken}; task rl knows numbers and choices "
            "(Box, Discrete); register an environment that flattens them"
        )
    return Shapes(observation, actions, continuous=not hasattr(taken, "n"))


def _numbers(space: Any) -> int | None:
    """Numbers of a box; None for another kind of space."""
    if not all(hasattr(space, name) for name in ("low", "high", "shape")):
        return None
    return int(np.prod(space.shape))
