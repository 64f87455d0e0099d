"""From triangulated points and the image's features to dense depth.

Sinha et al., DELTAS, ECCV 2020, section 3.4.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltas.resnet import DEPTHS, ResNetMaps, initialise

RATES = (3, 6, 12, 18, 24)


class Densification(ResNetMaps):
    """An encoder of the sparse depth and a decoder of it together with the image's maps.

    Args:
        width, depths: of the image's encoder (``InterestPoints``); this one has a quarter of the
            width.
        first_depth: that untrained weights give everywhere, as noise of the size of a first guess
            would have to be unlearnt.

    Raises:
        ValueError: ``width`` is no multiple of 4.
    """

    def __init__(self, width: int = 64, depths: Sequence[int] = DEPTHS, first_depth: float = 0.0):
        if width % 4:
            raise ValueError(f"width={width} must be a multiple of 4: points are encoded in a 4th")
        super().__init__(1, width // 4, depths)
        # Channels of image and points together: the stem's, then the four stages'.
        stem, quarter, eighth, sixteenth, coarse = (5 * width // 4 * n for n in (1, 4, 8, 16, 32))
        self.gud_up_proj_layer1 = UpProjection(coarse, sixteenth, 8 * width)
        self.gud_up_proj_layer2 = UpProjection(8 * width, eighth, 4 * width)
        self.ASPP = DenseAtrousPyramid(4 * width, 2 * width)
        self.gud_up_proj_layer3 = UpProjection(4 * width, quarter, 2 * width)
        self.gud_up_proj_layer4 = UpProjection(2 * width, stem, width)
        self.gud_up_proj_layer5 = UpProjection(width, 0, width // 2)
        self.conv_final = nn.Conv2d(width // 2, 1, 3, padding=1)
        self.conv_scale8 = nn.Conv2d(4 * width, 1, 1)
        self.conv_scale4 = nn.Conv2d(2 * width, 1, 1)
        self.conv_scale2 = nn.Conv2d(width, 1, 1)
        initialise(self)
        for head in self._heads():
            nn.init.normal_(head.weight, std=1e-3)
            nn.init.constant_(head.bias, first_depth)

    def forward(self, sparse: Tensor, image_maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Depth at full size, a half, a quarter and an eighth: (B, 1, H, W) to (B, 1, H/8, W/8).

        Args:
            sparse: (B, 1, H, W), z at the points and 0 elsewhere.
            image_maps: of the same images, of ``InterestPoints.encode``.
        """
        return self.depths(self.decode(sparse, image_maps))

    def decode(self, sparse: Tensor, image_maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Features that each depth is read from, at full size, a half, a quarter, an eighth."""
        sparse_maps = self.encode(sparse)
        stem, quarter, eighth, sixteenth = (
            torch.cat(pair, 1) for pair in zip(sparse_maps[:4], image_maps[:4], strict=True)
        )
        # The published weights have the image first here, and only here.
        coarse = torch.cat([image_maps[4], sparse_maps[4]], 1)
        x = self.gud_up_proj_layer1(coarse, sixteenth)
        at_eighth = self.ASPP(self.gud_up_proj_layer2(x, eighth))
        at_quarter = self.gud_up_proj_layer3(at_eighth, quarter)
        at_half = self.gud_up_proj_layer4(at_quarter, stem)
        return self.gud_up_proj_layer5(at_half), at_half, at_quarter, at_eighth

    def depths(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Depth from the features of each scale of ``decode``."""
        return tuple(head(x) for head, x in zip(self._heads(), features, strict=True))

    def _heads(self) -> tuple[nn.Conv2d, ...]:
        return self.conv_final, self.conv_scale2, self.conv_scale4, self.conv_scale8


def sparse_depth(points: Tensor, z: Tensor, valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Image (B, 1, H, W) of the depths of valid points, 0 elsewhere; the nearest of one pixel.

    Args:
        points: (B, N, 2), (x, y) inside the image, cut to whole numbers.
        z, valid: (B, N), depth and whether to use it.
        size: (H, W).
    """
    height, width = size
    pixels = points.long()
    index = pixels[..., 1] * width + pixels[..., 0]
    # One place more than there are pixels takes what is not valid.
    index = torch.where(valid, index, height * width)
    image = z.new_zeros(len(z), height * width + 1)
    z = torch.where(valid, z, 0)
    image = image.scatter_reduce(1, index, z, "amin", include_self=False)
    return image[:, :-1].reshape(-1, 1, height, width)


class UpProjection(nn.Module):
    """Doubles a map and joins it with another of that size, with a shortcut.

    Args:
        channels: of the input.
        skip_channels: of the map to join; 0 for none.
        out_channels: of the output.
    """

    def __init__(self, channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        if skip_channels:
            joined = out_channels + skip_channels
            self.conv1_1 = nn.Conv2d(joined, out_channels, 3, padding=1, bias=False)
            self.bn1_1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.sc_conv1 = nn.Conv2d(channels, out_channels, 5, padding=2, bias=False)
        self.sc_bn1 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map (N, C', H, W) from x (N, C, h, w), about half the size, and skip (N, S, H, W)."""
        doubled = 2 * x.shape[-2], 2 * x.shape[-1]
        size = doubled if skip is None else tuple(skip.shape[-2:])
        if size == doubled:
            main, shortcut = conv_spread(x, self.conv1), conv_spread(x, self.sc_conv1)
        else:
            x = F.interpolate(x, size, mode="nearest")
            main, shortcut = self.conv1(x), self.sc_conv1(x)
        main = F.relu(self.bn1(main))
        if skip is not None:
            main = F.relu(self.bn1_1(self.conv1_1(torch.cat([main, skip], 1))))
        return F.relu(self.bn2(self.conv2(main)) + self.sc_bn1(shortcut))


def conv_spread(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """``conv`` (5x5) of x with each value at the top left of a 2x2 block of zeros.

    That is a transposed convolution with the kernel turned around, which leaves out the three
    quarters of the products that are with zeros.
    """
    kernel = conv.weight.flip(-2, -1).transpose(0, 1)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=2, output_padding=1)


class DenseAtrousPyramid(nn.Module):
    """Dilated convolutions of growing rate, each fed with all before (Yang et al., CVPR 2018)."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.levels = len(RATES)
        for number, rate in enumerate(RATES):
            block = AtrousBlock(channels + number * growth, growth, rate)
            self.add_module(f"daspp_{number + 1}", block)
        joined = channels + len(RATES) * growth
        self.convf = nn.Conv2d(joined, channels, 3, padding=1, bias=False)
        self.bnf = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) from one of the same shape."""
        for number in range(self.levels):
            x = torch.cat([x, self.get_submodule(f"daspp_{number + 1}")(x)], 1)
        return F.relu(self.bnf(self.convf(x)))


class AtrousBlock(nn.Module):
    """1x1 and dilated 3x3 convolution, each with batch norm and ReLU."""

    def __init__(self, channels: int, out_channels: int, rate: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(
            out_channels, out_channels, 3, padding=rate, dilation=rate, bias=False
        )
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))
