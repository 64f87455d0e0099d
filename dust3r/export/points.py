"""What exports draw: the kept pixels of all images as points, and their colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import matplotlib
import numpy as np

from dust3r.reconstruction import Reconstruction
from dust3r.utils.plots import Colours

Colour = Literal["rgb", "depth", "uncertainty"]


@dataclass(frozen=True)
class Points:
    """P kept pixels in the order of images, rows and columns.

    Attributes:
        xyz: (P, 3) float32, world.
        rgb: (P, 3) uint8, sRGB.
        image: (P,) number of the image that a point comes from.
        pixel: (P, 2) its (u, v) in the network's image.
        confidence: (P,) float32.
        sigma: (P,) float32, as of ``Reconstruction.deviations``; None where none is stated.
        radius90: (P,) float32, as of ``Reconstruction.radii90``; None where there are none.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    image: np.ndarray
    pixel: np.ndarray
    confidence: np.ndarray
    sigma: np.ndarray | None
    radius90: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.xyz)

    def at(self, chosen: np.ndarray) -> Points:
        """The points of these numbers, or of this bool mask."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Points(**{k: None if part is None else part[chosen] for k, part in parts.items()})


def gather(
    reconstruction: Reconstruction,
    kept: Sequence[np.ndarray] | None = None,
    *,
    colour: Colour = "rgb",
    max_points: int | None = None,
    seed: int = 0,
) -> Points:
    """The kept pixels as points; a seeded random choice of them where ``max_points`` are fewer.

    Raises ValueError as ``kept_masks`` and ``coloured`` do.
    """
    masks = kept_masks(reconstruction, kept)
    colours = coloured(reconstruction, colour, masks)
    pixels = [np.argwhere(mask)[:, ::-1] for mask in masks]
    points = Points(
        xyz=np.concatenate([reconstruction.pts3d(n)[mask] for n, mask in enumerate(masks)]),
        rgb=np.concatenate([image[mask] for image, mask in zip(colours, masks, strict=True)]),
        image=np.repeat(np.arange(len(masks)), [len(one) for one in pixels]),
        pixel=np.concatenate(pixels),
        confidence=_of_kept(reconstruction.confidences, masks),
        sigma=None
        if reconstruction.deviations is None
        else _of_kept(reconstruction.deviations, masks),
        radius90=None
        if reconstruction.radii90 is None
        else _of_kept(reconstruction.radii90, masks),
    )
    if max_points is None or len(points) <= max_points:
        return points
    chosen = np.random.default_rng(seed).choice(len(points), max_points, replace=False)
    return points.at(np.sort(chosen))


def kept_masks(
    reconstruction: Reconstruction, kept: Sequence[np.ndarray] | None = None
) -> list[np.ndarray]:
    """``kept`` (None: all that is valid) where there is a depth in front of the camera.

    Raises:
        ValueError: ``kept`` does not fit the images, or nothing is left to write.
    """
    masks = reconstruction.valid if kept is None else kept
    found = [np.shape(mask) for mask in masks]
    expected = [depth.shape for depth in reconstruction.depthmaps]
    if found != expected:
        raise ValueError(
            f"kept masks of shapes {found} given for depth maps of shapes {expected}; give one "
            "(H, W) mask per image, as Reconstruction.kept does"
        )
    masks = [
        np.asarray(mask, bool) & np.isfinite(depth) & (depth > 0)
        for mask, depth in zip(masks, reconstruction.depthmaps, strict=True)
    ]
    if not any(mask.any() for mask in masks):
        raise ValueError(
            "no point is kept, so there is nothing to write: lower the least confidence, hide "
            "fewer points, or look at what the masks and the clean-up took away"
        )
    return masks


def coloured(
    reconstruction: Reconstruction, colour: Colour, masks: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Images (H, W, 3) uint8 to paint points with.

    Args:
        colour: ``'rgb'``, the photographs; ``'depth'``; ``'uncertainty'``, the logarithm of
            ``Reconstruction.doubts``. The latter two on one range over the whole scene, from the
            1st to the 99th percentile of the kept.
        masks: of the kept points, (H, W) bool.

    Raises ValueError for another ``colour``.
    """
    if colour not in get_args(Colour):
        raise ValueError(f"colour {colour!r} is unknown; give one of {', '.join(get_args(Colour))}")
    if colour == "rgb":
        return [to_bytes(image) for image in reconstruction.images]
    if colour == "depth":
        values = list(reconstruction.depthmaps)
        colours = Colours.linear([_of_kept(values, masks)], "turbo")
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = reconstruction.doubts()
        colours = Colours.logarithmic([_of_kept(values, masks)], "magma")
    low, high = colours.norm.vmin, colours.norm.vmax
    palette = matplotlib.colormaps[colours.name]
    clipped = (np.clip(np.nan_to_num(one, nan=high), low, high) for one in values)
    return [palette(colours.norm(one), bytes=True)[..., :3] for one in clipped]


def to_bytes(image: np.ndarray) -> np.ndarray:
    """RGB in [0, 1] as uint8."""
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def linear(srgb: np.ndarray) -> np.ndarray:
    """Linear colours of sRGB ones, both uint8 (IEC 61966-2-1)."""
    value = np.arange(256) / 255
    table = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return (table * 255).round().astype(np.uint8)[srgb]


def _of_kept(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([one[mask] for one, mask in zip(maps, masks, strict=True)])
