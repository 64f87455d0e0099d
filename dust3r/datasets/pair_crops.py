"""Windows of two images that show the same part of a scene, at whatever place and size."""

import numpy as np

from dust3r.datasets.combine import View
from dust3r.datasets.correspondences import all_correspondences
from dust3r.datasets.cropping import Frame, Size, Window
from dust3r.utils.geometry import depthmap_to_pts3d

# Correspondences that only place windows are looked for on about as many columns and rows.
_COARSE_SIDE = 160
_CORE = (10, 90)


def overlapping_windows(
    frames: tuple[Frame, Frame],
    poses: tuple[np.ndarray, np.ndarray],
    resolution: Size,
    rng: np.random.Generator,
) -> tuple[Window, Window] | None:
    """A window of each of two frames around the same surface; None where the frames share none.

    The first lies about a random pixel that view 2 sees, its size uniform between ``resolution``
    and the largest that fits; the second is as small as holds most of what the first one shows.
    Both have the proportions of ``resolution``, or of its transpose where a frame is upright.

    Args:
        frames: image, depth and intrinsics of each view.
        poses: (4, 4) camera-to-world, finite.
        resolution: (width, height), width >= height.
        rng: source of all chance.
    """
    coarse = [_coarse(frame, pose) for frame, pose in zip(frames, poses, strict=True)]
    found = all_correspondences(*(view for view, _ in coarse))
    if not len(found.first):
        return None
    first, second = found.first * coarse[0][1], found.second * coarse[1][1]
    smallest, largest = _scales(frames[0].size, resolution)
    centre = first[rng.integers(len(first))]
    window1 = _window(centre, rng.uniform(smallest, largest), frames[0].size, resolution)
    shown = second[(first >= window1[:2]).all(1) & (first < window1[2:]).all(1)]
    low, high = np.percentile(shown, _CORE, axis=0)
    needed = ((high - low) / _oriented(resolution, frames[1].size)).max() * 100 / np.ptp(_CORE)
    scale = np.clip(needed, *_scales(frames[1].size, resolution))
    return window1, _window((low + high) / 2, scale, frames[1].size, resolution)


def _coarse(frame: Frame, pose: np.ndarray) -> tuple[View, int]:
    """Geometry of every n-th pixel of a frame, upright, and n."""
    step = max(1, max(frame.size) // _COARSE_SIDE)
    depth = frame.depth[::step, ::step]
    intrinsics = frame.intrinsics.copy()
    intrinsics[:2] /= step
    valid = np.isfinite(depth) & (depth > 0)
    depth = np.where(valid, depth, np.float32(0))
    view = {
        "depthmap": depth,
        "valid_mask": valid,
        "pts3d": depthmap_to_pts3d(depth, intrinsics, pose),
        "camera_pose": pose,
        "camera_intrinsics": intrinsics,
        "true_shape": np.array(depth.shape, np.int32),
    }
    return view, step


def _oriented(resolution: Size, size: Size) -> np.ndarray:
    return np.array(resolution if size[0] >= size[1] else resolution[::-1])


def _scales(size: Size, resolution: Size) -> tuple[float, float]:
    """Smallest and largest window in a frame of ``size``, in units of ``resolution``."""
    largest = (np.array(size) / _oriented(resolution, size)).min()
    return min(1.0, largest), largest


def _window(centre: np.ndarray, scale: float, size: Size, resolution: Size) -> Window:
    """The window about ``centre``, moved into the frame."""
    side = np.minimum(np.rint(scale * _oriented(resolution, size)), size).astype(int)
    start = np.clip(np.rint(centre - side / 2).astype(int), 0, np.array(size) - side)
    left, top, right, bottom = (int(x) for x in (*start, *(start + side)))
    return left, top, right, bottom
