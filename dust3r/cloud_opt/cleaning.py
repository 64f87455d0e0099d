"""Points that contradict other views, and the sky."""

import cv2
import numpy as np
import torch
from torch import Tensor

from dust3r.utils.geometry import project

_SKY_HUES = 85, 130
_LEAST_BRIGHTNESS = 0.35
_GREY_SATURATION, _GREY_BRIGHTNESS = 0.12, 0.8
_SMOOTH = 0.06
_LEAST_SHARE = 0.01


def points_in_front(
    points: Tensor,
    confidence: Tensor,
    intrinsics: Tensor,
    other_depth: Tensor,
    other_confidence: Tensor,
    tolerance: float,
) -> Tensor:
    """(H, W) bool: points (H, W, 3), in another camera's frame, that stand before its surface.

    The surface at a point is the nearest of the pixel that it falls on and the eight around it.

    Args:
        confidence: (H, W) of the points.
        intrinsics: (3, 3) of the other camera.
        other_depth, other_confidence: (H', W') of the other image. Only where its confidence is
            the higher does it count.
        tolerance: fraction of depth by which they must stand in front.
    """
    place, inside, depth = pixels_of(points, intrinsics, other_depth.shape)
    surface = _nearest_around(other_depth).flatten()[place]
    certain = other_confidence.flatten()[place]
    return inside & (surface > 0) & (depth < (1 - tolerance) * surface) & (confidence < certain)


def pixels_of(
    points: Tensor, intrinsics: Tensor, shape: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Which pixels of an image (H, W) points (..., 3) in its camera's frame fall on.

    Returns:
        flat numbers of pixels (...), 0 where there is none; whether there is one; and depths z.
    """
    height, width = shape
    pixels, depth = project(points, intrinsics)
    pixels = pixels.nan_to_num(-1e6, 1e6, -1e6).clamp(-1e6, 1e6).round().long()
    u, v = pixels.unbind(-1)
    inside = (depth > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return torch.where(inside, v * width + u, 0), inside, depth


def _nearest_around(depth: Tensor) -> Tensor:
    """Least known depth of every pixel's 3x3 neighbourhood (H, W), 0 where nothing is known.

    A point falls between pixels, and a slanted surface is nearer in one of them than in another.
    """
    nearness = torch.where(depth > 0, 1 / depth, 0.0)
    nearest = torch.nn.functional.max_pool2d(nearness[None, None], 3, 1, 1)[0, 0]
    return torch.where(nearest > 0, 1 / nearest, 0.0)


def sky_of(image: np.ndarray) -> np.ndarray:
    """(H, W) bool: what looks like sky in an RGB image (H, W, 3) in [0, 1].

    Blue or bright grey, smooth, and connected to the upper border. A heuristic: it takes a white
    wall that touches the border for an overcast sky.
    """
    hsv = cv2.cvtColor((image * 255).round().astype(np.uint8), cv2.COLOR_RGB2HSV)
    hue, saturation, value = hsv[..., 0], hsv[..., 1] / 255.0, hsv[..., 2] / 255.0
    blue = (hue >= _SKY_HUES[0]) & (hue <= _SKY_HUES[1]) & (value > _LEAST_BRIGHTNESS)
    grey = (saturation < _GREY_SATURATION) & (value > _GREY_BRIGHTNESS)
    gradient = cv2.morphologyEx(value.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3)))
    candidate = ((blue | grey) & (gradient < _SMOOTH)).astype(np.uint8)
    candidate = cv2.morphologyEx(candidate, cv2.MORPH_OPEN, np.ones((3, 3)))
    _, label = cv2.connectedComponents(candidate)
    sky = np.isin(label, np.setdiff1d(np.unique(label[0]), 0))
    # Its smooth inside stops short of the skyline by the width of the two filters.
    sky = cv2.dilate(sky.astype(np.uint8), np.ones((3, 3)), iterations=2) & (blue | grey)
    return sky > 0 if sky.mean() > _LEAST_SHARE else np.zeros(image.shape[:2], bool)
