"""CO3D version 2 as it is downloaded, of a ball in a room."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dataset_contract import Case
from PIL import Image
from world import World

import dust3r.datasets.co3d  # noqa: F401  (registers the class)
from datasets_preprocess.preprocess_co3d import main

WORLD = World(1)
SCALE = 2.5
FRAME = np.array([[0, 0, 1, 0.3], [1, 0, 0, -0.2], [0, 1, 0, 0.9], [0, 0, 0, 1.0]])
WIDE, TALL = (200, 150), (150, 200)
_SCALE_ADJUSTMENT = 0.37


def write_co3d(
    root: Path,
    sequences: dict[str, tuple[int, int]],
    *,
    category: str = "ball",
    numbers: Sequence[int] = (1, 2, 3, 5, 6, 7, 8, 9),
    splits: dict[str, Sequence[str]] | None = None,
    quality: dict[str, float | None] | None = None,
    set_list: str = "fewview_dev",
) -> Path:
    """Sequences of the given (width, height); ``splits`` names those of 'train' and 'test'."""
    frames, folder = [], root / category
    for place, (name, size) in enumerate(sequences.items()):
        form = ("ndc_isotropic", "ndc_norm_image_bounds")[place % 2]
        poses = WORLD.poses(len(sequences) * len(numbers))[place * len(numbers) :]
        for number, pose in zip(numbers, poses, strict=False):
            path = f"{category}/{name}/{{}}/frame{number:06d}{{}}"
            frames.append(_frame(root, path, size, pose, form, name, number))
    _write_jgz(folder / "frame_annotations.jgz", frames)
    scores = {name: 0.9 for name in sequences} | (quality or {})
    entries = [
        {"sequence_name": name, "category": category, "viewpoint_quality_score": score}
        for name, score in scores.items()
    ]
    _write_jgz(folder / "sequence_annotations.jgz", entries)
    splits = {"train": list(sequences)[:-1], "test": list(sequences)[-1:]} if not splits else splits
    listed = {
        split: [
            [frame["sequence_name"], frame["frame_number"], frame["image"]["path"]]
            for frame in frames
            if frame["sequence_name"] in names
        ]
        for split, names in splits.items()
    }
    write_set_list(folder, set_list, {"val": [], **listed})
    return root


def write_set_list(folder: Path, name: str, content: dict[str, list]) -> None:
    (folder / "set_lists").mkdir(exist_ok=True)
    (folder / "set_lists" / f"set_lists_{name}.json").write_text(json.dumps(content))


def build(folder: Path) -> dict[str, object]:
    sequences = {"110_1_2": WIDE, "111_3_4": TALL, "112_5_6": WIDE}
    raw = write_co3d(folder / "raw", sequences)
    out = folder / "processed"
    assert main(["--co3d_dir", str(raw), "--output_dir", str(out), "--img_size", "110"]) == 0
    return {"ROOT": out}


CASE = Case(
    "Co3d",
    build,
    "Co3d(split='all', ROOT='{ROOT}', mask_bg=False)",
    metric=False,
    world=WORLD,
    frame=FRAME,
    scale=SCALE,
)


def _frame(
    root: Path,
    path: str,
    size: tuple[int, int],
    pose: np.ndarray,
    form: str,
    sequence: str,
    number: int,
) -> dict:
    """Write a frame's files; its annotation."""
    width, height = size
    intrinsics = np.array([[180.0, 0, width / 2 + 2.5], [0, 184, height / 2 - 3.5], [0, 0, 1]])
    rgb, depth = WORLD.render(pose, intrinsics, size)
    mask = WORLD.object_mask(pose, intrinsics, size)
    steps = (depth / SCALE / _SCALE_ADJUSTMENT).astype(np.float16)
    reliable = np.full((height, width), 255, np.uint8)
    reliable[:8, :8] = 0
    steps[:8, :8], steps[8:12, :8] = 0.1, np.inf
    image, stored, where, shown = (
        path.format(*kind)
        for kind in (
            ("images", ".jpg"),
            ("depths", ".jpg.geometric.png"),
            ("depth_masks", ".png"),
            ("masks", ".png"),
        )
    )
    for name in (image, stored, where, shown):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(root / image, quality=100, subsampling=0)
    Image.fromarray(steps.view(np.uint16)).save(root / stored)
    Image.fromarray(reliable).save(root / where)
    Image.fromarray(np.where(mask, 200, 10).astype(np.uint8)).save(root / shown)
    there = np.linalg.inv(FRAME) @ pose
    camera_of_world = there[:3, :3].T
    # Rows, x to the left, y up.
    turned = (np.diag([-1.0, -1, 1]) @ camera_of_world).T
    unit = np.full(2, min(size) / 2) if form == "ndc_isotropic" else np.array(size) / 2
    # Half a pixel more: the first pixel's centre is (0.5, 0.5) there.
    middle = intrinsics[:2, 2] + 0.5
    return {
        "sequence_name": sequence,
        "frame_number": number,
        "frame_timestamp": 0.2 * number,
        "image": {"path": image, "size": [height, width]},
        "depth": {"path": stored, "scale_adjustment": _SCALE_ADJUSTMENT, "mask_path": where},
        "mask": {"path": shown, "mass": float(mask.sum())},
        "viewpoint": {
            "R": turned.tolist(),
            "T": (-(there[:3, 3] / SCALE) @ turned).tolist(),
            "focal_length": (intrinsics[[0, 1], [0, 1]] / unit).tolist(),
            "principal_point": ((np.array(size) / 2 - middle) / unit).tolist(),
            "intrinsics_format": form,
        },
        "meta": {},
    }


def _write_jgz(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        json.dump(content, file)
