"""How far pictures are from real ones: the Fréchet distance of features (arXiv:1706.08500, section 4).

The paper takes features of a network that was trained on ImageNet. Here they come from a small classifier
that is trained on the spot, from a fixed seed, on the labelled held-out pictures of the data set itself: a
second or two, no download, and sensible for digits, where features of photographs are not. So scores compare
runs on one data set; they are no FID as published. Where pictures have no labels, the same network at its
initial weights gives the features (random convolutions still tell textures apart).
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 64
SEED = 1706
STEPS, BATCH, RATE = 150, 64, 2e-3
SMOOTHING = 0.1  # of labels: the held-out part is small, and features should not shrink to its classes


class Features(nn.Module):
    """Pictures [N, C, S, S] in [-1, 1] to features [N, 64]; `logits` for its training."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        fan_in, fan_out = channels, 16
        while size > 4:
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1), nn.LeakyReLU(0.1)]
            fan_in, fan_out, size = fan_out, min(2 * fan_out, 64), -(-size // 2)
        self.convolutions = nn.Sequential(*layers)
        self.inner = nn.Linear(fan_in * size**2, FEATURES)
        self.outer = nn.Linear(FEATURES, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Pictures [N, C, H, W] -> features [N, F] in [-1, 1]."""
        features_NF: Tensor = self.inner(self.convolutions(x_NCHW).flatten(1)).tanh()
        return features_NF

    def logits(self, x_NCHW: Tensor) -> Tensor:
        """Pictures [N, C, H, W] -> logits of classes [N, K]."""
        logits_NK: Tensor = self.outer(self(x_NCHW))
        return logits_NK


_KNOWN: dict[str, Features] = {}  # one per held-out part; training it twice would give the same


def features_of(images_NCHW: Tensor, labels_N: Tensor | None) -> Features:
    """The network whose features are compared, trained on these pictures; the same for the same pictures."""
    digest = hashlib.sha256(images_NCHW.contiguous().numpy().tobytes()).hexdigest()
    if digest not in _KNOWN:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(SEED)
            classes = 1 if labels_N is None else int(labels_N.max()) + 1
            network = Features(images_NCHW.shape[1], images_NCHW.shape[-1], classes)
            if labels_N is not None:
                _train(network, images_NCHW, labels_N)
        _KNOWN[digest] = network.eval()
    return _KNOWN[digest]


def _train(network: Features, images_NCHW: Tensor, labels_N: Tensor) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
    order = torch.randperm(len(images_NCHW))
    for _ in range(STEPS):
        if len(order) < min(BATCH, len(images_NCHW)):  # what is left over waits for the next order
            order = torch.randperm(len(images_NCHW))
        rows, order = order[:BATCH], order[BATCH:]
        logits_NK = network.logits(images_NCHW[rows])
        loss = F.cross_entropy(logits_NK, labels_N[rows], label_smoothing=SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def frechet_distance(one_NF: Tensor, other_MF: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the normal distributions fitted to two sets of features.

    In float64. The trace of the root is that of (C1^(1/2) C2 C1^(1/2))^(1/2), which is symmetric: its
    eigenvalues are real, and small negative ones are rounding.
    """
    means, covariances = zip(*(_moments(features) for features in (one_NF, other_MF)), strict=True)
    values, vectors = torch.linalg.eigh(covariances[0])
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ covariances[1] @ root)
    trace = covariances[0].trace() + covariances[1].trace() - 2 * product.clamp_min(0).sqrt().sum()
    return float((means[0] - means[1]).square().sum() + trace)


def _moments(features_NF: Tensor) -> tuple[Tensor, Tensor]:
    features_NF = features_NF.double()
    return features_NF.mean(dim=0), torch.cov(features_NF.T)
