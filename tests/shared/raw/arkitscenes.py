"""ARKitScenes as its raw release is laid out: images, depth and poses, each at their times."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from dataset_contract import Case
from scipy.spatial.transform import Rotation
from world import World

from datasets_preprocess.preprocess_arkitscenes import main

SIZE, DEPTH_SIZE = (320, 240), (128, 96)
CAMERA = np.array([[260.0, 0, 165.2], [0, 262.0, 114.9], [0, 0, 1]])
START = 6791.123
# Held level, and with the tablet's right side, its left side, its top towards the floor.
VIDEOS = {"Training/40753679": 0, "Training/40753686": 90, "Validation/41069021": -90}


def shrunk(intrinsics: np.ndarray, size: tuple[int, int], to: tuple[int, int]) -> np.ndarray:
    """Intrinsics of the same view on another grid."""
    scale = np.array(to) / size
    small = intrinsics.copy()
    small[:2, :2] *= scale[:, None]
    small[:2, 2] = (small[:2, 2] + 0.5) * scale - 0.5
    return small


def write_video(folder: Path, poses: Sequence[np.ndarray], roll_deg: float) -> Path:
    """A video whose camera is rolled about its axis; times of the assets differ a little."""
    video, world = folder.name, World()
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", roll_deg, degrees=True).as_matrix()
    for kind in ("vga_wide", "vga_wide_intrinsics", "lowres_depth"):
        (folder / kind).mkdir(parents=True)
    lines = []
    for number, pose in enumerate(poses):
        pose, time = pose @ turn, START + 0.1 * number
        name = f"{video}_{time:.3f}"
        rgb, _ = world.render(pose, CAMERA, SIZE)
        cv2.imwrite(str(folder / "vga_wide" / f"{name}.png"), rgb[..., ::-1])
        stated = [*SIZE, CAMERA[0, 0], CAMERA[1, 1], CAMERA[0, 2], CAMERA[1, 2]]
        (folder / "vga_wide_intrinsics" / f"{video}_{time + 0.001:.3f}.pincam").write_text(
            " ".join(str(value) for value in stated)
        )
        _, depth = world.render(pose, shrunk(CAMERA, SIZE, DEPTH_SIZE), DEPTH_SIZE)
        cv2.imwrite(
            str(folder / "lowres_depth" / f"{video}_{time + 0.004:.3f}.png"),
            (1000 * depth).round().astype(np.uint16),
        )
        inverse = np.linalg.inv(pose)
        vector = Rotation.from_matrix(inverse[:3, :3]).as_rotvec()
        lines.append(" ".join(f"{value:.9f}" for value in (time, *vector, *inverse[:3, 3])))
    (folder / "lowres_wide.traj").write_text("\n".join([*lines, ""]))
    return folder


def write_release(root: Path) -> Path:
    poses = World().poses(9)
    for number, (name, roll) in enumerate(VIDEOS.items()):
        write_video(root / name, poses[3 * number : 3 * number + 3], roll)
    return root


def run(raw: Path, root: Path, *options: str) -> int:
    folders = ["--arkitscenes_dir", str(raw), "--output_dir", str(root), "--num_workers", "1"]
    return main([*folders, "--frame_step", "1", *options])


def build(folder: Path) -> dict[str, object]:
    root = folder / "processed"
    assert run(write_release(folder / "raw"), root) == 0
    return {"ROOT": root}


CASE = Case(
    name="ARKitScenes",
    build=build,
    spec="ARKitScenes(split='all', ROOT='{ROOT}')",
    metric=True,
    # Half a pixel of a small view is up to a hundredth of the depth at its border.
    depth_tolerance=0.01,
)
