"""COLMAP models: what splat trainers start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from dust3r.export.folders import whole_folder
from dust3r.export.frames import Frame, write_images
from dust3r.export.points import Points, gather, kept_masks
from dust3r.reconstruction import Reconstruction
from dust3r.utils.geometry import geotrf, inv, project

MAX_POINTS = 100_000
# COLMAP's origin is the corner of the first pixel.
HALF_PIXEL = 0.5

_DEPTH_TOLERANCE = 0.02


def write_colmap(
    reconstruction: Reconstruction,
    folder: str | Path,
    *,
    kept: Sequence[np.ndarray] | None = None,
    max_points: int = MAX_POINTS,
    seed: int = 0,
) -> Path:
    """``folder/images`` and ``folder/sparse/0``, a binary COLMAP model of them.

    Images are the upright originals (the network's where there is no file), cameras PINHOLE at
    their resolution: one for all where size and intrinsics agree, else one each. A point is seen by
    the image that it comes from, at its pixel, and by all others whose depth agrees to 2% where it
    projects to; it is said to be seen there exactly where it projects, as nothing was matched.

    Args:
        folder: made where missing.
        kept: (H, W) bool per image; None is every valid point.
        max_points: most 3-D points; a seeded random choice where there are more.

    Raises:
        ValueError: nothing is kept, masks do not fit, an original is damaged or was exchanged, or
            the originals lie in ``folder/images``.
        FileNotFoundError: an original is gone.
        FileExistsError: the folders hold other files.
    """
    masks = kept_masks(reconstruction, kept)
    frames = write_images(reconstruction, folder)
    points = gather(reconstruction, masks, max_points=max_points, seed=seed)
    return write_model(reconstruction, frames, points, masks, folder)


def write_model(
    reconstruction: Reconstruction,
    frames: Sequence[Frame],
    points: Points,
    masks: Sequence[np.ndarray],
    folder: str | Path,
) -> Path:
    """``folder/sparse/0`` of images that are written already."""
    model = pycolmap.Reconstruction()
    seen = _observations(reconstruction, frames, points, masks)
    cameras = _add_cameras(model, frames)
    numbers = np.empty(len(seen.point), np.int64)
    for index, frame in enumerate(frames):
        here = np.flatnonzero(seen.image == index)
        numbers[here] = np.arange(len(here))
        world_to_camera = np.linalg.inv(reconstruction.poses[index])
        model.add_image_with_trivial_frame(
            pycolmap.Image(
                name=frame.name,
                keypoints=seen.pixel[here] + HALF_PIXEL,
                camera_id=cameras[index],
                image_id=index + 1,
            ),
            pycolmap.Rigid3d(pycolmap.Rotation3d(world_to_camera[:3, :3]), world_to_camera[:3, 3:]),
        )
    _add_points(model, points, seen, numbers)
    model.update_point_3d_errors()
    target = Path(folder) / "sparse" / "0"
    with whole_folder(target) as temporary:
        model.write_binary(temporary)
    return target


@dataclass(frozen=True)
class _Observations:
    """M sightings in the order of points: their point and image (M,), pixel (M, 2) of the frame."""

    point: np.ndarray
    image: np.ndarray
    pixel: np.ndarray


def _observations(
    reconstruction: Reconstruction,
    frames: Sequence[Frame],
    points: Points,
    masks: Sequence[np.ndarray],
) -> _Observations:
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for index, frame in enumerate(frames):
        own = points.image == index
        numbers, pixels = _seen_by(reconstruction, index, points, masks[index])
        others = ~own[numbers]
        numbers = np.concatenate([np.flatnonzero(own), numbers[others]])
        pixels = np.concatenate([points.pixel[own], pixels[others]])
        found.append((numbers, _mapped(frame.from_network, pixels)))
    point = np.concatenate([numbers for numbers, _ in found])
    image = np.repeat(np.arange(len(found)), [len(numbers) for numbers, _ in found])
    pixel = np.concatenate([pixels for _, pixels in found])
    order = np.argsort(point, kind="stable")
    return _Observations(point[order], image[order], pixel[order])


def _seen_by(
    reconstruction: Reconstruction, index: int, points: Points, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (M,) and network pixels (M, 2) of the points that agree with an image's depth."""
    depth = reconstruction.depthmaps[index]
    in_camera = geotrf(inv(reconstruction.poses[index]), points.xyz.astype(np.float64))
    numbers = np.flatnonzero(in_camera[:, 2] > 0)
    pixels, z = project(in_camera[numbers], reconstruction.intrinsics[index])
    height, width = depth.shape
    inside = ((pixels > -0.5) & (pixels < (width - 0.5, height - 0.5))).all(-1)
    numbers, pixels, z = numbers[inside], pixels[inside], z[inside]
    u, v = pixels.round().astype(int).T.clip(0, [[width - 1], [height - 1]])
    agrees = mask[v, u] & (np.abs(z - depth[v, u]) <= _DEPTH_TOLERANCE * depth[v, u])
    return numbers[agrees], pixels[agrees]


def _add_cameras(model: pycolmap.Reconstruction, frames: Sequence[Frame]) -> list[int]:
    """The camera's number for every frame."""
    first = frames[0]
    shared = all(
        frame.size == first.size and np.allclose(frame.intrinsics, first.intrinsics, rtol=1e-6)
        for frame in frames
    )
    distinct = frames[:1] if shared else frames
    for number, frame in enumerate(distinct, 1):
        width, height = frame.size
        (fx, _, cx), (_, fy, cy) = frame.intrinsics[:2]
        camera = pycolmap.Camera(
            camera_id=number,
            model="PINHOLE",
            width=width,
            height=height,
            params=[fx, fy, cx + HALF_PIXEL, cy + HALF_PIXEL],
        )
        model.add_camera_with_trivial_rig(camera)
    return [1] * len(frames) if shared else list(range(1, len(frames) + 1))


def _add_points(
    model: pycolmap.Reconstruction, points: Points, seen: _Observations, numbers: np.ndarray
) -> None:
    starts = np.searchsorted(seen.point, np.arange(len(points) + 1)).tolist()
    images = (seen.image + 1).tolist()
    keypoints = numbers.tolist()
    for number, (xyz, rgb) in enumerate(
        zip(points.xyz.astype(np.float64), points.rgb, strict=True)
    ):
        track = pycolmap.Track()
        for sighting in range(starts[number], starts[number + 1]):
            track.add_element(images[sighting], keypoints[sighting])
        model.add_point3D(xyz, track, rgb)


def _mapped(affine: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return pixels @ affine[:2, :2].T + affine[:2, 2]
