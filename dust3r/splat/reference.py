"""A rasteriser of a page: exact, slow, on any device; what gsplat is to agree with.

Gaussians are projected as by Zwicker et al. (EWA volume splatting, 2001) and composited as by Kerbl
et al. (2023), eqs. 2-6. Constants, and the order by the depth of centres, are those of gsplat;
unlike it, every Gaussian is looked at in every pixel, and no ray ends early.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dust3r.splat.gaussians import GREY, Gaussians, harmonic_basis, rotations
from dust3r.splat.rasterise import Camera, Rendered

# Variance, in square pixels, that makes every Gaussian about a pixel wide.
BLUR = 0.3
MAX_ALPHA = 0.999
MIN_ALPHA = 1 / 255
# Gaussians times pixels; each takes some hundred bytes with its gradients.
MOST_PRODUCTS = 200_000_000

# Far outside of the image the projection is nothing like linear, and Gaussians would smear.
_MARGIN = 0.15


def render(gaussians: Gaussians, camera: Camera, *, sh_degree: int, near: float = 0.01) -> Rendered:
    """The image of Gaussians, on black.

    ``info`` holds what gsplat's strategies ask for: ``means2d`` (1, N, 2) in pixels whose first has
    its corner at (0, 0), ``radii`` (1, N, 2), 0 for what is not seen, ``width``, ``height``,
    ``n_cameras``, ``gaussian_ids``.

    Raises ValueError for scenes that are too large for it.
    """
    width, height = camera.size
    if len(gaussians) * width * height > MOST_PRODUCTS:
        raise ValueError(
            f"{len(gaussians)} Gaussians in {width}x{height} pixels are too many for the reference "
            "rasteriser; give smaller --max_points and --image_size, or --rasteriser gsplat"
        )
    means2d, covariances, depths = project(gaussians, camera)
    # Only what is a leaf of its own image has the gradient that densification looks at.
    corner = (means2d + 0.5)[None]
    means2d = corner[0] - 0.5
    order = torch.argsort(depths.detach(), stable=True)
    shown = order[depths[order] > near]
    alphas = _alphas(means2d[shown], covariances[shown], gaussians.opacities[shown], camera.size)
    passed = torch.cumprod(1 - alphas, dim=0)
    before = torch.cat([torch.ones_like(passed[:1]), passed[:-1]])
    colours = seen_colours(gaussians, camera, sh_degree)[shown]
    image = torch.einsum("np,nc->pc", alphas * before, colours).reshape(height, width, 3)
    opacity = (1 - passed[-1] if len(shown) else passed.new_zeros(width * height)).reshape(
        height, width
    )
    info = {
        "means2d": corner,
        "radii": _radii(corner[0], covariances, depths > near, camera.size)[None],
        "width": width,
        "height": height,
        "n_cameras": 1,
        "gaussian_ids": None,
    }
    return Rendered(image, opacity, info)


def project(gaussians: Gaussians, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Where Gaussians are in an image: pixels (N, 2), covariances (N, 2, 2), depths z (N,)."""
    turn, shift = camera.world_to_camera[:3, :3], camera.world_to_camera[:3, 3]
    x, y, z = (gaussians.means @ turn.T + shift).unbind(-1)
    (fx, _, cx), (_, fy, cy) = camera.intrinsics[:2]
    # What is behind the camera is drawn nowhere, and should not make gradients infinite.
    z_safe = torch.where(z > 0, z, torch.ones_like(z))
    u, v = x / z_safe, y / z_safe
    means2d = torch.stack([fx * u + cx, fy * v + cy], -1)
    width, height = camera.size
    u = _limited(u, width, fx, cx)
    v = _limited(v, height, fy, cy)
    none = torch.zeros_like(z)
    jacobian = torch.stack(
        [fx / z_safe, none, -fx * u / z_safe, none, fy / z_safe, -fy * v / z_safe], -1
    ).reshape(-1, 2, 3)
    axes = jacobian @ turn @ rotations(gaussians.quats) * gaussians.scales[:, None]
    blur = BLUR * torch.eye(2, dtype=z.dtype, device=z.device)
    return means2d, axes @ axes.transpose(1, 2) + blur, z


def seen_colours(gaussians: Gaussians, camera: Camera, sh_degree: int) -> Tensor:
    """Colours (N, 3), 0 or more, seen from the camera, by harmonics up to ``sh_degree``."""
    turn, shift = camera.world_to_camera[:3, :3], camera.world_to_camera[:3, 3]
    directions = F.normalize(gaussians.means + turn.T @ shift, dim=-1)
    basis = harmonic_basis(directions, sh_degree)
    return (torch.einsum("nk,nkc->nc", basis, gaussians.sh[:, : basis.shape[1]]) + GREY).clamp_min(
        0
    )


def _alphas(means: Tensor, covariances: Tensor, opacities: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H * W) opacity of each Gaussian in each pixel."""
    width, height = size
    across = torch.arange(width, dtype=means.dtype, device=means.device)
    down = torch.arange(height, dtype=means.dtype, device=means.device)
    dx = (across[None, :] - means[:, :1])[:, None, :]
    dy = (down[None, :] - means[:, 1:])[:, :, None]
    a, b, c = (covariances[:, i, j][:, None, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    power = (c * dx * dx - 2 * b * dx * dy + a * dy * dy) / (2 * (a * c - b * b))
    alphas = (opacities[:, None, None] * torch.exp(-power)).clamp_max(MAX_ALPHA)
    return torch.where(alphas < MIN_ALPHA, 0, alphas).flatten(1)


def _radii(means: Tensor, covariances: Tensor, in_front: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 2) whole pixels that three standard deviations reach; 0 for what is not in the image."""
    with torch.no_grad():
        reach = torch.ceil(3 * torch.diagonal(covariances, dim1=1, dim2=2).sqrt())
        sides = torch.tensor(size, dtype=means.dtype, device=means.device)
        seen = in_front & ((means + reach > 0) & (means - reach < sides)).all(-1)
        return torch.where(seen[:, None], reach, 0).int()


def _limited(slope: Tensor, side: int, focal: Tensor, centre: Tensor) -> Tensor:
    margin = _MARGIN * side
    # Corner to corner: half a pixel beyond the centres of the first and last pixel.
    low, high = (-0.5 - margin - centre) / focal, (side - 0.5 + margin - centre) / focal
    return torch.minimum(torch.maximum(slope, low), high)
