"""Matches along epipolar lines and the points that they triangulate to, all differentiable.

Sinha et al., DELTAS, ECCV 2020, sections 3.2 and 3.3, after Iskakov et al., Learnable Triangulation
of Human Pose, 2019. Pixels are (x, y), the first one's centre at (0, 0). Sizes: B anchors, V other
views of each, N points of an anchor.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltas.epipolar import Segments, epipolar_segments
from deltas.interest import CELL
from deltas.similarity import similarities

STEPS = 100
ROWS = (-1, 0, 1)


@dataclass(frozen=True)
class Matches:
    """Where the points of the anchor were found.

    Attributes:
        pixels: (B, V, N, 2) in the views; the origin where the segment is void.
        confidence: (B, N, 1 + V), of the anchor (1) and the views.
        segments: that were searched; ``segments.seen`` is False where one is void.
    """

    pixels: Tensor
    confidence: Tensor
    segments: Segments


class Triangulation(nn.Module):
    """Search for descriptors on epipolar segments, and linear triangulation of what is found."""

    def __init__(self) -> None:
        super().__init__()
        self.bn_match_convD = nn.BatchNorm2d(1)
        # At torch's 1 the softmax over 300 places is nearly even and its mean the segment's middle;
        # Adam would move this one number by a learning rate a step.
        nn.init.constant_(self.bn_match_convD.weight, _FIRST_SHARPNESS)
        # Published with the weights, but what it was for is not part of the network.
        self.convD_confa = nn.Conv2d(1, 1, 3, padding=1)
        self.bnconvD_confa = nn.BatchNorm2d(1)
        for unused in (self.convD_confa, self.bnconvD_confa):
            unused.requires_grad_(False)

    def forward(
        self,
        points: Tensor,
        descriptors: Tensor,
        poses: Tensor,
        intrinsics: Tensor,
        size: tuple[int, int],
        depth_range: tuple[float, float] = (0.5, 10.0),
    ) -> tuple[Matches, Tensor]:
        """Matches of the anchor's points, and the points (B, N, 3) in the anchor's camera.

        Args:
            points: (B, N, 2) of the anchor.
            descriptors: (B, 1 + V, C, H/8, W/8) of the anchor and the views.
            poses: (B, V, 4, 4), anchor to view.
            intrinsics: (B, 1 + V, 3, 3), or one for all as (B, 3, 3).
            size: (height, width) that matches may lie in; no larger than the maps' (H, W).
            depth_range: of the points, where they are searched.
        """
        # Half precision has no room for pixel coordinates.
        with torch.autocast(points.device.type, enabled=False):
            if intrinsics.ndim == 3:
                intrinsics = intrinsics[:, None].expand(-1, descriptors.shape[1], -1, -1)
            segments = epipolar_segments(points, poses, intrinsics, size, depth_range)
            matches = self.match(points, descriptors.float(), segments)
            return matches, triangulate(points, matches, poses, intrinsics)

    def match(self, points: Tensor, descriptors: Tensor, segments: Segments) -> Matches:
        """The softly best place of each segment, and how well it fits; arguments as ``forward``."""
        along = torch.linspace(-1, 1, STEPS, device=points.device, dtype=points.dtype)
        across = points.new_tensor(ROWS)
        grid = along.expand(1, 1, 1, len(ROWS), STEPS), across.view(1, 1, 1, len(ROWS), 1)
        similarity = similarities(
            descriptors[:, 0], points, descriptors[:, 1:], segments.pixels(*grid), CELL
        )
        lead = similarity.shape[:3]
        response = F.relu(self.bn_match_convD(similarity.reshape(-1, 1, len(ROWS), STEPS)))
        response = response.reshape(*lead, len(ROWS), STEPS)
        weight = response.flatten(3).softmax(-1).view_as(response)
        place = ((weight.sum(-2) * along).sum(-1), (weight.sum(-1) * across).sum(-1))
        pixels = segments.pixels(*place) * segments.seen[..., None]
        found = response.flatten(3).amax(-1).sigmoid() * (segments.seen + 0.001)
        return Matches(
            pixels=pixels,
            confidence=torch.cat([torch.ones_like(found[:, :1]), found], 1).mT,
            segments=segments,
        )


def triangulate(points: Tensor, matches: Matches, poses: Tensor, intrinsics: Tensor) -> Tensor:
    """Points (B, N, 3) in the anchor's camera that solve all observations' rows in least squares.

    Finite, with finite gradients, whatever the observations; without parallax they mean nothing.

    Args:
        points: (B, N, 2) of the anchor.
        poses: (B, V, 4, 4), anchor to view.
        intrinsics: (B, 1 + V, 3, 3).
    """
    rows = observation_rows(points, matches, poses, intrinsics).double()
    solution = SmallestEigenvector.apply(rows.mT @ rows)
    scale = solution[..., 3:]
    # As good as at infinity, whose quotient would be infinite.
    scale = torch.where(scale.abs() < _FAR, torch.where(scale < 0, -_FAR, _FAR), scale)
    return (solution[..., :3] / scale).to(points.dtype)


def observation_rows(points: Tensor, matches: Matches, poses: Tensor, intrinsics: Tensor) -> Tensor:
    """Rows (B, N, 2 + 2 V, 4) whose product with the homogeneous point should be 0.

    An observation (u, v) by the projection P with rows P1, P2, P3 gives confidence (u P3 - P1) and
    confidence (v P3 - P2). Arguments as of ``triangulate``.
    """
    anchor = torch.eye(4, dtype=poses.dtype, device=poses.device).expand_as(poses[:, :1])
    projections = intrinsics @ torch.cat([anchor, poses], 1)[..., :3, :]
    pixels = torch.cat([points[:, None], matches.pixels], 1).transpose(1, 2)
    rows = (
        pixels[..., None] * projections[:, None, :, 2:, :] - projections[:, None, :, :2, :]
    ) * matches.confidence[..., None, None]
    return rows.flatten(2, 3)


class SmallestEigenvector(torch.autograd.Function):
    """Unit eigenvector (..., n) of the smallest eigenvalue of symmetric matrices (..., n, n).

    torch's own derivatives divide by differences of all eigenvalues, 0 for some points. Here only
    the differences to the smallest count, and those that are 0 to working precision give 0.
    """

    @staticmethod
    def forward(ctx, matrices: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrices)
        ctx.save_for_backward(values, vectors)
        return vectors[..., 0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        smallest, others = vectors[..., :1], vectors[..., 1:]
        gaps = values[..., 1:] - values[..., :1]
        floor = _GAP * values[..., -1:]
        inverse = gaps / (gaps.square() + floor.square()).clamp_min(torch.finfo(gaps.dtype).tiny)
        moved = others @ (inverse[..., None] * (others.mT @ gradient[..., None]))
        outer = -moved @ smallest.mT
        return (outer + outer.mT) / 2


_FIRST_SHARPNESS = 4.0
_FAR = 1e-6
_GAP = 1e-8
