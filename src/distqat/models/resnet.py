"""`resnet18`: ResNet-18 (arXiv:1512.03385) from the blocks of transformers' ResNet, cut after layer2.

    x -> stem -> layer1 -> layer2 -> layer3 -> layer4 -> mean over positions -> fc -> logits
    |-------- front, head -------|------------------ back, tail ------------------|

For images of at most 64 pixels the stem is one 3x3 convolution without pooling (as for CIFAR in section 4.2),
and the front does 52 % of the multiply-accumulates; for larger ones it is 7x7 with stride 2 and max-pooling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from distqat.errors import ModelError

if TYPE_CHECKING:
    from transformers import ResNetConfig

StageName = Literal["full", "front", "back", "head", "tail"]

SECTIONS = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")
CUT = 3
CHANNELS = (64, 128, 256, 512)
DEPTH = 2
SMALL_IMAGE = 64


class ResNet(nn.Module):
    """Some of the sections of a ResNet, in order; a stage's parameter names are those of the full model."""

    def __init__(self, sections: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, section in sections.items():
            self.add_module(name, section)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] -> the same with other sizes, or logits [batch, classes]."""
        for name, section in self.named_children():
            x = section(x.mean(dim=(2, 3)) if name == "fc" else x)
        return x


def build(
    stage: StageName,
    num_classes: int = 10,
    num_channels: int = 3,
    img_size: int = 32,
    width: float = 1.0,
) -> ResNet:
    """One stage of ResNet-18; `width` multiplies the 64, 128, 256, 512 channels. Imports transformers."""
    names = {"full": SECTIONS, "front": SECTIONS[:CUT], "head": SECTIONS[:CUT]}.get(stage, SECTIONS[CUT:])
    channels = _channels(width)
    return ResNet({name: _section(name, channels, num_classes, num_channels, img_size) for name in names})


def sample_input(
    stage: StageName, batch_size: int, num_channels: int = 3, img_size: int = 32, width: float = 1.0
) -> Tensor:
    """Zeros of the stage's input shape; the back takes what the front returns."""
    if stage not in ("back", "tail"):
        return torch.zeros(batch_size, num_channels, img_size, img_size)
    halvings = (
        1 if img_size <= SMALL_IMAGE else 3
    )  # layer2; before it, in the large stem, convolution and pool
    side = -(-img_size // 2**halvings)
    return torch.zeros(batch_size, _channels(width)[1], side, side)


def _channels(width: float) -> list[int]:
    channels = [round(width * count) for count in CHANNELS]
    if channels[0] < 1:
        raise ModelError(f"width={width} leaves no channel; use at least {1 / CHANNELS[0]}")
    return channels


def _section(name: str, channels: list[int], num_classes: int, num_channels: int, img_size: int) -> nn.Module:
    # Not `from transformers import ...`: the package's lazy names and the Auto classes load far more.
    from transformers.models.resnet.modeling_resnet import ResNetConvLayer, ResNetEmbeddings, ResNetStage

    if name == "fc":
        return nn.Linear(channels[-1], num_classes)
    config = _config(channels, num_channels)
    if name == "stem":
        small = img_size <= SMALL_IMAGE
        stem: nn.Module = (
            ResNetConvLayer(num_channels, channels[0], kernel_size=3) if small else ResNetEmbeddings(config)
        )
        return stem
    index = SECTIONS.index(name) - 1
    fan_in = channels[max(index - 1, 0)]
    section: nn.Module = ResNetStage(
        config, fan_in, channels[index], stride=1 if index == 0 else 2, depth=DEPTH
    )
    return section


def _config(channels: list[int], num_channels: int) -> ResNetConfig:
    from transformers.models.resnet.configuration_resnet import ResNetConfig

    return ResNetConfig(
        num_channels=num_channels,
        embedding_size=channels[0],
        hidden_sizes=channels,
        depths=[DEPTH] * len(channels),
        layer_type="basic",
    )


def _initialise(module: nn.Module) -> None:
    """He initialisation by fan-out for convolutions (arXiv:1502.01852); the rest keeps torch's defaults."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
