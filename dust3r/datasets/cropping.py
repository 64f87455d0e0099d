"""Cropping and resizing of RGB-D frames, with their intrinsics, to a training resolution.

Sizes are (width, height) in pixels, windows (left, top, right, bottom) with exclusive ends. A pixel
is a square around its centre and the first centre is at (0, 0), so a resize by a factor acts on
coordinates shifted by half a pixel.
"""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from dust3r.utils.geometry import resized_intrinsics
from dust3r.utils.image import EncodedImage

Size = tuple[int, int]
Window = tuple[int, int, int, int]

_COVER = 1e-8
_ABOUT_SQUARE = (0.9, 1.1)


class Frame(NamedTuple):
    """``image`` (H, W, 3) uint8, with ``depth`` (H, W) and ``intrinsics`` (3, 3) float32."""

    image: np.ndarray | EncodedImage
    depth: np.ndarray
    intrinsics: np.ndarray

    @property
    def size(self) -> Size:
        height, width = self.depth.shape
        return width, height


def crop_and_resize(
    frame: Frame,
    resolution: Size,
    rng: np.random.Generator,
    aug_crop: int = 0,
    window: Window | None = None,
) -> Frame:
    """Bring a frame to ``resolution`` with its principal point in the middle, as DUSt3R trains.

    The frame is cropped symmetrically about its principal point, shrunk (Lanczos; depth by nearest
    neighbour, which never mixes two surfaces) or enlarged (bicubic) until it just covers the
    target, and cropped to it. With ``aug_crop`` > 1 it covers up to ``aug_crop`` - 1 pixels more,
    so that fields of view and scales vary.

    Args:
        frame: image and depth on one grid, with their intrinsics. An ``EncodedImage`` is decoded
            here, no larger than is needed.
        resolution: (width, height), width >= height. Frames that are clearly upright after the
            first crop get (height, width); about square ones toss a coin.
        rng: source of the coin (drawn first) and of the augmentation; neither is drawn when not
            needed.
        aug_crop: range in pixels of the augmentation; 0 and 1 mean none.
        window: part of the frame to take instead of that about the principal point.

    Returns:
        The frame at ``resolution`` or its transpose; intrinsics are those of the new pixel grid.

    Raises:
        ValueError: image and depth differ in size, intrinsics are not finite or not positive, or
            the principal point lies outside the image or on its border.
    """
    check_frame(frame)
    window = window or _window_about_principal_point(frame)
    size = (window[2] - window[0], window[3] - window[1])
    target = _orient(resolution, size, rng)
    cover = target
    if aug_crop > 1:
        extra = int(rng.integers(0, aug_crop))
        cover = (target[0] + extra, target[1] + extra)
    frame = _resize_to_cover(frame, window, cover)
    return _crop(frame, _central_window(frame.size, target))


def check_frame(frame: Frame) -> None:
    """Raises ValueError where image and depth differ in size, or intrinsics are no camera's."""
    height, width = frame.image.shape[:2]
    if (width, height) != frame.size:
        raise ValueError(
            f"the image is {width}x{height} but its depth map is {frame.size[0]}x{frame.size[1]}; "
            "both must lie on one pixel grid: resize one of them in preprocessing"
        )
    intrinsics = frame.intrinsics
    if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all():
        raise ValueError(f"intrinsics must be a finite 3x3 matrix, got {intrinsics.tolist()}")
    if intrinsics[0, 0] <= 0 or intrinsics[1, 1] <= 0:
        raise ValueError(f"focal lengths must be positive, got intrinsics {intrinsics.tolist()}")


def _window_about_principal_point(frame: Frame) -> Window:
    """The largest window of ``frame`` that is symmetric about its rounded principal point."""
    width, height = frame.size
    cx, cy = (int(c) for c in frame.intrinsics[:2, 2].round())
    half_width, half_height = min(cx, width - cx), min(cy, height - cy)
    if half_width <= 0 or half_height <= 0:
        raise ValueError(
            f"the principal point ({cx}, {cy}) lies outside the {width}x{height} image or on its "
            "border; the intrinsics probably belong to another image size"
        )
    return cx - half_width, cy - half_height, cx + half_width, cy + half_height


def _orient(resolution: Size, size: Size, rng: np.random.Generator) -> Size:
    """``resolution``, or its transpose for upright images and by chance for square ones."""
    wide, narrow = resolution
    slimness = size[1] / size[0]
    if slimness > _ABOUT_SQUARE[1]:
        return narrow, wide
    if _ABOUT_SQUARE[0] < slimness and wide != narrow and rng.integers(2):
        return narrow, wide
    return wide, narrow


def _resize_to_cover(frame: Frame, window: Window, target: Size) -> Frame:
    """``window`` of a frame, resized until it just covers ``target``."""
    left, top, right, bottom = window
    size = np.array((right - left, bottom - top))
    scale = float(np.max(np.array(target) / size)) + _COVER
    new_size = np.floor(size * scale).astype(int)
    width, height = (int(side) for side in new_size)
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    if isinstance(frame.image, EncodedImage):
        image = frame.image.resized(window, (width, height), how)
    else:
        part = Image.fromarray(frame.image[top:bottom, left:right])
        image = part.resize((width, height), how)
    depth = cv2.resize(
        frame.depth[top:bottom, left:right], (width, height), interpolation=cv2.INTER_NEAREST
    )
    # The floor cuts a fraction of a pixel; half of it is taken from the left and the top.
    cut = size * scale - new_size
    intrinsics = resized_intrinsics(_moved(frame.intrinsics, left, top), scale)
    intrinsics[:2, 2] -= 0.5 * cut
    return Frame(np.asarray(image), depth, intrinsics.astype(np.float32))


def _central_window(size: Size, target: Size) -> Window:
    left, top = (round((have - want) / 2) for have, want in zip(size, target, strict=True))
    return left, top, left + target[0], top + target[1]


def _crop(frame: Frame, window: Window) -> Frame:
    left, top, right, bottom = window
    return Frame(
        frame.image[top:bottom, left:right],
        frame.depth[top:bottom, left:right],
        _moved(frame.intrinsics, left, top),
    )


def _moved(intrinsics: np.ndarray, left: int, top: int) -> np.ndarray:
    """Intrinsics of a grid that begins at pixel (left, top)."""
    moved = intrinsics.copy()
    moved[:2, 2] -= (left, top)
    return moved
