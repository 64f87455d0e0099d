"""Data sets for nerfstudio: transforms.json with images, depth and points."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dust3r.export.colmap import HALF_PIXEL, MAX_POINTS
from dust3r.export.folders import whole_folder
from dust3r.export.frames import IMAGES, Frame, write_images
from dust3r.export.ply import write_points
from dust3r.export.points import Points, gather, kept_masks
from dust3r.reconstruction import Reconstruction
from dust3r.utils.files import atomic_path

TRANSFORMS = "transforms.json"
POINTS = "sparse_pc.ply"
DEPTHS = "depths"

# Cameras look along -z with y up in OpenGL, along z with y down in OpenCV.
OPENGL_AXES = np.diag([1.0, -1.0, -1.0, 1.0])

# nerfstudio's depth files hold thousandths unless it is told otherwise.
_STEPS = 1000
_COARSEST = 100


def write_nerfstudio(
    reconstruction: Reconstruction,
    folder: str | Path,
    *,
    kept: Sequence[np.ndarray] | None = None,
    max_points: int = MAX_POINTS,
    seed: int = 0,
) -> Path:
    """``folder/transforms.json`` and what it names: images, ``depths/``, ``sparse_pc.ply``.

    Poses are camera-to-world with OpenGL's camera axes, in the world of the points, so that
    ``applied_transform`` is the identity. Intrinsics are of the upright originals (the network's
    images where there is no file), with the corner of the first pixel at (0, 0).

    Depth files cover the frame of the original at about the network's resolution, z in thousandths
    of the scene's unit and 0 where nothing is kept: 16-bit PNG, or where the scene is too small or
    too large for whole numbers of 16 bits, NPY of float32; nerfstudio reads both.

    Args and errors as for ``write_colmap``. ``transforms.json`` is written last.
    """
    masks = kept_masks(reconstruction, kept)
    frames = write_images(reconstruction, folder)
    points = gather(reconstruction, masks, max_points=max_points, seed=seed)
    return write_transforms(reconstruction, frames, points, masks, folder)


def write_transforms(
    reconstruction: Reconstruction,
    frames: Sequence[Frame],
    points: Points,
    masks: Sequence[np.ndarray],
    folder: str | Path,
) -> Path:
    """As ``write_nerfstudio``, of images that are written already."""
    folder = Path(folder)
    write_points(points, folder / POINTS)
    depth_names = _write_depths(reconstruction, frames, masks, folder / DEPTHS)
    entries = []
    for index, (frame, depth_name) in enumerate(zip(frames, depth_names, strict=True)):
        (fx, _, cx), (_, fy, cy) = frame.intrinsics[:2].tolist()
        entries.append(
            {
                "file_path": f"{IMAGES}/{frame.name}",
                "depth_file_path": f"{DEPTHS}/{depth_name}",
                "w": frame.size[0],
                "h": frame.size[1],
                "fl_x": fx,
                "fl_y": fy,
                "cx": cx + HALF_PIXEL,
                "cy": cy + HALF_PIXEL,
                "transform_matrix": (reconstruction.poses[index] @ OPENGL_AXES).tolist(),
            }
        )
    content = {
        "camera_model": "OPENCV",
        "k1": 0.0,
        "k2": 0.0,
        "p1": 0.0,
        "p2": 0.0,
        "applied_transform": np.eye(4)[:3].tolist(),
        "ply_file_path": POINTS,
        "frames": entries,
    }
    with atomic_path(folder / TRANSFORMS) as temporary:
        temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder / TRANSFORMS


def _write_depths(
    reconstruction: Reconstruction,
    frames: Sequence[Frame],
    masks: Sequence[np.ndarray],
    folder: Path,
) -> list[str]:
    """Names of the files, one per frame."""
    kept = [
        _STEPS * np.where(mask, depth, 0)
        for mask, depth in zip(masks, reconstruction.depthmaps, strict=True)
    ]
    steps = np.concatenate([depth[mask] for depth, mask in zip(kept, masks, strict=True)])
    whole = np.median(steps) >= _COARSEST and steps.max() <= np.iinfo(np.uint16).max
    names = [f"{frame.stem}{'.png' if whole else '.npy'}" for frame in frames]
    with whole_folder(folder) as temporary:
        for name, frame, depth in zip(names, frames, kept, strict=True):
            framed = _in_frame(depth.astype(np.float32), frame)
            if whole:
                _write_png(temporary / name, framed.round().astype(np.uint16))
            else:
                np.save(temporary / name, framed)
    return names


def _in_frame(depth: np.ndarray, frame: Frame) -> np.ndarray:
    """The depth map where it lies in the frame's own borders, at about its own resolution.

    Readers stretch depth to the size of the image, which is right only where nothing was cropped.
    """
    scale = 1 / np.abs(np.linalg.det(frame.from_network[:2, :2])) ** 0.5
    size = tuple(max(1, round(side * scale)) for side in frame.size)
    across, down = (side / new for side, new in zip(frame.size, size, strict=True))
    # Corners of the two images coincide, centres of their first pixels do not.
    to_frame = np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5], [0, 0, 1]])
    to_network = np.linalg.inv(frame.from_network) @ to_frame
    u, v = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    pixels = np.stack([u, v, np.ones_like(u)], -1) @ to_network[:2].T
    column, row = np.floor(pixels + 0.5).astype(int).transpose(2, 0, 1)
    height, width = depth.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return np.where(inside, depth[row.clip(0, height - 1), column.clip(0, width - 1)], 0)


def _write_png(path: Path, steps: np.ndarray) -> None:
    # OpenCV reports a failed write by its result alone.
    if not cv2.imwrite(str(path), steps):
        raise OSError(f"cannot write {path}")
