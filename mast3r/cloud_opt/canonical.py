"""One pointmap per image from all passes in which it comes first, and its correction by cells.

Duisterhof et al., "MASt3R-SfM", 2024, sections 4.1 and 4.2: the canonical
pointmap is the weighted mean over pairs; what refinement changes is the depth of anchors, one per
cell of a regular grid, and pixels keep their depth relative to the anchor of their cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dust3r.cloud_opt.fusion import fuse_points
from dust3r.cloud_opt.pinhole import focal_in_view, pixel_grid
from dust3r.cloud_opt.similarity import weighted_median
from mast3r.cloud_opt.cache import ForwardResult

_LEAST_VOTE = 0.02
_FARTHEST = 1e9
# Cells over which corrections are carried into the unmatched parts of an image.
_REACH = 1.5


@dataclass(frozen=True)
class Canonical:
    """What all passes together say of an image.

    Attributes:
        depth: (H, W) float32 z, 0 where nothing is known; in the network's unit.
        confidence: (H, W) float32 mean of the passes'.
        focal: in pixels, of the camera that sees the points at their pixels.
    """

    depth: Tensor
    confidence: Tensor
    focal: float


def canonical_of(results: Sequence[ForwardResult], mask: Tensor, centre: Tensor) -> Canonical:
    """Robust mean of the pointmaps of passes that all have the image as their first.

    Passes agree up to scale, which is taken out by the median ratio of depths to the first one that
    has any.

    Args:
        mask: (H, W) bool, pixels that are used.
        centre: (2,) principal point.
    """
    height, width = mask.shape
    maps = torch.stack([result.points.flatten(0, 1) for result in results])
    confidences = torch.stack([result.confidence.flatten() for result in results])
    votes = confidences.clamp_min(1).log().clamp_min(_LEAST_VOTE)
    good = mask.flatten() & confidences.isfinite() & (maps.abs().amax(-1) < _FARTHEST)
    good &= maps[..., 2] > 0
    votes = torch.where(good, votes, 0.0)
    maps = torch.where(good[..., None], maps, 0.0)
    first = int(good.any(1).to(torch.uint8).argmax())
    both = votes * votes[first]
    ratios = torch.where(both > 0, maps[first, :, 2] / maps[..., 2].clamp_min(1e-9), 1.0)
    scales = weighted_median(ratios, both)
    # The mean over passes: none is to set the scale alone.
    scales = scales / scales.clamp_min(1e-9).log().mean().exp()
    cloud, total = fuse_points(maps * scales[:, None, None], votes)
    known = total > 0
    offsets = pixel_grid(height, width) - centre.float()
    guess = torch.tensor(float(max(height, width)))
    focal = focal_in_view(cloud, offsets, total, guess)
    counted = good.sum(0).clamp_min(1)
    confidence = torch.where(good, confidences, 0.0).sum(0) / counted
    return Canonical(
        depth=torch.where(known, cloud[:, 2].clamp_min(0), 0.0).view(height, width),
        confidence=torch.where(known, confidence, 0.0).view(height, width),
        focal=float(focal),
    )


@dataclass(frozen=True)
class Cells:
    """The grid of anchors of an image.

    Attributes:
        size: pixels of a cell's side.
        grid: (rows, columns) of cells.
    """

    size: int
    grid: tuple[int, int]

    @classmethod
    def of(cls, shape: tuple[int, int], size: int) -> "Cells":
        """Cells of an image (H, W)."""
        return cls(size, (-(-shape[0] // size), -(-shape[1] // size)))

    def __len__(self) -> int:
        return self.grid[0] * self.grid[1]

    def index(self, pixels: Tensor) -> Tensor:
        """(K,) cell of pixels (K, 2) as (x, y)."""
        return (pixels[:, 1] // self.size) * self.grid[1] + pixels[:, 0] // self.size

    def spread(self, values: Tensor, weights: Tensor, shape: tuple[int, int]) -> Tensor:
        """Smooth (H, W) map of cells' values (cells,), each as certain as its weight says.

        Normalised convolution: unmatched cells take on what their neighbours have, and far from any
        match the value is 0.

        Args:
            weights: (cells,) from 0 (nothing known) to 1.
        """
        rows, columns = self.grid
        kernel = _gaussian(values)
        stacked = torch.stack([values * weights, weights]).view(2, 1, rows, columns)
        pad = len(kernel) // 2
        stacked = F.conv2d(stacked, kernel[None, None, :, None], padding=(pad, 0))
        stacked = F.conv2d(stacked, kernel[None, None, None, :], padding=(0, pad))
        smooth = stacked[0] / (stacked[1] + 0.05 * kernel.max() ** 2)
        whole = F.interpolate(
            smooth[None], scale_factor=self.size, mode="bilinear", align_corners=False
        )
        return whole[0, 0, : shape[0], : shape[1]]


def _gaussian(like: Tensor) -> Tensor:
    reach = int(3 * _REACH)
    x = torch.arange(-reach, reach + 1, dtype=like.dtype)
    kernel = torch.exp(-0.5 * (x / _REACH).square())
    return kernel / kernel.sum()
