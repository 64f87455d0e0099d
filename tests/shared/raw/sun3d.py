"""SUN3D as it is downloaded: two streams stamped with times, depth's bits rotated."""

from pathlib import Path

import numpy as np
from dataset_contract import Case
from rgbd_raw import CAMERA, rendered, steps, write_image, write_matrix
from world import World

from datasets_preprocess.preprocess_sun3d import main


def write_sequence(folder: Path, number: int) -> Path:
    frames = rendered(World(), number)
    for count, (_, rgb, depth) in enumerate(frames):
        time = 33369 * count
        stored = steps(depth, 1000)
        write_image(folder / "image" / f"{count + 1:07d}-{time + 18000:012d}.jpg", rgb)
        depth_file = folder / "depth" / f"{count + 1:07d}-{time + 11000:012d}.png"
        write_image(depth_file, (stored << 3) | (stored >> 13))
    poses = np.stack([pose[:3] for pose, _, _ in frames])
    write_matrix(folder / "extrinsics" / "20130512130736.txt", np.zeros((3, 4)))
    write_matrix(folder / "extrinsics" / "20140312090736.txt", poses.reshape(-1, 4))
    write_matrix(folder / "intrinsics.txt", CAMERA)
    return folder


def build(folder: Path) -> dict[str, object]:
    write_sequence(folder / "raw" / "hotel_umd" / "maryland_hotel1", 6)
    root = folder / "processed"
    arguments = ["--sun3d_dir", str(folder / "raw"), "--output_dir", str(root)]
    assert main([*arguments, "--num_workers", "1"]) == 0
    return {"ROOT": root}


CASE = Case(
    name="SUN3D",
    build=build,
    spec="SUN3D(split='all', ROOT='{ROOT}')",
    metric=True,
    portrait=False,
)
