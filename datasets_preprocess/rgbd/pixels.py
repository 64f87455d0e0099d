"""Colour and depth files of recordings, and depth maps sampled between their pixels."""

from pathlib import Path

import cv2
import numpy as np

from dust3r.utils.pixels import read_rgb


def read_depth_map(path: Path, unit: float, *, rotated_bits: bool = False) -> np.ndarray:
    """Depth (H, W) float32 metres, 0 = none, of a 16-bit PNG whose step is ``unit`` metres.

    0 and 65535 are none. ``rotated_bits``: the 16 bits were rotated left by 3, SUN3D's way. Raises
    ValueError for what is no such image.
    """
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 2:
        got = "nothing readable" if stored is None else f"{stored.shape} {stored.dtype}"
        raise ValueError(f"{path}: expected a single-channel 16-bit depth PNG, got {got}")
    if rotated_bits:
        stored = (stored >> 3) | (stored << 13)
    return np.where(stored < 65535, stored, 0).astype(np.float32) * np.float32(unit)


def read_color(path: Path) -> np.ndarray:
    """RGB (H, W, 3) uint8, the pixels as stored: depth does not follow an EXIF rotation tag."""
    try:
        return read_rgb(path)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def resample_depth(depth: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Depth (H, W), 0 = none, read at pixels ``x``, ``y`` (h, w) float32: (h, w) float32.

    Interpolated within surfaces, and picked at their edges: a mean over an edge is a depth where
    nothing is. Outside of the map there is none.
    """
    height, width = depth.shape
    picked = cv2.remap(depth, x, y, cv2.INTER_NEAREST)
    # The inverse depth of a plane is linear in the image, so that this is exact on planes.
    inverse = np.divide(1, depth, out=np.zeros_like(depth), where=depth > 0)
    between = cv2.remap(inverse, x, y, cv2.INTER_LINEAR)
    rows, columns = np.floor(y).astype(int), np.floor(x).astype(int)
    corners = np.stack(
        [
            depth[np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)]
            for down in (0, 1)
            for right in (0, 1)
        ]
    )
    within = (rows >= 0) & (columns >= 0) & (rows < height - 1) & (columns < width - 1)
    one_surface = within & (corners.min(0) > 0) & (corners.max(0) < 1.05 * corners.min(0))
    return np.where(one_surface, 1 / np.maximum(between, 1e-6), picked).astype(np.float32)


def filled(depth: np.ndarray, reach: float = np.inf) -> np.ndarray:
    """Depth (H, W) with holes given the value of the nearest valid pixel within ``reach`` pixels.

    A map without a valid pixel becomes infinite.
    """
    holes = (depth <= 0).astype(np.uint8)
    if holes.all():
        return np.full_like(depth, np.inf)
    distance, labels = cv2.distanceTransformWithLabels(
        holes, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = np.zeros(labels.max() + 1, depth.dtype)
    values[labels[holes == 0]] = depth[holes == 0]
    return np.where(distance <= reach, values[labels], 0)
