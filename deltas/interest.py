"""Interest points and descriptors of an image, from one encoder (DeTone et al., SuperPoint, 2018).

Sinha et al., DELTAS, ECCV 2020, section 3.1. Pixels are (x, y), the first one's centre at (0, 0).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltas.resnet import DEPTHS, ResNetMaps, initialise

CELL = 8

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class InterestPoints(ResNetMaps):
    """The encoder of images with a detector and a descriptor head.

    Args:
        width: of the encoder; heads follow it, so that descriptors have 2 ``width`` channels.
        depths: of the encoder.
    """

    def __init__(self, width: int = 64, depths: Sequence[int] = DEPTHS):
        super().__init__(3, width, depths)
        self.convPa = nn.Conv2d(32 * width, 4 * width, 3, padding=1)
        self.bnPa = nn.BatchNorm2d(4 * width)
        self.convPb = nn.Conv2d(4 * width, 2 * width, 3, padding=1)
        self.bnPb = nn.BatchNorm2d(2 * width)
        self.convPc = nn.Conv2d(2 * width, CELL**2 + 1, 1)
        self.convDa = nn.Conv2d(32 * width, 2 * width, 3, padding=1)
        self.bnDa = nn.BatchNorm2d(2 * width)
        self.convDb = nn.Conv2d(10 * width, 4 * width, 1)
        self.bnDb = nn.BatchNorm2d(4 * width)
        self.convDc = nn.Conv2d(4 * width, 4 * width, 3, padding=1)
        self.bnDc = nn.BatchNorm2d(4 * width)
        self.convDd = nn.Conv2d(9 * width, 2 * width, 1)
        # Not among the published names.
        for name, values in (("mean", _IMAGENET_MEAN), ("std", _IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        initialise(self)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Maps at 1/2 to 1/32 of images (N, 3, H, W); H and W are multiples of 8.

        The published weights expect [-1, 1], from which ImageNet's mean, made for [0, 1], is taken.
        """
        return super().encode((images - self.mean) / self.std)

    def detect(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (N, 65, H/8, W/8): the 64 pixels of a cell, row by row, and that none is a point.

        Args:
            maps: of ``encode``.
        """
        x = F.relu(self.bnPa(self.convPa(maps[4])))
        x = F.relu(self.bnPb(self.convPb(_resize(x, maps[2]))))
        return self.convPc(x)

    def describe(self, maps: Sequence[Tensor]) -> Tensor:
        """Unit descriptors (N, 2 width, H/8, W/8), one for each cell."""
        stem, quarter, eighth, _, coarse = maps
        x = F.relu(self.bnDa(self.convDa(coarse)))
        x = torch.cat([_resize(x, eighth), eighth], 1)
        x = F.relu(self.bnDb(self.convDb(x)))
        x = F.relu(self.bnDc(self.convDc(x)))
        x = torch.cat([x, _resize(quarter, eighth), _resize(stem, eighth)], 1)
        return F.normalize(self.convDd(x), dim=1)


def point_scores(logits: Tensor) -> Tensor:
    """Probability (N, H, W) that each pixel is the point of its cell, from (N, 65, H/8, W/8)."""
    return F.pixel_shuffle(logits.float().softmax(1)[:, :-1], CELL)[:, 0]


@torch.no_grad()
def select_points(
    scores: Tensor,
    count: int,
    threshold: float = 0.0005,
    fraction: float = 0.5,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    radius: int = 9,
    border: int = 4,
) -> tuple[Tensor, Tensor]:
    """The best points, and random pixels up to ``count``.

    Args:
        scores: (N, H, W), of ``point_scores``.
        count: of points, N_p.
        threshold: scores below are no points.
        fraction: of ``count`` that may be points by score.
        generator: of the random pixels, one for all images or one for each; torch's default one
            if None.
        radius: no two points are nearer to each other in x and y.
        border: pixels along the edges that are never points (random pixels may be there).

    Returns:
        pixels (N, N_p, 2), whole numbers (x, y) as floats, by score first, and their scores
        (N, N_p), 0 for random ones.
    """
    number, height, width = scores.shape
    kept = suppress(scores, radius)
    inner = torch.zeros_like(kept)
    inside = (..., slice(border, height - border), slice(border, width - border))
    inner[inside] = kept[inside]
    inner = torch.where(inner > threshold, inner, 0).flatten(1)
    best, places = inner.topk(min(int(fraction * count), inner.shape[1]), dim=1)
    detected = torch.stack([places % width, places // width], -1).to(scores.dtype)

    random = _random(number, count, generator, scores.device)
    sides = random.new_tensor([width, height])
    pixels = (random * sides).floor().minimum(sides - 1).to(scores.dtype)
    best = F.pad(best, (0, count - best.shape[1]))
    detected = F.pad(detected, (0, 0, 0, count - detected.shape[1]))
    return torch.where(best[..., None] > 0, detected, pixels), best


def suppress(scores: Tensor, radius: int) -> Tensor:
    """Scores (N, H, W) with 0 wherever a point lies within ``radius`` in x and y.

    Points are local maxima, and once more local maxima of what the first ones leave over
    (SuperPoint's two rounds).
    """
    peaks = scores == _window_max(scores, radius)
    for _ in range(2):
        shadow = _window_max(peaks.to(scores.dtype), radius) > 0
        rest = torch.where(shadow, 0, scores)
        peaks = peaks | ((rest == _window_max(rest, radius)) & ~shadow)
    return torch.where(peaks, scores, 0)


def _random(
    number: int,
    count: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device,
) -> Tensor:
    """(N, count, 2) in [0, 1); a generator of each image makes it the same in every batch."""
    if isinstance(generator, Sequence):
        if len(generator) != number:
            raise ValueError(f"{len(generator)} generators for {number} images: give each its own")
        return torch.cat([_random(1, count, one, device) for one in generator])
    source = device if generator is None else generator.device
    return torch.rand(number, count, 2, generator=generator, device=source).to(device)


def _window_max(x: Tensor, radius: int) -> Tensor:
    # Largest of rows, then of columns: a tenth of the comparisons of a square window.
    size = 2 * radius + 1
    x = F.max_pool2d(x[:, None], (1, size), stride=1, padding=(0, radius))
    return F.max_pool2d(x, (size, 1), stride=1, padding=(radius, 0))[:, 0]


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
