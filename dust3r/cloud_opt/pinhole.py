"""Intrinsics of all images, some known, some fitted to the pointmaps."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dust3r.post_process import fit_focal

_STEPS = 10
# Tangent of the largest angle to the axis at which a pinhole camera is believed to see: 79 degrees.
_WIDEST = 5.0


@dataclass(frozen=True)
class Pinholes:
    """Pinhole cameras of N images.

    Attributes:
        focals: (N, 2) fx, fy in pixels.
        centres: (N, 2) principal points.
        fixed_focals, fixed_centres: (N,) bool: known ones, which stay.
        shared: one focal, and one principal point where those are fitted, for all images.
        fx_and_fy: fit the two focals apart.
    """

    focals: Tensor
    centres: Tensor
    fixed_focals: Tensor
    fixed_centres: Tensor
    shared: bool = False
    fx_and_fy: bool = False

    def matrices(self) -> Tensor:
        """Intrinsics (N, 3, 3)."""
        k = torch.zeros(len(self.focals), 3, 3, dtype=self.focals.dtype)
        k[:, 0, 0], k[:, 1, 1] = self.focals.unbind(1)
        k[:, :2, 2] = self.centres
        k[:, 2, 2] = 1
        return k

    def rays(self, n: int, pixels: Tensor) -> Tensor:
        """Directions (..., 3), z = 1, of pixels (..., 2) of image ``n``."""
        flat = (pixels - self.centres[n].to(pixels)) / self.focals[n].to(pixels)
        return torch.nn.functional.pad(flat, (0, 1), value=1.0)

    def refit(
        self, pixels: Tensor, points: list[tuple[Tensor, Tensor]], in_own_frame: Tensor
    ) -> "Pinholes":
        """Fitted to points (M, 3) with weights (M,) of every image, seen at pixels (N, M, 2).

        What is known stays, and so does the camera of an image that no pair sees in the image's
        own frame (False in ``in_own_frame`` (N,)) unless it is shared: there, a longer focal and a
        step back look alike, and fitting them in turns drifts. Robust: least sum of reprojection
        distances (Weiszfeld, 1937).
        """
        everyone = list(range(len(self.focals)))
        groups = [everyone] if self.shared else [[n] for n in everyone if in_own_frame[n]]
        focals, centres = self.focals.clone(), self.centres.clone()
        for group in groups:
            if all(self.fixed_focals[n] and self.fixed_centres[n] for n in group):
                continue
            base = self.centres[group].float()
            offsets = torch.cat([pixels[n] - c for n, c in zip(group, base, strict=True)])
            cloud = torch.cat([points[n][0] for n in group])
            weight = torch.cat([points[n][1] for n in group])
            weight = votes_in_view(cloud, weight)
            if not (weight > 0).any():
                continue
            focal, shift = _fit(
                cloud, offsets, weight, self.fx_and_fy, not self.fixed_centres[group].any()
            )
            if not (focal > 0).all():
                continue
            for n in group:
                if not self.fixed_focals[n]:
                    focals[n] = focal
                if not self.fixed_centres[n]:
                    centres[n] = centres[n] + shift
        return replace(self, focals=focals, centres=centres)


def votes_in_view(points: Tensor, votes: Tensor) -> Tensor:
    """Votes (M,) of points (M, 3), 0 where no camera would see them.

    A point almost beside the camera pulls a fitted focal to 0, the more the closer it is to the
    camera's plane.
    """
    off_axis = points[:, :2].norm(dim=1)
    return torch.where(off_axis < _WIDEST * points[:, 2], votes, 0.0)


def focal_in_view(points: Tensor, offsets: Tensor, votes: Tensor, guess: Tensor) -> Tensor:
    """Focals (2,) of points (M, 3) at ``offsets`` (M, 2) from the principal point; ``guess`` where
    the points are nonsense and give none."""
    votes = votes_in_view(points, votes)
    focal = fit_focal(points[None], offsets[None], votes[None])[0].double()
    return torch.where(focal > 0, focal, guess)


def pixel_grid(height: int, width: int) -> Tensor:
    """(H W, 2) float pixels (u, v) of an image, row by row."""
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([u, v], -1).flatten(0, 1).float()


def _fit(
    points: Tensor, pixels: Tensor, weights: Tensor, fx_and_fy: bool, with_centre: bool
) -> tuple[Tensor, Tensor]:
    """Focals (2,) and shift (2,) of the principal point of points (M, 3) at pixels (M, 2)."""
    if not fx_and_fy and not with_centre:
        focal = fit_focal(points[None], pixels[None], weights[None])[0].double()
        return focal.expand(2), torch.zeros(2, dtype=torch.float64)
    x, y = (points[:, :2] / points[:, 2:].clamp_min(1e-6)).double().unbind(1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    # Rows of u = fx x + cx and of v = fy y + cy; with one focal the first two columns are one.
    u_rows = torch.stack([x, zero, one, zero], -1)
    v_rows = torch.stack([zero, y, zero, one], -1)
    to_unknowns = torch.eye(4).double()
    if not fx_and_fy:
        to_unknowns = to_unknowns[:, [0, 2, 3]] + torch.tensor(
            [[0, 0, 0], [1, 0, 0]] + 2 * [[0] * 3]
        )
    if not with_centre:
        to_unknowns = to_unknowns[:, :-2]
    u_rows, v_rows = u_rows @ to_unknowns, v_rows @ to_unknowns
    u, v = pixels.double().unbind(1)
    weight = base = weights.double()
    for _ in range(_STEPS):
        left = torch.cat([u_rows, v_rows]) * weight.repeat(2)[:, None]
        normal = left.T @ torch.cat([u_rows, v_rows])
        solution = torch.linalg.solve(normal, left.T @ torch.cat([u, v]))
        distance = ((u - u_rows @ solution).square() + (v - v_rows @ solution).square()).sqrt()
        weight = base / distance.clamp_min(1e-6)
    full = to_unknowns @ solution
    return full[:2], full[2:]
