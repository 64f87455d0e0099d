"""Habitat's views as DUSt3R's rendering leaves them: five of each key, depth in EXR files."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dataset_contract import Case
from PIL import Image
from world import World

from datasets_preprocess.preprocess_habitat import main
from dust3r.utils.exr import write_exr_depth

SIZE = (128, 128)
CAMERA = np.array([[110.0, 0, 63.5], [0, 110.0, 63.5], [0, 0, 1]])


def write_key(folder: Path, key: str, poses: Sequence[np.ndarray], first: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for view, pose in enumerate(poses, first):
        rgb, depth = World().render(pose, CAMERA, SIZE)
        image = folder / f"{key}_{view}.jpeg"
        Image.fromarray(rgb).save(image, quality=97, subsampling=0)
        write_exr_depth(folder / f"{key}_{view}_depth.exr", depth)
        (folder / f"{key}_{view}_camera_params.json").write_text(json.dumps(camera(pose)))


def camera(pose: np.ndarray) -> dict[str, list]:
    return {
        "camera_intrinsics": CAMERA.tolist(),
        "R_cam2world": pose[:3, :3].tolist(),
        "t_cam2world": pose[:3, 3].tolist(),
    }


def central_first(poses: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Five neighbours, the middle one first."""
    return [poses[place] for place in (2, 0, 1, 3, 4)]


def write_views(root: Path) -> Path:
    poses = World().poses(10)
    write_key(root / "hm3d" / "00006-HkseAnWCgqk", "00000000", central_first(poses[:5]))
    write_key(root / "gibson" / "Adrian", "00000003", central_first(poses[5:]))
    return root


def build(folder: Path) -> dict[str, object]:
    root = write_views(folder / "habitat")
    assert main(["--output_dir", str(root)]) == 0
    return {"ROOT": root}


CASE = Case(
    name="Habitat",
    build=build,
    spec="Habitat(split='all', ROOT='{ROOT}')",
    metric=True,
    portrait=False,
    depth_tolerance=0.01,
)
