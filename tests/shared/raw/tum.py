"""TUM RGB-D as it is unpacked: lists of times, quaternions, images as the lens distorts them."""

from pathlib import Path

import cv2
import numpy as np
from dataset_contract import Case
from lens import render_through
from rgbd_raw import steps, write_image
from scipy.spatial.transform import Rotation
from world import World

from datasets_preprocess.preprocess_tum import main

# The benchmark's calibration of freiburg1, for images of 640 x 480.
FREIBURG1 = np.array([[517.306408, 0, 318.643040], [0, 516.469215, 255.313989], [0, 0, 1]])
DISTORTION = np.array([0.262383, -0.953104, -0.005358, 0.002628, 1.163314])
SIZE = (640, 480)
START = 1305031102.0


def undistorted_rays(pixels: np.ndarray) -> np.ndarray:
    """(x/z, y/z) of pixels (N, 2) of the distorted image."""
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-9)
    points = pixels[:, None].astype(np.float64)
    found = cv2.undistortPoints(points, FREIBURG1, DISTORTION, criteria=criteria)
    return found.reshape(-1, 2)


def write_sequence(folder: Path, number: int) -> Path:
    """Colour every 40 ms, depth 9 ms later, poses every 10 ms, one of them the colour's."""
    world = World()
    colours, depths, poses = ["# color images"], ["# depth maps"], ["# timestamp tx ty tz qx ..."]
    walk = world.poses(number)
    for count, pose in enumerate(walk):
        rgb, depth = render_through(world, pose, SIZE, FREIBURG1[0, 0], undistorted_rays, finer=1)
        time = START + 0.04 * count
        write_image(folder / "rgb" / f"{time:.6f}.png", rgb)
        write_image(folder / "depth" / f"{time + 0.009:.6f}.png", steps(depth, 5000))
        colours.append(f"{time:.6f} rgb/{time:.6f}.png")
        depths.append(f"{time + 0.009:.6f} depth/{time + 0.009:.6f}.png")
        for part in range(4):
            elsewhere = pose.copy()
            elsewhere[:3, 3] += 0.5 * part
            quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat()
            values = " ".join(f"{value:.7f}" for value in (*elsewhere[:3, 3], *quaternion))
            poses.append(f"{time + 0.001 + 0.01 * part:.4f} {values}")
    for name, lines in (("rgb", colours), ("depth", depths), ("groundtruth", poses)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def build(folder: Path) -> dict[str, object]:
    write_sequence(folder / "raw" / "rgbd_dataset_freiburg1_desk", 3)
    root = folder / "processed"
    arguments = ["--tum_dir", str(folder / "raw"), "--output_dir", str(root)]
    assert main([*arguments, "--num_workers", "1", "--max_side", "192"]) == 0
    return {"ROOT": root}


CASE = Case(
    name="TUMRGBD",
    build=build,
    spec="TUMRGBD(split='all', ROOT='{ROOT}')",
    metric=True,
    portrait=False,
)
