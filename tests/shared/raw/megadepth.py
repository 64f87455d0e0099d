"""MegaDepth as it is released: photographs, HDF5 depth, COLMAP's model in text files."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pycolmap
from dataset_contract import Case
from PIL import Image
from scipy.spatial.transform import Rotation
from world import World

from datasets_preprocess.preprocess_megadepth import main

UNIT_M = 3.0
WIDE, UPRIGHT = (160, 120), (120, 168)
# SIMPLE_RADIAL: focal, principal point, distortion; the photographs come without the distortion.
RADIAL = (170.0, 61.5, 82.25, -0.03)


def pinhole(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy of COLMAP's kind, where the first pixel's centre is at (0.5, 0.5)."""
    return 150.0, 153.0, size[0] / 2 + 4.25, size[1] / 2 - 3.5


def write_depth(path: Path, depth: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("depth", data=depth.astype(np.float32), compression="gzip")


def write_model(folder: Path, camera: str, poses: dict[str, np.ndarray]) -> None:
    """COLMAP's text format: each image's line has a line of points below it, here an empty one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(
        f"# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n1 {camera}\n"
    )
    lines = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME"]
    for number, (name, pose) in enumerate(poses.items(), 1):
        inverse = np.linalg.inv(pose)
        x, y, z, w = Rotation.from_matrix(inverse[:3, :3]).as_quat()
        numbers = " ".join(f"{value:.12f}" for value in (w, x, y, z, *inverse[:3, 3]))
        lines += [f"{number} {numbers} 1 {name}", ""]
    (folder / "images.txt").write_text("\n".join([*lines, ""]))
    (folder / "points3D.txt").write_text("# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]\n")


def write_views(
    dense: Path, poses: Sequence[np.ndarray], intrinsics: np.ndarray, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Photographs and depth by our intrinsics; returns the poses, in the model's unit, by name."""
    world, named = World(), {}
    (dense / "imgs").mkdir(parents=True)
    for number, pose in enumerate(poses):
        rgb, depth = world.render(pose, intrinsics, size)
        depth[:, :5] = -1  # in the release: a place in an order of near and far
        stem = f"{6500 + number}_3c1f{number:02d}_o"
        Image.fromarray(rgb).save(dense / "imgs" / f"{stem}.jpg", quality=97, subsampling=0)
        write_depth(dense / "depths" / f"{stem}.h5", np.where(depth > 0, depth / UNIT_M, depth))
        named[f"{stem}.jpg"] = pose.copy()
        named[f"{stem}.jpg"][:3, 3] /= UNIT_M
    return named


def write_pinhole(release: Path, landmark: str, poses: Sequence[np.ndarray]) -> Path:
    """A reconstruction whose model has no distortion to take away; returns dense0."""
    fx, fy, cx, cy = pinhole(WIDE)
    intrinsics = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
    dense = release / "phoenix/S6/zl548/MegaDepth_v1" / landmark / "dense0"
    named = write_views(dense, poses, intrinsics, WIDE)
    model = f"PINHOLE {WIDE[0]} {WIDE[1]} {fx} {fy} {cx} {cy}"
    write_model(release / "MegaDepth_v1_SfM" / landmark / "sparse/manhattan/0", model, named)
    return dense


def write_radial(release: Path, landmark: str, poses: Sequence[np.ndarray]) -> Path:
    """A reconstruction of distorted photographs, undistorted as COLMAP does it; returns dense1."""
    width, height = UPRIGHT
    distorted = pycolmap.Camera(model="SIMPLE_RADIAL", width=width, height=height, params=RADIAL)
    camera = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), distorted)
    assert (camera.width, camera.height) != UPRIGHT
    intrinsics = camera.calibration_matrix()
    intrinsics[:2, 2] -= 0.5
    dense = release / "phoenix/S6/zl548/MegaDepth_v1" / landmark / "dense1"
    named = write_views(dense, poses, intrinsics, (camera.width, camera.height))
    model = f"SIMPLE_RADIAL {width} {height} {' '.join(map(str, RADIAL))}"
    write_model(release / "MegaDepth_v1_SfM" / landmark / "sparse/manhattan/1", model, named)
    return dense


def build(folder: Path) -> dict[str, object]:
    poses = World().poses(8)
    write_pinhole(folder / "raw", "0015", poses[:4])
    write_radial(folder / "raw", "0204", poses[4:])
    root = folder / "processed"
    assert main(["--megadepth_dir", str(folder / "raw"), "--output_dir", str(root)]) == 0
    return {"ROOT": root}


CASE = Case(
    name="MegaDepth",
    build=build,
    spec="MegaDepth(split='all', ROOT='{ROOT}')",
    metric=False,
    scale=UNIT_M,
)
