"""IS-Net (Qin et al. 2022, "Highly Accurate Dichotomous Image Segmentation", arXiv:2203.03041).

A U of U's: six encoder and five decoder stages, each itself a small U (an RSU block, from U2-Net). Parameter
names are those of the published checkpoint, ``isnet-general-use.pth``, which loads without a change.
"""
# Shapes: B pictures, C channels, H W pixels.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# stage: (height of its U, channels in, inside, out); height 0 is the flat block with dilations
STAGES = {
    "stage1": (7, 64, 32, 64),
    "stage2": (6, 64, 32, 128),
    "stage3": (5, 128, 64, 256),
    "stage4": (4, 256, 128, 512),
    "stage5": (0, 512, 256, 512),
    "stage6": (0, 512, 256, 512),
    "stage5d": (0, 1024, 256, 512),
    "stage4d": (4, 1024, 128, 256),
    "stage3d": (5, 512, 64, 128),
    "stage2d": (6, 256, 32, 64),
    "stage1d": (7, 128, 16, 64),
}
SIDES = (64, 64, 128, 256, 512, 512)  # channels that each side output reads; training uses all six


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(channels, out, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.bn_s1(self.conv_s1(x_BCHW)))


class _Rsu(nn.Module):
    """A residual U of ``height`` levels; the lowest is dilated instead of smaller."""

    def __init__(self, height: int, channels: int, mid: int, out: int) -> None:
        super().__init__()
        self.height = height
        self.rebnconvin = _Conv(channels, out)
        for level in range(1, height + 1):
            dilation = 2 if level == height else 1
            self.add_module(f"rebnconv{level}", _Conv(out if level == 1 else mid, mid, dilation))
        for level in range(height - 1, 0, -1):
            self.add_module(f"rebnconv{level}d", _Conv(2 * mid, out if level == 1 else mid))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        start = self.rebnconvin(x_BCHW)
        levels = [self.get_submodule("rebnconv1")(start)]
        for level in range(2, self.height + 1):
            x = levels[-1] if level == self.height else _halved(levels[-1])
            levels.append(self.get_submodule(f"rebnconv{level}")(x))
        x = levels.pop()
        for level in range(self.height - 1, 0, -1):
            skip = levels.pop()
            x = self.get_submodule(f"rebnconv{level}d")(torch.cat([_like(x, skip), skip], dim=1))
        out: Tensor = x + start
        return out


class _FlatRsu(nn.Module):
    """The same at one size, for the smallest stages: dilations 1, 2, 4, 8 and back."""

    def __init__(self, channels: int, mid: int, out: int) -> None:
        super().__init__()
        self.rebnconvin = _Conv(channels, out)
        self.rebnconv1 = _Conv(out, mid)
        self.rebnconv2 = _Conv(mid, mid, 2)
        self.rebnconv3 = _Conv(mid, mid, 4)
        self.rebnconv4 = _Conv(mid, mid, 8)
        self.rebnconv3d = _Conv(2 * mid, mid, 4)
        self.rebnconv2d = _Conv(2 * mid, mid, 2)
        self.rebnconv1d = _Conv(2 * mid, out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        start = self.rebnconvin(x_BCHW)
        one = self.rebnconv1(start)
        two = self.rebnconv2(one)
        three = self.rebnconv3(two)
        x = self.rebnconv3d(torch.cat([self.rebnconv4(three), three], dim=1))
        x = self.rebnconv2d(torch.cat([x, two], dim=1))
        out: Tensor = self.rebnconv1d(torch.cat([x, one], dim=1)) + start
        return out


class ISNet(nn.Module):
    """RGB (B, 3, H, W) in [-0.5, 0.5] to the probability of the foreground (B, 1, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        for name, (height, channels, mid, out) in STAGES.items():
            block = _Rsu(height, channels, mid, out) if height else _FlatRsu(channels, mid, out)
            self.add_module(name, block)
        for number, channels in enumerate(SIDES, 1):
            self.add_module(f"side{number}", nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x_B3HW: Tensor) -> Tensor:
        down = [self.get_submodule("stage1")(self.conv_in(x_B3HW))]
        for level in range(2, 7):
            down.append(self.get_submodule(f"stage{level}")(_halved(down[-1])))
        x = down.pop()
        for level in range(5, 0, -1):
            skip = down.pop()
            x = self.get_submodule(f"stage{level}d")(torch.cat([_like(x, skip), skip], dim=1))
        return torch.sigmoid(_like(self.get_submodule("side1")(x), x_B3HW))


def _halved(x_BCHW: Tensor) -> Tensor:
    return F.max_pool2d(x_BCHW, 2, stride=2, ceil_mode=True)


def _like(x_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    return F.interpolate(x_BCHW, size=other_BCHW.shape[2:], mode="bilinear", align_corners=False)
