"""Hypersim as it is downloaded: HDF5 files of poses and distances, CSV files of what is what."""

import csv
from pathlib import Path

import h5py
import numpy as np
from dataset_contract import Case
from rgbd_raw import OPENGL, write_image
from world import World

from datasets_preprocess.preprocess_hypersim import main

SIZE = (128, 96)
METRES = 0.0254
FOCAL = SIZE[0] / 2 / np.tan(np.pi / 6)
CAMERA = np.array([[FOCAL, 0, (SIZE[0] - 1) / 2], [0, FOCAL, (SIZE[1] - 1) / 2], [0, 0, 1]])


def write_hdf5(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", data=array)


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_camera(
    scene: Path, camera: str, poses: np.ndarray, intrinsics: np.ndarray = CAMERA
) -> None:
    """A camera's trajectory; frames are numbered 3, 4, ... to tell numbers from places."""
    world = World()
    numbers = np.arange(3, 3 + len(poses))
    detail = scene / "_detail" / camera
    in_opengl = poses @ OPENGL
    write_hdf5(detail / "camera_keyframe_frame_indices.hdf5", numbers)
    write_hdf5(detail / "camera_keyframe_orientations.hdf5", in_opengl[:, :3, :3])
    write_hdf5(detail / "camera_keyframe_positions.hdf5", in_opengl[:, :3, 3] / METRES)
    for number, pose in zip(numbers, poses, strict=True):
        rgb, depth = world.render(pose, intrinsics, SIZE)
        columns, rows = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
        x = (columns - intrinsics[0, 2]) / intrinsics[0, 0]
        y = (rows - intrinsics[1, 2]) / intrinsics[1, 1]
        distance = (depth * np.sqrt(x**2 + y**2 + 1)).astype(np.float32)
        distance[:, :4] = np.nan
        images, name = scene / "images", f"frame.{number:04d}"
        write_image(images / f"scene_{camera}_final_preview" / f"{name}.tonemap.jpg", rgb)
        write_hdf5(images / f"scene_{camera}_geometry_hdf5" / f"{name}.depth_meters.hdf5", distance)


def write_scene_csv(scene: Path) -> None:
    row = {"parameter_name": "meters_per_asset_unit", "parameter_value": METRES}
    write_csv(scene / "_detail" / "metadata_scene.csv", [row])


def split_row(scene: str, camera: str, number: int, split: str, reason: str = "") -> dict:
    return {
        "scene_name": scene,
        "camera_name": camera,
        "frame_id": number,
        "included_in_public_release": not reason,
        "exclude_reason": reason,
        "split_partition_name": "" if reason else split,
    }


def write_release(folder: Path) -> Path:
    poses = World().poses(7)
    parts = {"ai_001_001": ("train", poses[:5]), "ai_003_010": ("test", poses[4:])}
    rows = []
    for scene, (split, walk) in parts.items():
        write_scene_csv(folder / scene)
        write_camera(folder / scene, "cam_00", walk[:3])
        rows += [split_row(scene, "cam_00", 3 + k, split) for k in range(3)]
        if len(walk) > 3:
            write_camera(folder / scene, "cam_01", walk[3:])
            rows += [split_row(scene, "cam_01", 3 + k, split) for k in range(len(walk) - 3)]
    write_csv(folder / "metadata_images_split_scene_v1.csv", rows)
    return folder


def build(folder: Path) -> dict[str, object]:
    raw, root = write_release(folder / "raw"), folder / "processed"
    arguments = ["--hypersim_dir", str(raw), "--output_dir", str(root)]
    assert main([*arguments, "--num_workers", "1"]) == 0
    return {"ROOT": root}


CASE = Case(
    name="Hypersim",
    build=build,
    spec="Hypersim(split='train', ROOT='{ROOT}')",
    metric=True,
    portrait=False,
)
