"""`resnet18`, `resnet50`, `resnet101` (arXiv:1512.03385, table 1), cut between any two of their blocks.

    x -> conv1 bn1 -> layer1.0 layer1.1 ... layer2.0 ... layer4.1 -> mean over positions -> fc -> logits
    |----- front, head -----|------- body1, body2, ... ---------|--------- back, tail ----------|

Cuts are where multiply-accumulates are balanced, also inside a layer; `cut: [layer3.6]` puts them elsewhere.
For images of at most 64 pixels the stem is one 3x3 convolution without pooling (as for CIFAR in section 4.2);
for larger ones it is 7x7 with stride 2 and max-pooling. Parameters have the usual names (`layer1.0.conv1`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distqat.errors import ModelError
from distqat.models.block_chain import BlockChain, Cut, StageName
from distqat.models.resnet_blocks import EXPANSION, BlockShape, convolution, halved

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
CHANNELS = (64, 128, 256, 512)
SMALL_IMAGE = 64


class ResNet(nn.Module):
    """Some of the blocks of a ResNet, in order, with the names that they have in the whole one."""

    def __init__(self, blocks: list[BlockShape], stem: nn.Module | None, fc: nn.Linear | None) -> None:
        super().__init__()
        if stem is not None:
            self.conv1 = stem
            self.bn1 = nn.BatchNorm2d(blocks[0].fan_in)
            self.relu = nn.ReLU()  # a module, so that its output can be quantized once for all who take it
        for shape in blocks:
            layer, _, number = shape.name.partition(".")
            if layer not in self._modules:
                self.add_module(layer, nn.Module())
            self.get_submodule(layer).add_module(number, shape.build())
        if fc is not None:
            self.fc = fc
        self._names = [shape.name for shape in blocks]
        self._large = isinstance(stem, nn.Conv2d) and stem.stride != (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] -> the same with other sizes, or logits [batch, classes]."""
        if "conv1" in self._modules:
            x = self.relu(self.bn1(self.conv1(x)))
            x = F.max_pool2d(x, 3, stride=2, padding=1) if self._large else x
        for name in self._names:
            x = self.get_submodule(name)(x)
        return self.fc(x.mean(dim=(2, 3))) if "fc" in self._modules else x


def build(
    model: str,
    stage: StageName,
    num_classes: int = 10,
    num_channels: int = 3,
    img_size: int = 32,
    width: float = 1.0,
    cut: Cut | None = None,
    stage_index: int | None = None,
    stage_count: int | None = None,
) -> ResNet:
    """One stage; `width` multiplies all channels. Raises ModelError for a cut or a width that cannot be."""
    shapes = block_shapes(model, img_size, width)
    part = _chain(shapes, num_channels, img_size).part(stage, cut, stage_index, stage_count)
    stem = None
    if part.first:
        size, stride = _stem(img_size)
        stem = convolution(num_channels, shapes[0].fan_in, size, stride)
    fc = nn.Linear(shapes[-1].fan_out, num_classes) if part.last else None
    return ResNet(shapes[part.start : part.stop], stem, fc)


def sample_input(
    model: str,
    stage: StageName,
    batch_size: int,
    num_channels: int = 3,
    img_size: int = 32,
    width: float = 1.0,
    cut: Cut | None = None,
    stage_index: int | None = None,
    stage_count: int | None = None,
) -> Tensor:
    """Zeros of the stage's input shape: images, or what the block before gives."""
    shapes = block_shapes(model, img_size, width)
    part = _chain(shapes, num_channels, img_size).part(stage, cut, stage_index, stage_count)
    if part.first:
        return torch.zeros(batch_size, num_channels, img_size, img_size)
    before = shapes[part.start - 1]
    return torch.zeros(batch_size, before.fan_out, before.side, before.side)


def block_shapes(model: str, img_size: int, width: float = 1.0) -> list[BlockShape]:
    """The blocks in order, named `layer1.0` and so on."""
    inner = [round(width * count) for count in CHANNELS]
    if inner[0] < 1:
        raise ModelError(f"width={width} leaves no channel; use at least {1 / CHANNELS[0]}")
    growth = 1 if model == "resnet18" else EXPANSION
    shapes: list[BlockShape] = []
    fan_in, side = inner[0], halved(img_size, _stem(img_size)[1])
    side = side if img_size <= SMALL_IMAGE else halved(side, 2)  # max-pooling
    for layer, (depth, channels) in enumerate(zip(DEPTHS[model], inner, strict=True), start=1):
        for number in range(depth):
            stride = 2 if number == 0 and layer > 1 else 1
            name = f"layer{layer}.{number}"
            shapes.append(BlockShape(name, fan_in, channels, growth * channels, stride, side))
            fan_in, side = shapes[-1].fan_out, shapes[-1].side
    return shapes


def _chain(shapes: list[BlockShape], num_channels: int, img_size: int) -> BlockChain:
    """Without the classifier, a thousandth of the whole: entries that differ in num_classes cut alike."""
    size, stride = _stem(img_size)
    stem = size**2 * num_channels * shapes[0].fan_in * halved(img_size, stride) ** 2
    return BlockChain([shape.name for shape in shapes], [shape.macs for shape in shapes], before=stem)


def _stem(img_size: int) -> tuple[int, int]:
    """Size and stride of the first convolution."""
    return (3, 1) if img_size <= SMALL_IMAGE else (7, 2)
