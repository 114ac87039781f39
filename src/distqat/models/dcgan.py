"""`dcgan`: a generator and a discriminator of images of 8 to 64 pixels (Radford et al., arXiv:1511.06434).

    z ──> linear, 4 x 4 ──> [x 2] ... [x 2] ──> tanh ──> fake ─┐
                                                              ├─> [/ 2] ... [/ 2] ──> 4 x 4, linear ──> logits
    real ──────────────────────────── passes through ─────────┘
    |---------------------- generator ------------------------|---------------- discriminator --------------|

As in the paper: fractionally strided convolutions of 4 x 4 in the generator, strided ones in the
discriminator, ReLU there, LeakyReLU(0.2) here, tanh at the end, weights from N(0, 0.02). Unlike it, there is
GroupNorm (arXiv:1803.08494) in place of BatchNorm: its result for a picture depends on no other picture, so
microbatches, mixing real and generated pictures, and freezing change nothing, and replicas have no running
statistics to average while the other network moves away under them.

`real` without channels, [B, 0, S, S], means that no real pictures are asked about: the discriminator then
looks at generated ones only. `phase` says which network learns (task `image_gen`): stages of their own are
frozen from outside and do not read it; `full` detaches the parameters of the other network.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from distqat.errors import ModelError

StageName = Literal["full", "generator", "discriminator"]
STAGES: tuple[StageName, ...] = ("full", "generator", "discriminator")
BOTH, DISCRIMINATOR, GENERATOR = range(3)  # values of `phase`
SMALLEST = 4  # pixels at the narrow end of both networks
GROUP = 8  # channels that GroupNorm normalises together
LEAK = 0.2
DEVIATION = 0.02


class Generator(nn.Module):
    """Noise [B, L] to pictures [B, C, S, S] in [-1, 1]."""

    def __init__(self, channels: list[int], num_channels: int, latent: int) -> None:
        """`channels` at half of the picture's size, a quarter, ... down to 4 pixels."""
        super().__init__()
        growing = channels[::-1]
        self.first = nn.Linear(latent, growing[0] * SMALLEST**2, bias=False)
        self.norms = nn.ModuleList(_norm(count) for count in growing)
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(fan_in, fan_out, 4, stride=2, padding=1)
            for fan_in, fan_out in zip(growing, [*growing[1:], num_channels], strict=True)
        )
        self.apply(_initialise)

    def forward(self, z: Tensor) -> Tensor:
        """Noise [B, L] -> pictures [B, C, S, S] in [-1, 1]."""
        x_BCHW = self.first(z).unflatten(1, (-1, SMALLEST, SMALLEST))
        for norm, grow in zip(self.norms, self.grow, strict=True):
            x_BCHW = grow(F.relu(norm(x_BCHW)))
        fake_BCHW: Tensor = x_BCHW.tanh()
        return fake_BCHW


class Discriminator(nn.Module):
    """Pictures [B, C, S, S] to logits [B]: above zero for those that it holds for real."""

    def __init__(self, channels: list[int], num_channels: int) -> None:
        super().__init__()
        self.shrink = nn.ModuleList(
            nn.Conv2d(fan_in, fan_out, 4, stride=2, padding=1)
            for fan_in, fan_out in zip([num_channels, *channels[:-1]], channels, strict=True)
        )
        self.norms = nn.ModuleList(_norm(count) for count in channels[1:])  # none on pixels, as in the paper
        self.last = nn.Linear(channels[-1] * SMALLEST**2, 1)
        self.apply(_initialise)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pictures [B, C, S, S] -> logits [B]."""
        for number, shrink in enumerate(self.shrink):
            x_BCHW = shrink(x_BCHW)
            if number:
                x_BCHW = self.norms[number - 1](x_BCHW)
            x_BCHW = F.leaky_relu(x_BCHW, LEAK)
        logits_B: Tensor = self.last(x_BCHW.flatten(1)).squeeze(1)
        return logits_B


class GeneratorStage(nn.Module):
    """Makes pictures of noise; real pictures pass through."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, real: Tensor, phase: Tensor | None = None) -> dict[str, Tensor]:
        """[B, L] and [B, C, S, S] -> `fake` of the shape of real pictures, and `real` as it is."""
        return {"fake": self.generator(z), "real": real}


class DiscriminatorStage(nn.Module):
    """Tells real pictures from generated ones."""

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Twice [B, C, S, S] -> logits [B] of both, zeros where there are no real ones; `image` is `fake`."""
        asked = real.shape[1] > 0
        logits = self.discriminator(torch.cat([fake, real]) if asked else fake)
        of_real = logits[len(fake) :] if asked else torch.zeros_like(logits)
        return {"fake": logits[: len(fake)], "real": of_real, "image": fake}


class GeneratorAndDiscriminator(nn.Module):
    """The two stages in one; where `phase` says that one network learns, the other has no gradients."""

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator

    def forward(self, z: Tensor, real: Tensor, phase: Tensor) -> dict[str, Tensor]:
        """What the two stages one behind the other give."""
        learns = BOTH if phase.is_meta else int(phase[0])
        made = _call(GeneratorStage(self.generator), (z, real), detached=learns == DISCRIMINATOR)
        return _call(
            DiscriminatorStage(self.discriminator), tuple(made.values()), detached=learns == GENERATOR
        )


def build(
    stage: StageName, num_channels: int = 3, img_size: int = 32, latent: int = 64, width: int = 64
) -> nn.Module:
    """One or both networks. `width`: channels at half of the picture's size, as in the paper; each halving
    doubles them. `latent`: numbers of noise per picture.
    """
    channels = _channels(img_size, width)
    if stage == "discriminator":
        return DiscriminatorStage(Discriminator(channels, num_channels))
    generator = Generator(channels, num_channels, latent)
    if stage == "generator":
        return GeneratorStage(generator)
    return GeneratorAndDiscriminator(generator, Discriminator(channels, num_channels))


def sample_input(
    stage: StageName, batch_size: int, num_channels: int = 3, img_size: int = 32, latent: int = 64
) -> dict[str, Tensor]:
    """Zeros of what a stage takes."""
    images = torch.zeros(batch_size, num_channels, img_size, img_size)
    if stage == "discriminator":
        return {"fake": images, "real": images}
    phase = torch.full((batch_size,), BOTH, dtype=torch.int64)
    return {"z": torch.zeros(batch_size, latent), "real": images, "phase": phase}


def _call(network: nn.Module, inputs: tuple[Tensor, ...], *, detached: bool) -> dict[str, Tensor]:
    outputs: dict[str, Tensor]
    if detached:
        parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
        outputs = functional_call(network, parameters, inputs)
    else:
        outputs = network(*inputs)
    return outputs


def _channels(img_size: int, width: int) -> list[int]:
    if img_size not in (8, 16, 32, 64):
        raise ModelError(f"data.img_size is {img_size}; dcgan makes pictures of 8, 16, 32 or 64 pixels")
    if width < 1:
        raise ModelError(f"width={width} must be at least 1")
    halvings = (img_size // SMALLEST).bit_length() - 1
    return [width * 2**number for number in range(halvings)]


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // GROUP if channels % GROUP == 0 else 1, channels)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, DEVIATION)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
