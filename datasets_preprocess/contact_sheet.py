"""One picture per sequence to see at a glance whether colour, depth and poses belong together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from dust3r.utils.files import atomic_path
from dust3r.utils.reprojection import carried_colours

_COLORMAP = "turbo"
_NO_DEPTH = np.uint8(64)
_NAME = {"fontsize": 7}
_DPI = 110
# Lengths on the page, in inches.
_TILE, _GAP, _MARGIN, _LABEL, _LINE, _BAR = 1.75, 0.06, 0.15, 0.2, 0.15, 0.7
_PAIR_HEADING = "Pairs: first | second | second's colours carried into first (grey: not seen by it)"


@dataclass(frozen=True)
class Frame:
    """A frame to show: ``rgb`` (H, W, 3) uint8, ``depth`` (H, W) metres on the same grid, 0 = none.

    With ``intrinsics`` (3, 3) and ``pose`` (4, 4) camera-to-world, pairs show one frame's colours
    carried into the other.
    """

    name: str
    rgb: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray | None = None
    pose: np.ndarray | None = None

    @property
    def has_camera(self) -> bool:
        return self.intrinsics is not None and self.pose is not None


@dataclass(frozen=True)
class FramePair:
    """Two frames and their overlap in [0, 1]."""

    first: Frame
    second: Frame
    overlap: float


def contact_sheet(
    path: str | Path,
    title: str,
    frames: Sequence[Frame],
    pairs: Sequence[FramePair] = (),
    *,
    caption: str = "",
    columns: int = 6,
    unit: str = "m",
) -> None:
    """Write a PNG: each frame's colours over its depth, one colour bar in metres, then the pairs.

    All depth maps share one colour range, the 1st to the 99th percentile of their valid values, so
    that frames compare; pixels without depth are dark grey. A pair shows its two frames and, where
    cameras are given, the second's colours as the first sees them by its own depth and both poses:
    if depth, intrinsics and poses are right that third picture continues the first's edges. Where
    the second has nothing to say (outside, hidden) it is the first in grey. ``caption`` may have
    several lines, ``unit`` is that of all depths. Raises ValueError for no frame, or a depth map of
    another size than its image.
    """
    _check(path, frames, pairs)
    aspect = max(frame.rgb.shape[0] / frame.rgb.shape[1] for frame in frames)
    columns = max(3, min(columns, len(frames)))
    groups = max(1, columns // 3)
    frame_height = _LABEL + 2 * (_TILE * aspect + _GAP)
    pair_height = _LABEL + _TILE * aspect + _GAP
    head = 0.45 + _LINE * (caption.count("\n") + 1)
    body = head + -(-len(frames) // columns) * frame_height
    foot = body + (0.35 + -(-len(pairs) // groups) * pair_height if pairs else 0)

    page = _Page(2 * _MARGIN + columns * _TILE + _BAR, foot + _MARGIN)
    page.text(_MARGIN, 0.12, title, fontsize=13, fontweight="bold")
    page.text(_MARGIN, 0.4, caption, fontsize=8, color="0.3")
    scale = _depth_range(frames)
    for number, frame in enumerate(frames):
        row, column = divmod(number, columns)
        corner = (_MARGIN + column * _TILE, head + row * frame_height + _LABEL)
        _draw_frame(page, corner, frame, scale, aspect)
    bar = page.axes(_MARGIN + columns * _TILE + 0.08, head + _LABEL, 0.13, frame_height - 0.3)
    page.figure.colorbar(ScalarMappable(scale, _COLORMAP), cax=bar)
    bar.tick_params(labelsize=7)
    bar.set_ylabel(f"depth [{unit}]", fontsize=8)

    if pairs:
        page.text(_MARGIN, body + 0.1, _PAIR_HEADING, fontsize=9, fontweight="bold")
    for number, pair in enumerate(pairs):
        row, column = divmod(number, groups)
        left = _MARGIN + column * (3 * _TILE + 0.3)
        _draw_pair(page, (left, body + 0.35 + row * pair_height + _LABEL), pair)
    page.save(path)


def carried_over(first: Frame, second: Frame) -> tuple[np.ndarray, np.ndarray]:
    """The second frame's colours as the first sees them, (H, W, 3) uint8, and where (H, W) bool.

    Each pixel of the first with depth is projected into the second by both cameras; it is seen
    there if the second's depth agrees within 5%. Both frames need intrinsics and pose.
    """
    return carried_colours(
        *(first.depth, first.intrinsics, first.pose),
        *(second.depth, second.intrinsics, second.pose),
        second.rgb,
    )


class _Page:
    """A figure addressed in inches from its top left corner.

    Pictures are pasted into one background image: hundreds of axes would take seconds to draw.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=_DPI)
        pixels = (round(height * _DPI), round(width * _DPI), 3)
        self.background = np.full(pixels, 255, np.uint8)

    def text(self, left: float, top: float, text: str, **style: object) -> None:
        style = {"va": "top", **style}
        self.figure.text(left / self.width, 1 - top / self.height, text, **style)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def picture(self, left: float, top: float, rgb: np.ndarray) -> None:
        """Show an image (H, W, 3) uint8 one tile wide."""
        width = round((_TILE - _GAP) * _DPI)
        height = round(width * rgb.shape[0] / rgb.shape[1])
        x, y = round(left * _DPI), round(top * _DPI)
        tile = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
        self.background[y : y + height, x : x + width] = tile

    def save(self, path: str | Path) -> None:
        self.figure.figimage(self.background, zorder=-1)
        with atomic_path(path) as temporary:
            FigureCanvasAgg(self.figure).print_png(temporary)


def _draw_frame(
    page: _Page, corner: tuple[float, float], frame: Frame, scale: Normalize, aspect: float
) -> None:
    left, top = corner
    page.picture(left, top, frame.rgb)
    page.text(left + (_TILE - _GAP) / 2, top - 0.03, frame.name, ha="center", va="bottom", **_NAME)
    colours = colormaps[_COLORMAP](scale(frame.depth), bytes=True)[..., :3]
    page.picture(
        left, top + _TILE * aspect, np.where(frame.depth[..., None] > 0, colours, _NO_DEPTH)
    )


def _draw_pair(page: _Page, corner: tuple[float, float], pair: FramePair) -> None:
    pictures = [pair.first.rgb, pair.second.rgb]
    if pair.first.has_camera and pair.second.has_camera:
        colours, seen = carried_over(pair.first, pair.second)
        grey = 50 + 0.45 * pair.first.rgb.mean(axis=2, keepdims=True)
        pictures.append(np.where(seen[..., None], colours, grey).astype(np.uint8))
    left, top = corner
    for place, picture in enumerate(pictures):
        page.picture(left + place * _TILE, top, picture)
    text = f"{pair.first.name} | {pair.second.name} | overlap {pair.overlap:.2f}"
    page.text(left, top - 0.03, text, va="bottom", **_NAME)


def _check(path: str | Path, frames: Sequence[Frame], pairs: Sequence[FramePair]) -> None:
    if not frames:
        raise ValueError(f"{path}: a contact sheet needs at least one frame")
    for frame in [*frames, *(end for pair in pairs for end in (pair.first, pair.second))]:
        if frame.depth.shape != frame.rgb.shape[:2]:
            raise ValueError(
                f"{path}: frame {frame.name} has an image of {frame.rgb.shape[:2]} and depth of "
                f"{frame.depth.shape}; bring them to one size (height, width) first"
            )


def _depth_range(frames: Sequence[Frame]) -> Normalize:
    valid = np.concatenate([frame.depth[frame.depth > 0].ravel()[::7] for frame in frames])
    if not len(valid):
        return Normalize(0, 1)
    low, high = np.percentile(valid, [1, 99])
    return Normalize(low, max(high, low + 1e-3))
