"""The residual blocks of ResNets (arXiv:1512.03385, figures 2 and 5), and what they cost.

The stride of a bottleneck is in its 3x3 convolution, as everyone has it since; names of parameters are the
usual ones: conv1, bn1, ..., downsample.0, downsample.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

EXPANSION = 4  # a bottleneck's outputs over its inner channels


@dataclass(frozen=True)
class BlockShape:
    """One block: channels in, inside and out, the stride, and the height and width that come in."""

    name: str
    fan_in: int
    inner: int
    fan_out: int
    stride: int
    side_in: int

    @property
    def bottleneck(self) -> bool:
        """Whether a block narrows to `inner` channels between two 1x1 convolutions."""
        return self.fan_out != self.inner

    @property
    def reshapes(self) -> bool:
        """The sum needs a projection of the inputs (option B of section 3.3)."""
        return self.stride != 1 or self.fan_in != self.fan_out

    @property
    def side(self) -> int:
        """Height and width of what goes out, in pixels."""
        return halved(self.side_in, self.stride)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the convolutions for one sample."""
        if self.bottleneck:
            before = self.fan_in * self.inner * self.side_in**2
            behind = (9 * self.inner * self.inner + self.inner * self.fan_out) * self.side**2
        else:
            before, behind = 0, 9 * (self.fan_in + self.inner) * self.inner * self.side**2
        return before + behind + self.reshapes * self.fan_in * self.fan_out * self.side**2

    def build(self) -> nn.Module:
        """The block, on the default device."""
        return Bottleneck(self) if self.bottleneck else BasicBlock(self)


def halved(side: int, stride: int) -> int:
    """Pixels behind a convolution or a pooling with this stride and padding as for stride 1."""
    return -(-side // stride)


class BasicBlock(nn.Module):
    """[B, fan_in, H, W] -> [B, fan_out, H', W']: two 3x3 convolutions beside the identity."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.conv1 = convolution(shape.fan_in, shape.inner, 3, shape.stride)
        self.bn1 = nn.BatchNorm2d(shape.inner)
        self.conv2 = convolution(shape.inner, shape.fan_out, 3)
        self.bn2 = nn.BatchNorm2d(shape.fan_out)
        self.downsample = _projection(shape)

    def forward(self, x: Tensor) -> Tensor:
        """[B, fan_in, H, W] -> [B, fan_out, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(nn.Module):
    """[B, fan_in, H, W] -> [B, fan_out, H', W']: 1x1, 3x3 and 1x1 convolutions beside the identity."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.conv1 = convolution(shape.fan_in, shape.inner, 1)
        self.bn1 = nn.BatchNorm2d(shape.inner)
        self.conv2 = convolution(shape.inner, shape.inner, 3, shape.stride)
        self.bn2 = nn.BatchNorm2d(shape.inner)
        self.conv3 = convolution(shape.inner, shape.fan_out, 1)
        self.bn3 = nn.BatchNorm2d(shape.fan_out)
        self.downsample = _projection(shape)

    def forward(self, x: Tensor) -> Tensor:
        """[B, fan_in, H, W] -> [B, fan_out, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


def convolution(fan_in: int, fan_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Padded so that stride 1 keeps height and width; BatchNorm behind it has the bias."""
    made: Any = nn.Conv2d(fan_in, fan_out, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")  # arXiv:1502.01852
    return made  # type: ignore[no-any-return]


def _projection(shape: BlockShape) -> nn.Module:
    if not shape.reshapes:
        return nn.Identity()
    return nn.Sequential(
        convolution(shape.fan_in, shape.fan_out, 1, shape.stride), nn.BatchNorm2d(shape.fan_out)
    )
