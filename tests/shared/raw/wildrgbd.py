"""WildRGB-D as it is downloaded, of a ball in a room."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from dataset_contract import Case
from PIL import Image
from world import World

import dust3r.datasets.wildrgbd  # noqa: F401  (registers the class)
from datasets_preprocess.preprocess_wildrgbd import main

WORLD = World(2)
TALL, WIDE = (150, 200), (200, 150)


def write_wildrgbd(
    root: Path,
    scenes: dict[str, tuple[int, int]],
    *,
    category: str = "ball",
    numbers: Sequence[int] = range(8),
    held_out: Sequence[str] | None = None,
) -> Path:
    """Scenes of the given (width, height); ``held_out`` names those of the release's 'val'."""
    for place, (name, (width, height)) in enumerate(scenes.items()):
        folder = root / category / "scenes" / name
        intrinsics = np.array([[178.0, 0, width / 2 - 2.5], [0, 181, height / 2 + 4.5], [0, 0, 1]])
        lines = []
        poses = WORLD.poses(len(scenes) * len(numbers))[place * len(numbers) :]
        for number, pose in zip(numbers, poses, strict=False):
            rgb, depth = WORLD.render(pose, intrinsics, (width, height))
            mask = WORLD.object_mask(pose, intrinsics, (width, height))
            steps = (1000 * depth).round().astype(np.uint16)
            steps[:6, :6] = 0
            for kind in ("rgb", "depth", "masks"):
                (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(folder / "rgb" / f"{number:05d}.png")
            assert cv2.imwrite(str(folder / "depth" / f"{number:05d}.png"), steps)
            Image.fromarray(255 * mask.astype(np.uint8)).save(
                folder / "masks" / f"{number:05d}.png"
            )
            lines.append(" ".join([str(number), *(repr(float(value)) for value in pose.ravel())]))
        (folder / "cam_poses.txt").write_text("\n".join(lines))
        # Column by column, as the recording program writes it.
        metadata = {"w": width, "h": height, "K": intrinsics.T.ravel().tolist()}
        (folder / "metadata").write_text(json.dumps(metadata))
    held_out = list(scenes)[-1:] if held_out is None else held_out
    lists = {"train": [name for name in scenes if name not in held_out], "val": list(held_out)}
    (root / category / "camera_eval_list.json").write_text(json.dumps(lists))
    return root


def build(folder: Path) -> dict[str, object]:
    raw = write_wildrgbd(folder / "raw", {"scene_000": TALL, "scene_001": WIDE, "scene_002": TALL})
    out = folder / "processed"
    assert main(["--wildrgbd_dir", str(raw), "--output_dir", str(out), "--img_size", "110"]) == 0
    return {"ROOT": out}


CASE = Case(
    "WildRGBD",
    build,
    "WildRGBD(split='all', ROOT='{ROOT}', mask_bg=False)",
    metric=True,
    world=WORLD,
)
