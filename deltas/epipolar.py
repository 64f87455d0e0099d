"""Where a pixel of the anchor may lie in other views: segments of its epipolar lines.

Pixels are (x, y), the first one's centre at (0, 0). Sizes: B anchors, V other views of each, N
points of an anchor.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dust3r.utils.geometry import geotrf, project


@dataclass(frozen=True)
class Segments:
    """Epipolar segments in the pixels of the views.

    Attributes:
        centre: (B, V, N, 2); the origin where the segment is void.
        direction: (B, V, N, 2), of unit length, along the line, one way or the other.
        length: (B, V, N) in pixels; 0 where the segment is void.
        seen: (B, V, N) bool: both ends are in the image and before the camera; else it is void.
    """

    centre: Tensor
    direction: Tensor
    length: Tensor
    seen: Tensor

    def pixels(self, along: Tensor, across: Tensor) -> Tensor:
        """Pixels (B, V, N, ..., 2) of places on and beside the segments.

        Args:
            along: from -1, one end, to 1, the other; broadcasts with (B, V, N, ...).
            across: pixels to the side; likewise.
        """
        lead = self.length.shape
        spread = (*lead, *(1,) * (max(along.ndim, across.ndim) - len(lead)))
        half = self.length.reshape(spread) / 2
        x, y = (part.reshape(spread) for part in self.direction.unbind(-1))
        centre_x, centre_y = (part.reshape(spread) for part in self.centre.unbind(-1))
        along = along * half
        return torch.stack(
            [centre_x + along * x - across * y, centre_y + along * y + across * x], -1
        )


def epipolar_segments(
    points: Tensor,
    poses: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    depth_range: tuple[float, float],
) -> Segments:
    """Segments on which points of the anchor lie if their depth is within ``depth_range``.

    Args:
        points: (B, N, 2) of the anchor.
        poses: (B, V, 4, 4), anchor to view.
        intrinsics: (B, 1 + V, 3, 3) of the anchor and the views.
        size: (height, width) of the views.
        depth_range: nearest and farthest z in the anchor.
    """
    # A point at depth d of the anchor is seen at d * infinity + epipole, homogeneous.
    rays = back_project(points, torch.ones_like(points[..., 0]), intrinsics[:, 0])
    to_pixels = intrinsics[:, 1:] @ poses[..., :3, :3]
    infinity = torch.einsum("bvij,bnj->bvni", to_pixels, rays)
    epipole = torch.einsum("bvij,bvj->bvi", intrinsics[:, 1:], poses[..., :3, 3])[:, :, None]
    near, far = (_in_image(depth * infinity + epipole, size) for depth in depth_range)
    seen = near[1] & far[1]
    # The fundamental matrix times the point, but for a factor, whose sign turns the map of
    # similarities by 180 degrees and changes nothing.
    line = torch.linalg.cross(epipole.expand_as(infinity), infinity)
    direction = torch.stack([line[..., 1], -line[..., 0]], -1)
    flat = direction.norm(dim=-1, keepdim=True) < torch.finfo(direction.dtype).tiny
    direction = torch.where(flat, direction.new_tensor([1.0, 0.0]), direction)
    ends = torch.stack([near[0], far[0]])
    ends = torch.where(seen[..., None], ends, 0)
    return Segments(
        centre=ends.mean(0),
        direction=F.normalize(direction, dim=-1),
        length=(ends[1] - ends[0]).norm(dim=-1),
        seen=seen,
    )


def back_project(points: Tensor, depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Points (B, N, 3) of the camera at pixels (B, N, 2) with z = depth (B, N)."""
    homogeneous = F.pad(points, (0, 1), value=1.0)
    rays = torch.linalg.solve(intrinsics, homogeneous.mT).mT
    return rays * depth[..., None]


def carry_points(
    points: Tensor, depth: Tensor, poses: Tensor, intrinsics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Points of the anchor at known depth, as the other views have them.

    Args:
        points: (B, N, 2) of the anchor.
        depth: (B, N) z in the anchor.
        poses: (B, V, 4, 4), anchor to view.
        intrinsics: (B, 1 + V, 3, 3) of the anchor and the views.

    Returns:
        points (B, N, 3) in the anchor's camera, their pixels (B, V, N, 2) and z (B, V, N) in the
        views; pixels mean nothing where z is not above 0.
    """
    in_anchor = back_project(points, depth, intrinsics[:, 0])
    in_views = geotrf(poses, in_anchor[:, None].expand(-1, poses.shape[1], -1, -1))
    return in_anchor, *project(in_views, intrinsics[:, 1:])


def _in_image(homogeneous: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pixels (..., 2), and whether they are inside the image and before the camera."""
    z = homogeneous[..., 2:]
    before = z > 1e-6
    pixels = homogeneous[..., :2] / torch.where(before, z, 1)
    bound = pixels.new_tensor([size[1], size[0]]) - 0.5
    return pixels, ((pixels >= -0.5) & (pixels < bound) & before).all(-1)
