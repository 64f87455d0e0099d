"""ResNet-50 at any width, as the maps of its five scales (He et al., CVPR 2016)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, conv1x1

DEPTHS = (3, 4, 6, 3)


class ResNetMaps(nn.Module):
    """A ResNet of bottleneck blocks without its classifier; parameters named as torchvision's.

    torchvision's own class has a fixed width.

    Args:
        in_channels: of the input.
        width: channels of the stem; the maps of the four stages have 4, 8, 16 and 32 times as many.
        depths: number of blocks of each stage; ResNet-50's by default.
    """

    def __init__(self, in_channels: int, width: int = 64, depths: Sequence[int] = DEPTHS):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for number, depth in enumerate(depths):
            planes = width * 2**number
            stride = 1 if number == 0 else 2
            blocks = [_widening_block(channels, planes, stride)]
            channels = planes * Bottleneck.expansion
            blocks += [Bottleneck(channels, planes) for _ in range(depth - 1)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Maps at 1/2 (stem), 1/4, 1/8, 1/16 and 1/32 of x (N, C, H, W), rounded up."""
        maps = [F.relu(self.bn1(self.conv1(x)))]
        x = F.max_pool2d(maps[0], 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def initialise(network: nn.Module) -> None:
    """He's initialisation of the convolutions of ``network``; batch norms as torch makes them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _widening_block(channels: int, planes: int, stride: int) -> Bottleneck:
    widened = planes * Bottleneck.expansion
    shortcut = nn.Sequential(conv1x1(channels, widened, stride), nn.BatchNorm2d(widened))
    return Bottleneck(channels, planes, stride, shortcut)
