"""Reading one RGB-D frame, its colour and depth brought onto the depth camera's pixel grid.

Colour and depth come from two cameras a few centimetres apart with lenses of their own. Where the
sensor did not register them, each depth pixel is carried into the colour camera by its depth and
the colour is read there, so that depth, its intrinsics and poses stay as measured.
"""

from contextlib import suppress
from dataclasses import dataclass

import cv2
import numpy as np

from datasets_preprocess.rgbd.formats import SEVEN_SCENES_INTRINSICS
from datasets_preprocess.rgbd.pixels import filled, read_color, read_depth_map, resample_depth
from datasets_preprocess.rgbd.recording import RawFrame, Recording, RgbdFrame, intrinsics_matrix
from dust3r.utils.geometry import resized_intrinsics


@dataclass(frozen=True)
class ColorCamera:
    """A colour camera beside the depth camera: the same axes, another lens and place.

    ``intrinsics`` (3, 3) in pixels of the colour image; ``offset`` (3,) metres is its centre in the
    depth camera's frame.
    """

    intrinsics: np.ndarray
    offset: np.ndarray


KINECT = ColorCamera(intrinsics_matrix(525, 525, 320, 240), np.array([0.025, 0, 0]))


def load_files(
    frame: RawFrame, *, intrinsics: np.ndarray, depth_unit: float, rotated_bits: bool
) -> RgbdFrame:
    """A frame of two image files; ``depth_unit`` is metres a step. ValueError for damaged ones."""
    depth = read_depth_map(frame.depth, depth_unit, rotated_bits=rotated_bits)
    return RgbdFrame(read_color(frame.color), depth, intrinsics)


def align(
    rgb: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray, color_camera: ColorCamera | None
) -> RgbdFrame:
    """Colour (h, w, 3) on the grid of ``depth`` (H, W), whose camera is ``intrinsics`` (3, 3).

    Without a colour camera both are of one camera and colour is only resized. With one, it is
    resampled as the depth camera sees it, by each pixel's depth (the nearest pixel's where there is
    none); depth that the colour camera does not cover is removed.
    """
    if color_camera is None:
        if rgb.shape[:2] != depth.shape:
            rgb = cv2.resize(rgb, depth.shape[::-1], interpolation=_filter(rgb, depth))
        return RgbdFrame(rgb, depth, intrinsics)
    colour_intrinsics = color_camera.intrinsics
    shrink = intrinsics[0, 0] / colour_intrinsics[0, 0]
    if shrink < 0.9:
        # Sampling a finer image at single points would alias: bring it to the depth's scale first.
        rgb, colour_intrinsics = resized(rgb, colour_intrinsics, shrink)
    x, y = _color_pixels(depth, intrinsics, colour_intrinsics, color_camera.offset)
    height, width = rgb.shape[:2]
    covered = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    warped = cv2.remap(rgb, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return RgbdFrame(warped, np.where(covered, depth, 0), intrinsics)


def limit_size(frame: RgbdFrame, max_side: int | None) -> RgbdFrame:
    """The frame scaled down until its longer side is ``max_side``; never up.

    Colour is averaged, depth interpolated within surfaces and picked at their edges (a mean over
    an edge is a depth where nothing is), intrinsics follow with the half-pixel shift that a first
    pixel centred at (0, 0) needs.
    """
    height, width = frame.depth.shape
    if max_side is None or max(height, width) <= max_side:
        return frame
    rgb, intrinsics = resized(frame.rgb, frame.intrinsics, max_side / max(height, width))
    return RgbdFrame(rgb, _smaller_depth(frame.depth, rgb.shape[:2]), intrinsics)


def resized(
    rgb: np.ndarray, intrinsics: np.ndarray, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) scaled by ``factor``, averaged, and the intrinsics (3, 3) that go with it.

    They follow with the half-pixel shift that a first pixel centred at (0, 0) needs.
    """
    height, width = rgb.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    scale = np.array([size[0] / width, size[1] / height])
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return small, resized_intrinsics(intrinsics, scale)


def find_color_camera(recording: Recording, unit: float) -> tuple[ColorCamera | None, str]:
    """The colour camera to register with, None for the depth camera's own, and the reason in words.

    A camera that the recording states is taken. 7-Scenes states none, though its Kinect did not
    register: where a recording has 7-Scenes' own intrinsics and size, depth edges are compared with
    colour edges in a few frames, and Kinect's nominal colour camera is taken if they meet clearly
    better through it.
    """
    if recording.color_intrinsics is not None:
        return ColorCamera(recording.color_intrinsics, np.zeros(3)), "the recording's own"
    nominal = intrinsics_matrix(*SEVEN_SCENES_INTRINSICS)
    if recording.format != "7scenes" or not np.allclose(recording.intrinsics, nominal):
        return None, "the depth camera's"
    same, kinect = (edge_agreement(recording, unit, camera) for camera in (None, KINECT))
    text = f"depth edges meet colour edges {same:.2f} as they are, {kinect:.2f} by Kinect's cameras"
    if kinect > same + 0.2:
        return KINECT, f"Kinect's, 525 525 320 240 and 25 mm to the right: {text}"
    return None, f"the depth camera's: {text}"


def edge_agreement(recording: Recording, unit: float, camera: ColorCamera | None) -> float:
    """How well depth edges fall on colour edges, over up to a dozen frames of the recording.

    The mean colour gradient at depth edges, standardised within each image: 0 is chance, 1 about as
    good as real images get. Frames that cannot be read are passed over.
    """
    values: list[float] = []
    for frame in recording.frames[:: max(1, len(recording.frames) // 12)][:12]:
        with suppress(ValueError):
            rgb = read_color(frame.color)
            depth = read_depth_map(frame.depth, unit, rotated_bits=recording.rotated_bits)
            values += _edge_agreement(rgb, depth, recording.intrinsics, camera)
    return float(np.mean(values)) if values else 0.0


def _edge_agreement(
    rgb: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray, camera: ColorCamera | None
) -> list[float]:
    """The agreement in one frame; nothing where depth has no edges."""
    farthest = cv2.dilate(depth, np.ones((3, 3)))
    nearest = cv2.erode(np.where(depth > 0, depth, 1e6).astype(np.float32), np.ones((3, 3)))
    # The edge belongs to the nearer surface, and is as far away as that.
    edges = (depth > 0) & (farthest > 1.05 * nearest)
    if not edges.any():
        return []
    grey = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.5)
    gradient = np.hypot(cv2.Sobel(grey, -1, 1, 0), cv2.Sobel(grey, -1, 0, 1))
    gradient = np.minimum(gradient, np.percentile(gradient, 95))
    standard = (gradient - gradient.mean()) / max(gradient.std(), 1e-6)
    if camera is None:
        camera = ColorCamera(intrinsics, np.zeros(3))
    near_depth = np.where(edges, nearest, 1).astype(np.float32)
    x, y = _color_pixels(near_depth, intrinsics, camera.intrinsics, camera.offset)
    return [float(cv2.remap(standard.astype(np.float32), x, y, cv2.INTER_LINEAR)[edges].mean())]


def _color_pixels(
    depth: np.ndarray, intrinsics: np.ndarray, color_intrinsics: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the colour camera sees the surface behind each depth pixel: x and y (H, W) float32."""
    height, width = depth.shape
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(intrinsics).T
    if offset.any():
        rays = rays - offset / filled(depth)[..., None]
    pixels = rays @ color_intrinsics.T
    x, y = np.moveaxis(pixels[..., :2] / pixels[..., 2:], -1, 0).astype(np.float32)
    return x, y


def _smaller_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth (H, W) sampled at the centres of a coarser grid (h, w)."""
    height, width = depth.shape
    y = (np.arange(size[0]) + 0.5) * height / size[0] - 0.5
    x = (np.arange(size[1]) + 0.5) * width / size[1] - 0.5
    x, y = (grid.astype(np.float32) for grid in np.meshgrid(x, y))
    return resample_depth(depth, x, y)


def _filter(rgb: np.ndarray, depth: np.ndarray) -> int:
    return cv2.INTER_AREA if rgb.shape[0] > depth.shape[0] else cv2.INTER_CUBIC
