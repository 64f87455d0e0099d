"""Pictures of the synthetic world through lenses that distort."""

from collections.abc import Callable

import cv2
import numpy as np
from world import World

_MARGIN = 0.35


def render_through(
    world: World,
    pose: np.ndarray,
    size: tuple[int, int],
    focal: float,
    rays_of_pixels: Callable[[np.ndarray], np.ndarray],
    *,
    finer: float,
) -> tuple[np.ndarray, np.ndarray]:
    """RGB (H, W, 3) uint8 and z (H, W) float32 at the pixels' centres.

    Sampled from a pinhole camera's picture, of ``finer`` times the ``focal`` in pixels: depth is
    that of a ray up to 0.5 / ``finer`` pixels away.
    ``rays_of_pixels`` takes pixels (N, 2), first pixel's centre at (0, 0), to (x/z, y/z) (N, 2);
    ``size`` is (width, height).
    """
    width, height = size
    fine = (int(finer * (1 + _MARGIN) * width), int(finer * (1 + _MARGIN) * height))
    camera = np.diag([finer * focal, finer * focal, 1.0])
    camera[:2, 2] = (fine[0] - 1) / 2, (fine[1] - 1) / 2
    rgb, depth = world.render(pose, camera, fine)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    rays = rays_of_pixels(np.stack([columns.ravel(), rows.ravel()], 1).astype(np.float64))
    x, y = (rays * camera[0, 0] + camera[:2, 2]).T.reshape(2, height, width).astype(np.float32)
    assert x.min() > 0 and y.min() > 0 and x.max() < fine[0] - 1 and y.max() < fine[1] - 1
    return cv2.remap(rgb, x, y, cv2.INTER_LINEAR), cv2.remap(depth, x, y, cv2.INTER_NEAREST)
