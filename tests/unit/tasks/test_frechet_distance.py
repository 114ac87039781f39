"""The Fréchet distance against its closed forms, and features that are the same every time."""

from __future__ import annotations

import pytest
import torch

from distqat.tasks.frechet_distance import Features, features_of, frechet_distance


def normal(count: int, mean: list[float], scale: list[float], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, len(mean), generator=generator) * torch.tensor(scale) + torch.tensor(mean)


def test_independent_normal_distributions() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2 for diagonal covariances (Dowson and Landau, 1982)."""
    one = normal(200_000, [0.0, 1.0, 2.0], [1.0, 2.0, 0.5], seed=1)
    other = normal(200_000, [0.0, 0.0, 4.0], [1.0, 0.5, 1.5], seed=2)
    assert frechet_distance(one, other) == pytest.approx(1 + 4 + 1.5**2 + 1, rel=0.02)


def test_it_is_a_distance() -> None:
    one, other = (
        normal(100, [0.0] * 6, [s] * 6, seed=3) @ torch.linspace(-1, 1, 36).view(6, 6) for s in (1, 2)
    )
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-4)
    shift = torch.full((6,), 0.5)
    assert frechet_distance(one, one + shift) == pytest.approx(6 * 0.25, rel=1e-3)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(4)))
    turned = frechet_distance(one @ rotation, other @ rotation)
    assert turned == pytest.approx(frechet_distance(one, other), rel=1e-3)


def test_features_that_never_vary_are_no_trouble() -> None:
    flat = torch.zeros(10, 4)
    assert frechet_distance(flat, flat + 1) == pytest.approx(4.0)


def test_the_same_pictures_give_the_same_network_and_random_numbers_stay() -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(40, 1, 8, 8, generator=generator) * 2 - 1
    labels = (images.mean(dim=(1, 2, 3)) > 0).long()
    before = torch.random.get_rng_state()
    with torch.no_grad():  # as in an evaluation
        network = features_of(images, labels)
    assert torch.equal(before, torch.random.get_rng_state())
    assert features_of(images.clone(), labels) is network
    untrained = Features(1, 8, 2)
    assert (network.logits(images).argmax(dim=1) == labels).float().mean() > 0.9
    assert (untrained.logits(images).argmax(dim=1) == labels).float().mean() < 0.9
