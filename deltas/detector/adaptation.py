"""Homographic adaptation: a detector's points that stay under random views of an image.

DeTone, Malisiewicz and Rabinovich, SuperPoint, 2018, section 5. Pixels are (x, y), the first one's
centre at (0, 0).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltas.detector.superpoint import cell_labels
from deltas.interest import point_scores, suppress

# Pixels this near to a border of what was seen, or of the view, are not counted: a border is no
# corner of the scene, and takes away what corners are told by.
MARGIN = 8


@torch.no_grad()
def adapted_scores(
    detector: nn.Module,
    grey: Tensor,
    count: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean probability that a pixel is a point, over the image and random views of it.

    A pixel's mean is over the views that show it. With ``count`` 1 it is the detector's own.

    Args:
        detector: from grey images (B, 1, H, W) to logits (B, 65, H/8, W/8), as ``SuperPoint``, in
            eval mode.
        grey: (B, 1, H, W) in [0, 1].
        count: views, of which the image itself is the first; each image has its own ones.
        generator: of the homographies; torch's default one if None.

    Returns:
        (B, H, W) in [0, 1].

    Raises:
        ValueError: ``count`` below 1, or images of another shape.
    """
    if count < 1:
        raise ValueError(f"count={count} is the number of views of an image, expected 1 or more")
    if grey.ndim != 4 or grey.shape[1] != 1:
        raise ValueError(f"images are {tuple(grey.shape)}, expected grey ones (B, 1, H, W)")
    height, width = grey.shape[-2:]
    total = _probabilities(detector, grey)
    seen = torch.ones_like(total)
    inner = _inner(total)
    for _ in range(count - 1):
        to_view = random_homographies(len(grey), (height, width), generator).to(grey)
        view = warp(grey, to_view.inverse(), "border")
        # What the view shows well, and of that what is well inside the view.
        known = warp(inner, to_view.inverse()) * inner
        scores = _probabilities(detector, view)[:, None]
        back = warp(torch.cat([scores * known, known], 1), to_view)
        total += back[:, 0]
        seen += back[:, 1]
    return total / seen


def point_labels(scores: Tensor, threshold: float = 0.015, radius: int = 4) -> Tensor:
    """Classes of cells for cross entropy with a detector's logits.

    Args:
        scores: (B, H, W), of ``adapted_scores`` or ``deltas.interest.point_scores``.
        threshold: scores up to it are no points.
        radius: no two points are nearer to each other in x and y.

    Returns:
        (B, H/8, W/8), rounded up, int64: the best point of a cell as 8 row + column within it, or
        64 where it has none.
    """
    return cell_labels(suppress(scores, radius), threshold)


def random_homographies(
    count: int,
    size: tuple[int, int],
    generator: torch.Generator | None = None,
    angle: float = math.pi / 4,
    zoom: tuple[float, float] = (0.7, 1.5),
    shift: float = 0.15,
    tilt: float = 0.25,
) -> Tensor:
    """Homographies (N, 3, 3) from pixels of an image of ``size`` (H, W) to those of a view of it.

    Args:
        count: N.
        size: (H, W) of image and view.
        generator: torch's default one if None.
        angle: largest turn about the middle, radians.
        zoom: range of the size.
        shift: largest displacement, as a part of each side.
        tilt: largest perspective: the part by which an end of the image is nearer than its middle.
    """
    source = "cpu" if generator is None else generator.device
    chance = torch.rand(6, count, generator=generator, dtype=torch.float64, device=source)
    turn, scale, dx, dy, px, py = chance.cpu()
    turn = angle * (2 * turn - 1)
    # Zooming in by a factor is as frequent as zooming out by it.
    scale = torch.exp(math.log(zoom[0]) + scale * math.log(zoom[1] / zoom[0]))
    height, width = size
    middle = _matrix([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    similar = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    similar[:, 0, 0] = similar[:, 1, 1] = scale * turn.cos()
    similar[:, 1, 0] = scale * turn.sin()
    similar[:, 0, 1] = -similar[:, 1, 0]
    similar[:, 0, 2] = shift * (2 * dx - 1) * width
    similar[:, 1, 2] = shift * (2 * dy - 1) * height
    perspective = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    perspective[:, 2, 0] = tilt * (2 * px - 1) / (width / 2)
    perspective[:, 2, 1] = tilt * (2 * py - 1) / (height / 2)
    return (middle @ similar @ perspective @ middle.inverse()).float()


def warp(images: Tensor, to_source: Tensor, padding: str = "zeros") -> Tensor:
    """Images seen through homographies, interpolated linearly.

    Args:
        images: (B, C, H, W).
        to_source: (B, 3, 3), from pixels of the result to those of ``images``.
        padding: what lies outside, see ``torch.nn.functional.grid_sample``.

    Returns:
        (B, C, H, W).
    """
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=images.dtype, device=images.device),
        torch.arange(width, dtype=images.dtype, device=images.device),
        indexing="ij",
    )
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3)
    x, y, z = (pixels @ to_source.to(images).mT).unbind(-1)
    # Behind the camera that the homography stands for there is nothing to see.
    z = torch.where(z > 1e-6, z, torch.nan)
    grid = torch.stack([2 * x / z / (width - 1) - 1, 2 * y / z / (height - 1) - 1], -1)
    grid = grid.nan_to_num(nan=-3.0).view(-1, height, width, 2)
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=True)


def _probabilities(detector: nn.Module, grey: Tensor) -> Tensor:
    return point_scores(detector(grey))[:, : grey.shape[-2], : grey.shape[-1]]


def _inner(like: Tensor) -> Tensor:
    """(B, 1, H, W) for (B, H, W): 1, but 0 along the border."""
    inner = torch.zeros_like(like)[:, None]
    inner[..., MARGIN:-MARGIN, MARGIN:-MARGIN] = 1
    return inner


def _matrix(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
