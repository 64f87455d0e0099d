"""Cosine of an anchor's descriptors with those at many places of other views.

The plain way samples and normalises every descriptor. Bilinear sampling is linear, so that products
with the maps' own descriptors, of which there are far fewer, can be sampled instead: a hundredth of
the memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def similarities(
    anchor_map: Tensor, points: Tensor, view_maps: Tensor, places: Tensor, stride: int
) -> Tensor:
    """Cosines (B, V, N, R, S) of descriptors at points of the anchor and at places of the views.

    Descriptors between the maps' own are bilinear, 0 outside. Where one is 0, so is the cosine.

    Args:
        anchor_map: (B, C, h, w).
        points: (B, N, 2), (x, y) in pixels of the anchor.
        view_maps: (B, V, C, h, w).
        places: (B, V, N, R, S, 2), pixels of the views.
        stride: pixels from one descriptor to the next.
    """
    batch, views, channels, height, width = view_maps.shape
    own = sample_descriptors(anchor_map, points, stride)
    products = own[:, None] @ view_maps.flatten(3)
    grid = sampling_grid(places, (height, width), stride)
    sampled = F.grid_sample(
        products.reshape(-1, 1, height, width), grid.flatten(0, 2), align_corners=False
    ).view(places.shape[:-1])
    norms = sampled_norms(view_maps.flatten(0, 1), grid.flatten(0, 1).flatten(1, 3))
    return sampled / norms.view(places.shape[:-1])


def sample_descriptors(maps: Tensor, points: Tensor, stride: int) -> Tensor:
    """Unit descriptors (B, N, C) of maps (B, C, h, w) at pixels (B, N, 2)."""
    grid = sampling_grid(points, maps.shape[-2:], stride)[:, None]
    sampled = F.grid_sample(maps, grid, align_corners=False)[:, :, 0]
    return F.normalize(sampled, dim=1).mT


def sampling_grid(pixels: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Coordinates in [-1, 1] for ``grid_sample`` of pixels (..., 2) in a map of ``size`` (h, w).

    The centre of a cell is taken to be half a stride from its corner and the map's far edges half a
    stride and half a pixel nearer, as SuperPoint does.
    """
    sides = pixels.new_tensor([size[1], size[0]])
    shifted = pixels - stride / 2 + 0.5
    return 2 * shifted / (sides * stride - stride / 2 - 0.5) - 1


def sampled_norms(maps: Tensor, grid: Tensor) -> Tensor:
    """Lengths (M, P) of the descriptors that ``grid_sample`` takes from maps, at least 1e-12.

    The square of a bilinear sum is quadratic in its four weights; the products of four neighbouring
    descriptors are found once per cell.

    Args:
        maps: (M, C, h, w).
        grid: (M, P, 2) in [-1, 1], corners not aligned.
    """
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (1, 1, 1, 1))
    corners = torch.stack(
        [padded[..., y : y + height + 1, x : x + width + 1] for y in (0, 1) for x in (0, 1)], -1
    )
    products = torch.einsum("mchwi,mchwj->mhwij", corners, corners).flatten(3).flatten(1, 2)
    sides = grid.new_tensor([width, height])
    position = ((grid + 1) * sides / 2 - 0.5).clamp_min(-1).minimum(sides)
    cell = position.detach().floor().minimum(sides - 1)
    x, y = (position - cell).unbind(-1)
    weights = torch.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], -1)
    index = ((cell[..., 1] + 1) * (width + 1) + cell[..., 0] + 1).long()
    gathered = products.gather(1, index[..., None].expand(-1, -1, 16)).unflatten(2, (4, 4))
    squares = ((gathered * weights[..., None, :]).sum(-1) * weights).sum(-1)
    return squares.clamp_min(1e-24).sqrt()
