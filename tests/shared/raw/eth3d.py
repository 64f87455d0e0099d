"""ETH3D as it is unpacked: COLMAP's text files, raw float depth of the distorted images."""

from pathlib import Path

import numpy as np
import pycolmap
from dataset_contract import Case
from lens import render_through
from rgbd_raw import write_image
from scipy.spatial.transform import Rotation
from world import World

from datasets_preprocess.preprocess_eth3d import main

# THIN_PRISM_FISHEYE: fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1, as wide as the release's lenses.
LENS = pycolmap.Camera(
    model="THIN_PRISM_FISHEYE",
    width=240,
    height=160,
    params=[137.0, 137.2, 121.3, 78.6, 0.22, -0.18, 3e-4, -2e-4, 0.19, -0.03, 1e-4, -3e-4],
)
# Two undistorted cameras, as where the zoom was touched: another size and place of the centre.
PINHOLES = [
    pycolmap.Camera(model="PINHOLE", width=248, height=164, params=[137.1, 137.3, 125.4, 80.1]),
    pycolmap.Camera(model="PINHOLE", width=236, height=168, params=[139.1, 139.4, 117.4, 86.1]),
]


def lens_rays(pixels: np.ndarray) -> np.ndarray:
    return LENS.cam_from_img(pixels + 0.5)[:, :2]


def write_model(folder: Path, cameras: list[pycolmap.Camera], rows: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Camera list with one line of data per camera:"]
    for number, camera in enumerate(cameras):
        values = " ".join(f"{value:.9f}" for value in camera.params)
        lines.append(f"{number} {camera.model.name} {camera.width} {camera.height} {values}")
    (folder / "cameras.txt").write_text("\n".join(lines) + "\n")
    text = "".join(f"{row}\n\n" for row in rows)
    (folder / "images.txt").write_text(f"# Image list with two lines of data per image:\n{text}")
    (folder / "points3D.txt").write_text("# 3D point list\n")


def write_scene(folder: Path, number: int, scale: float = 1.0) -> Path:
    """A scene of the world, ``scale`` times as large."""
    world = World()
    undistorted, distorted = [], []
    for count, pose in enumerate(world.poses(number)):
        name, used = f"DSC_{286 + count:04d}.JPG", count % 2
        pinhole = PINHOLES[used]
        matrix = pinhole.calibration_matrix()
        matrix[:2, 2] -= 0.5
        rgb, _ = world.render(pose, matrix, (pinhole.width, pinhole.height))
        write_image(folder / "images" / "dslr_images_undistorted" / name, rgb)
        size = (LENS.width, LENS.height)
        _, depth = render_through(world, pose, size, 137.0, lens_rays, finer=2)
        depth[:, :8] = np.inf
        path = folder / "ground_truth_depth" / "dslr_images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (scale * depth).astype("<f4").tofile(path)
        inverse = np.linalg.inv(pose)
        inverse[:3, 3] *= scale
        x, y, z, w = Rotation.from_matrix(inverse[:3, :3]).as_quat()
        values = " ".join(f"{value:.12f}" for value in (w, x, y, z, *inverse[:3, 3]))
        undistorted.append(f"{count + 1} {values} {used} dslr_images_undistorted/{name}")
        distorted.append(f"{count + 1} {values} 0 dslr_images/{name}")
    write_model(folder / "dslr_calibration_undistorted", PINHOLES, undistorted)
    write_model(folder / "dslr_calibration_jpg", [LENS], distorted)
    return folder


def build(folder: Path) -> dict[str, object]:
    write_scene(folder / "raw" / "courtyard", 3)
    root = folder / "processed"
    arguments = ["--eth3d_dir", str(folder / "raw"), "--output_dir", str(root)]
    assert main([*arguments, "--num_workers", "1", "--max_side", "200"]) == 0
    return {"ROOT": root}


CASE = Case(
    name="ETH3D",
    build=build,
    spec="ETH3D(split='all', ROOT='{ROOT}')",
    metric=True,
    portrait=False,
)
