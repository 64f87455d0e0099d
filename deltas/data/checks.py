"""Whether depths are metres and poses camera-to-world, told by what the images show.

Corners are tracked from frame to frame (Lucas-Kanade, there and back again), and carried over by
depth, intrinsics and poses: with right conventions both end at one pixel.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from datasets_preprocess.rgbd.recording import RgbdFrame
from deltas.data.recordings import Scene, resize_frame
from dust3r.utils.reprojection import AS_GIVEN, CONVENTIONS, carried_pixels
from dust3r.utils.spread import spread

logger = logging.getLogger(__name__)

PLAUSIBLE_DEPTH_M = (0.1, 20.0)
PLAUSIBLE_ERROR_PX = 3.0

_SCENES, _PAIRS = 8, 4
_CORNERS, _FEWEST_CORNERS = 300, 30
_CORNER_QUALITY, _CORNER_DISTANCE = 0.01, 5
_WINDOW, _LEVELS = (21, 21), 4
_THERE_AND_BACK_PX = 0.5
# Between frames that hardly moved every convention fits: go on to one that did.
_ENOUGH_MOTION_PX = 8.0
_STEPS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Reading:
    """What a scene looks like in one convention: metres, and pixels, NaN where none was tracked."""

    median_depth: float
    error: float

    @property
    def right_depth(self) -> bool:
        low, high = PLAUSIBLE_DEPTH_M
        # Where no frame has a depth at all there is no unit to be wrong.
        return not (self.median_depth < low or self.median_depth > high)

    @property
    def right_views(self) -> bool:
        return not self.error > PLAUSIBLE_ERROR_PX

    def __str__(self) -> str:
        return f"median depth {self.median_depth:.3g} m, reprojection error {self.error:.1f} px"


def check_scenes(scenes: Sequence[Scene], size: tuple[int, int]) -> None:
    """Check units and conventions of up to eight of the scenes, spread over them.

    ``size`` (width, height) is the grid whose pixels count.

    Raises:
        ValueError: in a scene the median depth is outside 0.1 to 20 m, or corners carried between
            neighbours miss, in the median, by more than 3 pixels: with these numbers, and those of
            every other convention.
    """
    for place in spread(len(scenes), _SCENES):
        scene = scenes[place]
        readings = read_conventions(scene, size)
        given = readings[AS_GIVEN]
        if not (given.right_depth and given.right_views):
            raise ValueError(_complaint(scene.name, readings))
        if np.isnan(given.error):
            logger.warning(
                "scene %s: too little texture or motion to check poses and units by", scene.name
            )


def read_conventions(scene: Scene, size: tuple[int, int]) -> Mapping[str, Reading]:
    """Each of ``CONVENTIONS``: what it makes of up to four pairs of neighbours in the scene.

    A neighbour is the nearest following frame in which corners moved by 8 pixels, up to 16 frames
    on, or else the farthest that they could be followed to.
    """
    depths: dict[str, list[np.ndarray]] = {name: [] for name in CONVENTIONS}
    errors: dict[str, list[np.ndarray]] = {name: [] for name in CONVENTIONS}
    for number, stretch in _spread(scene):
        first = _read(scene, number, size)
        if first is None:
            continue
        found = _neighbour(scene, number, stretch, first, size)
        for name, change in CONVENTIONS.items():
            depth, intrinsics, pose = change(first.depth, first.intrinsics, scene.poses[number])
            depths[name].append(depth[depth > 0])
            if found is None:
                continue
            other, second, starts, ends = found
            _, intrinsics2, pose2 = change(second.depth, second.intrinsics, scene.poses[other])
            pixels, z = carried_pixels(depth, intrinsics, pose, intrinsics2, pose2)
            columns, rows = starts.T
            miss = np.linalg.norm(pixels[rows, columns] - ends, axis=1)
            missed = np.where(z[rows, columns] > 0, miss, np.inf)
            errors[name].append(missed[depth[rows, columns] > 0])
    return {name: Reading(_median(depths[name]), _median(errors[name])) for name in CONVENTIONS}


def _complaint(scene: str, readings: Mapping[str, Reading]) -> str:
    given = readings[AS_GIVEN]
    wrong = []
    if not given.right_depth:
        low, high = PLAUSIBLE_DEPTH_M
        wrong.append(f"the median depth is {given.median_depth:.3g} m, outside {low:g} to {high:g}")
    if not given.right_views:
        wrong.append(
            f"corners carried between neighbours by depth and poses miss by {given.error:.1f} px "
            f"in the median, more than {PLAUSIBLE_ERROR_PX:g}"
        )
    others = {name: one for name, one in readings.items() if name != AS_GIVEN}
    table = "; ".join(f"{name}: {one}" for name, one in others.items())
    return (
        f"scene {scene}: {' and '.join(wrong)}. Expected are depth along z in metres (depth_unit "
        "is its steps a metre), camera-to-world poses in metres, axes x right, y down, z forward. "
        f"In other conventions: {table}. {_advice(given, others)}. With check=False it is read as "
        "it is"
    )


def _advice(given: Reading, others: Mapping[str, Reading]) -> str:
    """What to change, as far as one change does."""
    fitting = [name for name, one in others.items() if one.right_views]
    mends = [name for name in fitting if others[name].right_depth]
    best = min(mends or fitting, key=lambda name: others[name].error, default=None)
    if mends:
        return f"Most likely mended by: {best}"
    if given.right_views and not np.isnan(given.error):
        return "The views fit each other, so that poses and depth share one wrong unit: change both"
    if best is not None:
        return f"The views fit by {best}, so that the poses' unit is another than the depth's"
    return "None of these mends it alone: check intrinsics, and whether poses are of these frames"


def _spread(scene: Scene) -> list[tuple[int, range]]:
    """Some frames with a following one, evenly over the scene, and the stretch each is of."""
    able = [(n, stretch) for stretch in scene.stretches() for n in stretch[:-1]]
    return [able[place] for place in spread(len(able), _PAIRS + 1)[:_PAIRS]]


def _read(scene: Scene, number: int, size: tuple[int, int]) -> RgbdFrame | None:
    """The frame, or None where its files are damaged: that is told when it is drawn."""
    try:
        return resize_frame(scene.read(number), size)
    except (ValueError, OSError):
        return None


def _neighbour(
    scene: Scene, number: int, stretch: range, first: RgbdFrame, size: tuple[int, int]
) -> tuple[int, RgbdFrame, np.ndarray, np.ndarray] | None:
    """A frame that ``first`` can be compared with, and pixels (K, 2) of both that show one point"""
    best = None
    for step in _STEPS:
        second = _read(scene, number + step, size) if number + step in stretch else None
        if second is None:
            break
        starts, ends = tracked(first.rgb, second.rgb)
        if len(starts) < _FEWEST_CORNERS:
            break
        best = number + step, second, starts, ends
        if np.median(np.linalg.norm(ends - starts, axis=1)) > _ENOUGH_MOTION_PX:
            break
    return best


def tracked(rgb1: np.ndarray, rgb2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of image 1 found again in image 2: pixels (K, 2) int and (K, 2) float, as (x, y).

    Images are (H, W, 3) uint8. Kept are those that lead back to where they came from.
    """
    grey1, grey2 = (cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) for rgb in (rgb1, rgb2))
    corners = cv2.goodFeaturesToTrack(grey1, _CORNERS, _CORNER_QUALITY, _CORNER_DISTANCE)
    if corners is None:
        return np.zeros((0, 2), int), np.zeros((0, 2))
    how = {"winSize": _WINDOW, "maxLevel": _LEVELS}
    there, found, _ = cv2.calcOpticalFlowPyrLK(grey1, grey2, corners, None, **how)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(grey2, grey1, there, None, **how)
    starts, ends, back = (points.reshape(-1, 2) for points in (corners, there, back))
    kept = (found & found_back).ravel() > 0
    kept &= np.linalg.norm(back - starts, axis=1) < _THERE_AND_BACK_PX
    return starts[kept].round().astype(int), ends[kept].astype(np.float64)


def _median(parts: list[np.ndarray]) -> float:
    values = np.concatenate([np.zeros(0), *parts])
    return float(np.median(values)) if len(values) else np.nan
