"""How far DELTAS may be trusted: from the variance of triangulated points to that of every pixel.

A point's variance follows from what triangulation knows: where its rays were seen from, how well
they were told apart, and how well they meet. An evidential head carries it to the pixels between.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltas.interest import CELL
from deltas.triangulation import Matches, observation_rows
from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.utils.geometry import project

# Of a match, in pixels: soft-argmax is no better than its samples and the descriptors' grid.
MATCH_PIXELS = 1.0
# A pixel where nothing was triangulated; and bounds of what a variance is believed to be, m^2.
_SMALLEST, _LARGEST = 1e-6, 1e2


class EvidentialDepth(nn.Module):
    """Evidence about the densified depth: a normal-inverse-gamma distribution of each pixel.

    It reads the densifier's features and three maps of the triangulated points, filled between
    them: the logarithm of their standard deviation relative to depth, how far away they are, and
    how far the dense depth is from theirs. Neither depth nor features are changed by what it
    learns: its mean is the depth as it is, and gradients end here.

    Args:
        channels: of the densifier's features at full size.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels + 3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 3, 1)

    def forward(
        self, features: Tensor, depth: Tensor, points: Tensor, z: Tensor, variance: Tensor,
        valid: Tensor,
    ) -> NormalInverseGamma:  # fmt: skip
        """Evidence about ``depth`` (B, 1, H, W), maps of this shape.

        Args:
            features: (B, C, H, W), of ``Densification.decode`` at full size.
            points: (B, N, 2), pixels of triangulated points.
            z, variance, valid: (B, N) their depth, ``depth_variance``, and which of them count.
        """
        with torch.autocast(depth.device.type, enabled=False):
            depth, features = depth.detach().float(), features.detach().float()
            maps = point_maps(depth, points, z.detach(), variance, valid)
            x = F.relu(self.conv1(torch.cat([features, maps], 1)))
            return NormalInverseGamma.from_evidence(depth, self.conv3(F.relu(self.conv2(x))))


@torch.no_grad()
def depth_variance(
    points: Tensor, matches: Matches, points3d: Tensor, poses: Tensor, intrinsics: Tensor
) -> Tensor:
    """Variance (B, N) of the depth of triangulated points, in the square of the poses' unit.

    That of the least-squares solution, to first order: with J the derivative of the observed pixels
    by the point, each weighted by its confidence W, the covariance is s^2 (J' W^2 J)^-1, and s^2
    is that of a match, ``MATCH_PIXELS`` squared, plus the mean of the squared residuals (Hartley
    and Zisserman, Multiple View Geometry, 2004, section 5.2). A short baseline, few views, low
    confidence or rays that do not meet all make it large.

    Args:
        points: (B, N, 2) of the anchor.
        matches: of the points in V views.
        points3d: (B, N, 3), of ``triangulate``.
        poses: (B, V, 4, 4), anchor to view.
        intrinsics: (B, 1 + V, 3, 3).
    """
    solution = F.pad(points3d, (0, 1), value=1.0).double()[..., None]
    frames = F.pad(poses.double(), (0, 0, 0, 0, 1, 0))
    frames[:, 0] = torch.eye(4, dtype=torch.float64, device=poses.device)
    in_frames = torch.einsum("bfij,bnj->bfni", frames[..., :3, :], solution[..., 0])
    cameras = intrinsics.double()
    expected, z = project(in_frames, cameras)
    expected = expected.nan_to_num(0.0, 0.0, 0.0)
    # A row times the point is a residual in pixels, times the depth in that view and confidence.
    scale = z.abs().clamp_min(1e-6).transpose(1, 2).repeat_interleave(2, -1)[..., None]
    rows = observation_rows(points.double(), matches, poses.double(), cameras)
    weight = matches.confidence.double().square().sum(-1).clamp_min(1e-12)
    residual = (rows @ solution / scale).square().sum((-2, -1)) / (2 * weight)
    exact = replace(matches, pixels=expected[:, 1:])
    jacobian = observation_rows(expected[:, 0], exact, poses.double(), cameras)[..., :3] / scale
    information = jacobian.mT @ jacobian
    # Without parallax there is no inverse: the smallest eigenvalue that double precision tells.
    ridge = 1e-12 * information.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] + 1e-300
    eye = torch.eye(3, dtype=torch.float64, device=poses.device)
    covariance = torch.linalg.inv(information + ridge * eye)
    return ((MATCH_PIXELS**2 + residual) * covariance[..., 2, 2]).to(points.dtype)


def point_maps(depth: Tensor, points: Tensor, z: Tensor, variance: Tensor, valid: Tensor) -> Tensor:
    """What the points say of every pixel (B, 3, H, W): see ``EvidentialDepth``."""
    size = tuple(depth.shape[-2:])
    relative = variance.clamp(_SMALLEST, _LARGEST).log() / 2 - z.clamp_min(0.01).log()
    rows, columns = (-(-side // CELL) for side in size)
    cell = points.long() // CELL
    index = (cell[..., 1] * columns + cell[..., 0])[:, None].expand(-1, 3, -1)
    sums = torch.stack([relative, z.clamp_min(0.01).log(), torch.ones_like(z)], 1) * valid[:, None]
    cells = sums.new_zeros(len(z), 3, rows * columns).scatter_add(2, index, sums)
    maps = filled(cells.view(-1, 3, rows, columns))
    maps = F.interpolate(maps, (rows * CELL, columns * CELL), mode="bilinear", align_corners=False)
    deviation, log_z, distance = maps[..., : size[0], : size[1]].split(1, 1)
    apart = (depth.clamp_min(0.01).log() - log_z).abs()
    return torch.cat([deviation, distance, apart], 1)


def filled(sums: Tensor) -> Tensor:
    """Means of all cells, and how many times a cell's surroundings were doubled to find one.

    Pull and push (Gortler et al., The Lumigraph, 1996, section 3.5): sums go up a pyramid until
    there is something, and means come down to where there is nothing.

    Args:
        sums: (B, C, h, w) of C - 1 values, and their number.

    Returns:
        (B, C, h, w): C - 1 means, 0 where the whole image has none, and the number of doublings.
    """
    levels = [sums]
    while levels[-1].shape[-2:] != (1, 1):
        levels.append(4 * F.avg_pool2d(levels[-1], 2, ceil_mode=True, divisor_override=4))
    found = torch.zeros_like(levels[-1])
    for level in reversed(levels):
        above = F.interpolate(found, level.shape[-2:], mode="nearest")
        count = level[:, -1:]
        means = torch.where(count > 0, level[:, :-1] / count.clamp_min(1), above[:, :-1])
        doubled = torch.where(count > 0, 0.0, above[:, -1:] + 1)
        found = torch.cat([means, doubled], 1)
    return found
