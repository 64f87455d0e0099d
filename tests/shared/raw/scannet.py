"""ScanNet as it is downloaded: .sens files, what the SensReader exports, and the split's lists."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from dataset_contract import Case
from rgbd_raw import CAMERA, SIZE, rendered, steps, wide, write_image, write_matrix
from world import World

from datasets_preprocess.preprocess_scannet import main

COLOR_SIZE = (324, 242)
COLOR_CAMERA = np.array([[289.0, 0, 163.9], [0, 291.0, 118.6], [0, 0, 1]])

Frames = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def frames_of(world: World, number: int) -> Frames:
    """Pose, colour of the finer colour camera, and depth."""
    color = rendered(world, number, COLOR_CAMERA, COLOR_SIZE)
    return [(p, c[1], d) for c, (p, _, d) in zip(color, rendered(world, number), strict=True)]


def write_export(folder: Path, frames: Frames) -> None:
    for number, (pose, rgb, depth) in enumerate(frames):
        write_image(folder / "color" / f"{number}.jpg", rgb)
        write_image(folder / "depth" / f"{number}.png", steps(depth, 1000))
        write_matrix(folder / "pose" / f"{number}.txt", pose)
    write_matrix(folder / "intrinsic" / "intrinsic_color.txt", wide(COLOR_CAMERA))
    write_matrix(folder / "intrinsic" / "intrinsic_depth.txt", wide(CAMERA))


def write_sens(path: Path, frames: Frames, *, lost: int | None = None) -> Path:
    """A .sens file; frame ``lost`` has no pose."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sensor = b"StructureSensor"
    parts = [struct.pack("<IQ", 4, len(sensor)), sensor]
    for matrix in (wide(COLOR_CAMERA), np.eye(4), wide(CAMERA), np.eye(4)):
        parts.append(matrix.astype("<f4").tobytes())
    parts.append(struct.pack("<2i4If", 2, 1, *COLOR_SIZE, *SIZE, 1000.0))
    parts.append(struct.pack("<Q", len(frames)))
    for number, (pose, rgb, depth) in enumerate(frames):
        pose = np.full((4, 4), -np.inf) if number == lost else pose
        options = [cv2.IMWRITE_JPEG_QUALITY, 100]
        color = cv2.imencode(".jpg", rgb[..., ::-1], options)[1].tobytes()
        packed = zlib.compress(steps(depth, 1000).astype("<u2").tobytes())
        parts.append(pose.astype("<f4").tobytes())
        parts.append(struct.pack("<4Q", 33 * number, 33 * number, len(color), len(packed)))
        parts += [color, packed]
    path.write_bytes(b"".join([*parts, struct.pack("<Q", 0)]))
    return path


def write_release(folder: Path) -> Path:
    frames = frames_of(World(), 6)
    write_sens(folder / "scans" / "scene0000_00" / "scene0000_00.sens", frames[:3])
    write_export(folder / "scans" / "scene0000_01", frames[2:5])
    write_sens(folder / "scans_test" / "scene0707_00" / "scene0707_00.sens", frames[3:])
    (folder / "scannetv2_train.txt").write_text("scene0000_00\nscene0000_01\n")
    (folder / "scannetv2_val.txt").write_text("scene0011_00\n")
    (folder / "scannetv2_test.txt").write_text("scene0707_00\n")
    return folder


def build(folder: Path) -> dict[str, object]:
    raw, root = write_release(folder / "raw"), folder / "processed"
    arguments = ["--scannet_dir", str(raw), "--output_dir", str(root)]
    assert main([*arguments, "--num_workers", "1"]) == 0
    return {"ROOT": root}


CASE = Case(
    name="ScanNet",
    build=build,
    spec="ScanNet(split='train', ROOT='{ROOT}')",
    metric=True,
    portrait=False,
)
