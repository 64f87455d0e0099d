"""StaticThings3D as RobustMVD releases it: PNG passes, and float3 files of everything else."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dataset_contract import Case
from PIL import Image
from world import World

from datasets_preprocess.preprocess_staticthings3d import main

SIZE = (160, 96)
CAMERA = np.array([[130.0, 0, 83.2], [0, 130.0, 44.7], [0, 0, 1]])
BASELINE = 0.1
UNIT_M = 0.5
# Where the world's farthest corner would be backdrop.
FIRST_FRAME = 6


def write_float3(path: Path, array: np.ndarray) -> None:
    """A text header (the dimensions' number and sizes, fastest first), then 32-bit floats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = "".join(f"{size}\n" for size in reversed(array.shape))
    header = f"float\n{array.ndim}\n{sizes}".encode()
    path.write_bytes(header + np.ascontiguousarray(array, "<f4").tobytes())


def write_sequence(root: Path, sequence: str, poses: Sequence[np.ndarray]) -> None:
    """Views of the world by a stereo camera; the final pass is darker, so that it can be told."""
    world = World()
    for number, left in enumerate(poses, FIRST_FRAME):
        frame = f"{number:04d}"
        right = left.copy()
        right[:3, 3] += BASELINE * left[:3, 0]
        write_float3(root / "intrinsics" / sequence / f"{frame}.float3", CAMERA)
        for camera, pose in (("left", left), ("right", right)):
            rgb, depth = world.render(pose, CAMERA, SIZE)
            for kind, image in (("cleanpass", rgb), ("finalpass", (rgb * 0.6).astype(np.uint8))):
                path = root / f"frames_{kind}" / sequence / camera / f"{frame}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
            scaled = pose.copy()
            scaled[:3, 3] /= UNIT_M
            write_float3(root / "depths" / sequence / camera / f"{frame}.float3", depth / UNIT_M)
            inverse = np.linalg.inv(scaled)
            write_float3(root / "poses" / sequence / camera / f"{frame}.float3", inverse)


def build(folder: Path) -> dict[str, object]:
    poses = World().poses(4)
    write_sequence(folder / "raw", "TRAIN/A/0000", poses[:2])
    write_sequence(folder / "raw", "TRAIN/C/0749", poses[2:])
    root = folder / "processed"
    options = ["--StaticThings3D_dir", str(folder / "raw"), "--output_dir", str(root)]
    assert main([*options, "--max_overlap", "1"]) == 0
    return {"ROOT": root}


CASE = Case(
    name="StaticThings3D",
    build=build,
    spec="StaticThings3D(ROOT='{ROOT}', mask_bg='rand', render_pass='clean')",
    metric=False,
    portrait=False,
    scale=UNIT_M,
)
