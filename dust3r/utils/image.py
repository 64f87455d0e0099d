"""Images for the network and for people: what scripts import, whichever module it lives in."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from dust3r.utils.load_images import load_images
from dust3r.utils.pixels import (
    OVERSAMPLING,
    EncodedImage,
    ImgNorm,
    Pixels,
    read_depth_png,
    read_rgb,
)

__all__ = [
    "OVERSAMPLING",
    "EncodedImage",
    "ImgNorm",
    "Pixels",
    "load_images",
    "read_depth_png",
    "read_rgb",
    "rgb",
]


def rgb(
    image: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
    true_shape: Tensor | np.ndarray | Sequence[int] | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Images to show, (..., H, W, 3) float32 in [0, 1], from the network's inputs.

    Args:
        image: (..., 3, H, W) or (..., H, W, 3), in [-1, 1], or uint8 in [0, 255]; or a list of
            these, which gives a list.
        true_shape: (height, width) as seen upright; an image that travels transposed to landscape
            is turned back. For a batch (B, 2): the result is a list where shapes are mixed.

    Raises:
        ValueError: the array is not an image.
    """
    if isinstance(image, list | tuple):
        shapes = [None] * len(image) if true_shape is None else true_shape
        return [rgb(one, shape) for one, shape in zip(image, shapes, strict=True)]
    if isinstance(image, Tensor):
        image = image.detach().float().cpu().numpy() if image.is_floating_point() else image.cpu()
    pixels = _channels_last(np.asarray(image))
    if pixels.dtype == np.uint8:
        shown = pixels.astype(np.float32) / 255
    else:
        shown = (pixels.astype(np.float32) * 0.5 + 0.5).clip(0, 1)
    if true_shape is None:
        return shown
    shapes = np.asarray(true_shape)
    if shapes.ndim == 1:
        return _upright(shown, shapes)
    turned = [_upright(one, shape) for one, shape in zip(shown, shapes, strict=True)]
    return np.stack(turned) if len({one.shape for one in turned}) == 1 else turned


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim >= 3 and pixels.shape[-3] == 3:
        return np.moveaxis(pixels, -3, -1)
    if pixels.ndim >= 3 and pixels.shape[-1] == 3:
        return pixels
    raise ValueError(
        f"expected images of shape (..., 3, H, W) or (..., H, W, 3), got {pixels.shape}"
    )


def _upright(pixels: np.ndarray, true_shape: Sequence[int]) -> np.ndarray:
    height, width = (int(side) for side in true_shape)
    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.shape[:2] == (width, height):
        return pixels.swapaxes(0, 1)
    raise ValueError(
        f"true_shape {(height, width)} is neither the image's shape {pixels.shape[:2]} nor its "
        "transpose"
    )
