"""7-Scenes as it is unpacked: scenes of sequences, and the files of the official split."""

from pathlib import Path

import numpy as np
from dataset_contract import Case
from rgbd_raw import CAMERA, rendered, steps, write_image, write_matrix
from world import World

from datasets_preprocess.preprocess_7scenes import main


def write_sequence(folder: Path, frames: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    for number, (pose, rgb, depth) in enumerate(frames):
        stored = steps(depth, 1000)
        stored[:3] = 65535
        write_image(folder / f"frame-{number:06d}.color.png", rgb)
        write_image(folder / f"frame-{number:06d}.depth.png", stored)
        write_matrix(folder / f"frame-{number:06d}.pose.txt", pose)


def write_release(folder: Path) -> Path:
    frames = rendered(World(), 8)
    for name, part in (("seq-01", frames[:4]), ("seq-02", frames[2:6]), ("seq-03", frames[4:])):
        write_sequence(folder / "chess" / name, part)
    write_matrix(folder / "chess" / "camera-intrinsics.txt", CAMERA)
    (folder / "chess" / "TrainSplit.txt").write_text("sequence1\nsequence3\n")
    (folder / "chess" / "TestSplit.txt").write_text("sequence2\n")
    return folder


def build(folder: Path) -> dict[str, object]:
    raw, root = write_release(folder / "raw"), folder / "processed"
    arguments = ["--sevenscenes_dir", str(raw), "--output_dir", str(root)]
    assert main([*arguments, "--num_workers", "1"]) == 0
    return {"ROOT": root}


CASE = Case(
    name="SevenScenes",
    build=build,
    spec="SevenScenes(split='train', ROOT='{ROOT}')",
    metric=True,
    portrait=False,
)
