"""Reading images and depth maps, and going between pixels and the network's input."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

Pixels = Image.Image | np.ndarray

_MEND = "the file is damaged or of another format, copy or preprocess it again"


def ImgNorm(image: Pixels, rng: np.random.Generator | None = None) -> Tensor:
    """The network's input of an RGB image: (3, H, W) float32, [0, 255] mapped to [-1, 1].

    Args:
        image: PIL image or (H, W, 3) uint8 array.
        rng: not used; every transform of a dataset takes one.
    """
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(pixels).div_(127.5).sub_(1)


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


def read_rgb(path: str | Path) -> np.ndarray:
    """RGB image (H, W, 3) uint8 as stored: the EXIF orientation is not applied.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, or is truncated.
    """
    # Pillow refuses truncated JPEG files, which OpenCV decodes to partly grey images without error.
    try:
        with Image.open(path) as image:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {path}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read the image {path}: {error}; {_MEND}") from error


def read_depth_png(path: str | Path, unit: float = 1000) -> np.ndarray:
    """Depth map (H, W) float32 of a 16-bit PNG that holds ``unit`` steps per metre; 0 = none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, is truncated, or has not one 16-bit channel.
    """
    try:
        encoded = np.frombuffer(Path(path).read_bytes(), np.uint8)
    except FileNotFoundError:
        raise FileNotFoundError(f"no depth file {path}") from None
    steps = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if encoded.size else None
    if steps is None:
        raise ValueError(f"cannot read the depth map {path} ({encoded.size} bytes); {_MEND}")
    if steps.ndim != 2 or steps.dtype != np.uint16:
        raise ValueError(
            f"{path} is not a depth map: expected one channel of 16 bits, found shape "
            f"{steps.shape} of {steps.dtype}; write it with cv2.imwrite from an (H, W) uint16 array"
        )
    return steps.astype(np.float32) / np.float32(unit)


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
