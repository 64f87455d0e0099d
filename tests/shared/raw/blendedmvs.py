"""BlendedMVS as its archives hold it: MVSNet's camera files, PFM depth, JPEG images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dataset_contract import Case
from PIL import Image
from world import World

from datasets_preprocess.preprocess_blendedmvs import main

# The unit of a project's depth and poses is arbitrary.
UNIT_M = 0.25
PROJECTS = ("5a618c72784780334bc1972d", "0000000000000000000000a0")
WIDE, UPRIGHT = (144, 96), (96, 144)


def camera(size: tuple[int, int]) -> np.ndarray:
    """Intrinsics of our kind, first pixel's centre at (0, 0); not central, not isotropic."""
    width, height = size
    return np.array([[120.0, 0, width / 2 + 3.3], [0, 122.0, height / 2 - 2.6], [0, 0, 1]])


def write_pfm(path: Path, depth: np.ndarray) -> None:
    """A PFM of one channel: a text header of three lines, then the rows from the bottom up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = depth.shape
    header = f"Pf\n{width} {height}\n-1.000000\n".encode()
    path.write_bytes(header + depth[::-1].astype("<f4").tobytes())


def write_camera(path: Path, intrinsics: np.ndarray, pose: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stated = intrinsics.copy()
    stated[:2, 2] += 0.5
    lines = ["extrinsic", *_rows(np.linalg.inv(pose)), "", "intrinsic", *_rows(stated), ""]
    path.write_text("\n".join([*lines, "1.5 0.0105 128 2.8335", ""]))


def write_project(
    root: Path, project: str, poses: Sequence[np.ndarray], size: tuple[int, int] = WIDE
) -> Path:
    """One project of views of the world; returns its folder."""
    folder, world = root / project, World()
    for number, pose in enumerate(poses):
        rgb, depth = world.render(pose, camera(size), size)
        name = f"{number:08d}"
        scaled = pose.copy()
        scaled[:3, 3] /= UNIT_M
        write_camera(folder / "cams" / f"{name}_cam.txt", camera(size), scaled)
        depth[:6] = 0
        write_pfm(folder / "rendered_depth_maps" / f"{name}.pfm", depth / UNIT_M)
        for suffix in ("", "_masked"):
            image = folder / "blended_images" / f"{name}{suffix}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb if not suffix else rgb * 0).save(image, quality=97, subsampling=0)
    others = " ".join(f"{other} {100.0 / other:.3f}" for other in range(1, len(poses)))
    (folder / "cams" / "pair.txt").write_text(f"{len(poses)}\n0\n{len(poses) - 1} {others}\n")
    return folder


def build(folder: Path) -> dict[str, object]:
    poses = World().poses(8)
    write_project(folder / "raw", PROJECTS[0], poses[:4])
    write_project(folder / "raw", PROJECTS[1], poses[4:], UPRIGHT)
    root = folder / "processed"
    assert main(["--blendedmvs_dir", str(folder / "raw"), "--output_dir", str(root)]) == 0
    return {"ROOT": root}


def _rows(matrix: np.ndarray) -> list[str]:
    return [" ".join(f"{value:.9f}" for value in row) for row in matrix]


CASE = Case(
    name="BlendedMVS",
    build=build,
    spec="BlendedMVS(split='all', ROOT='{ROOT}')",
    metric=False,
    scale=UNIT_M,
)
