"""Residual networks (He et al. 2016) with the published stems and state-dict keys."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, in_planes, H, W) -> (B, planes, H/stride, W/stride)."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Four stages of basic blocks on a 3x3 stem: images (B, 3, H, W) -> features (B, 8 * width).

    Args:
        blocks: number of blocks of each of the four stages; (2, 2, 2, 2) is ResNet-18.
        width: channels of the stem and of the first stage; doubled at each following stage.
        max_pool: pool after the stem, for images of 96 pixels rather than 32.
    """

    def __init__(self, blocks: Sequence[int] = (2, 2, 2, 2), width: int = 64, max_pool: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        # The published 96-pixel network pads its 2x2 pooling: 96 -> 49.
        self.pool: nn.Module = nn.MaxPool2d(2, 2, padding=1) if max_pool else nn.Identity()
        self.layer1 = _stage(width, width, blocks[0], stride=1)
        self.layer2 = _stage(width, 2 * width, blocks[1], stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = _stage(4 * width, 8 * width, blocks[3], stride=2)
        self.average = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.average(x).flatten(1)


def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))


def resnet18(image_size: int) -> ResNet:
    """ResNet-18 for small images, d = 512; above 64 pixels the stem is followed by max-pooling."""
    return ResNet(max_pool=image_size > 64)


def resnet10_narrow(image_size: int) -> ResNet:
    """A quarter of ResNet-18's width and one block per stage, d = 128: for tiny images on a CPU."""
    return ResNet(blocks=(1, 1, 1, 1), width=16, max_pool=image_size > 64)


def resnet10_narrow_pool(image_size: int) -> ResNet:
    """`resnet10_narrow` with max-pooling after the stem at any size: 2.5 times as fast at 28 pixels."""
    return ResNet(blocks=(1, 1, 1, 1), width=16, max_pool=True)


def resnet50(image_size: int) -> nn.Module:
    """torchvision's ResNet-50 without its classifier, d = 2048 (ImageNet, 224 pixels)."""
    import torchvision  # takes seconds, so only where it is needed

    network = torchvision.models.resnet50()
    network.fc = nn.Identity()
    return network
