"""ScanNet++ as its release is laid out: fisheye photographs, a phone's video, a laser scan."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from dataset_contract import Case
from PIL import Image
from scipy.spatial.transform import Rotation
from world import World

from datasets_preprocess.preprocess_scannetpp import main

DSLR_SIZE, PHONE_SIZE = (192, 128), (120, 160)
# fx, fy, cx, cy with the first pixel's corner at (0, 0), then k1 to k4, or k1, k2, p1, p2.
DSLR = (82.0, 81.5, 97.3, 62.6, -0.021, 0.006, -0.003, 0.0004)
PHONE = (118.0, 118.4, 61.1, 78.8, 0.06, -0.05, 0.0012, -0.0009)
SCENES = ("036bce3393", "a24f64f7fb")


def lens_rays(params: Sequence[float], size: tuple[int, int], fisheye: bool) -> np.ndarray:
    """Rays (H, W, 3), z = 1, of the pixels' centres, from the models' own equations."""
    fx, fy, cx, cy, *distortion = params
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    seen = np.stack([(x - cx) / fx, (y - cy) / fy], -1)
    straight = seen.copy()
    for _ in range(60):
        # Both models say where a straight ray is seen; the difference corrects the guess.
        straight += seen - (_fisheye if fisheye else _radial)(straight, *distortion)
    return np.concatenate([straight, np.ones_like(straight[..., :1])], -1)


def write_capture(
    folder: Path,
    images: str,
    names: Sequence[str],
    poses: Sequence[np.ndarray],
    model: tuple[str, Sequence[float], tuple[int, int]],
) -> None:
    """Images of one camera and its COLMAP model."""
    kind, params, size = model
    rays = lens_rays(params, size, kind == "OPENCV_FISHEYE")
    (folder / "colmap").mkdir(parents=True)
    (folder / images).mkdir()
    lines = ["# Image list with two lines of data per image:"]
    for number, (name, pose) in enumerate(zip(names, poses, strict=True), 1):
        colours, _ = World().render_rays(pose, rays)
        Image.fromarray(colours).save(folder / images / name, quality=98, subsampling=0)
        inverse = np.linalg.inv(pose)
        x, y, z, w = Rotation.from_matrix(inverse[:3, :3]).as_quat()
        numbers = " ".join(f"{value:.12f}" for value in (w, x, y, z, *inverse[:3, 3]))
        lines += [f"{number} {numbers} 1 {name}", "12.5 30.25 -1" if number % 2 else ""]
    (folder / "colmap" / "images.txt").write_text("\n".join([*lines, ""]))
    stated = " ".join(str(value) for value in params)
    (folder / "colmap" / "cameras.txt").write_text(
        f"# Camera list\n1 {kind} {size[0]} {size[1]} {stated}\n"
    )


def write_transforms(folder: Path, names: Sequence[str], poses: Sequence[np.ndarray]) -> None:
    """The same cameras as nerfstudio has them: OpenGL's axes, a world with its axes exchanged."""
    frames = []
    for name, pose in zip(names, poses, strict=True):
        matrix = pose.copy()
        matrix[:3, 1:3] *= -1
        matrix = matrix[[1, 0, 2, 3]]
        matrix[2] *= -1
        frames.append({"file_path": name, "transform_matrix": matrix.tolist(), "is_bad": False})
    keys = ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4")
    stored = dict(zip(keys, DSLR, strict=True)) | {"camera_model": "OPENCV_FISHEYE"}
    stored |= {"w": DSLR_SIZE[0], "h": DSLR_SIZE[1], "frames": frames[:-1]}
    (folder / "nerfstudio").mkdir(parents=True, exist_ok=True)
    (folder / "nerfstudio" / "transforms.json").write_text(
        json.dumps(stored | {"test_frames": frames[-1:]})
    )


def write_scene(root: Path, scene: str, dslr: Sequence[np.ndarray], phone=()) -> Path:
    """One scene; returns its folder."""
    folder = root / "data" / scene
    (folder / "scans").mkdir(parents=True)
    World().mesh().export(folder / "scans" / "mesh_aligned_0.05.ply")
    names = [f"DSC{number:05d}.JPG" for number in range(len(dslr))]
    lens = ("OPENCV_FISHEYE", DSLR, DSLR_SIZE)
    write_capture(folder / "dslr", "resized_images", names, dslr, lens)
    write_transforms(folder / "dslr", names, dslr)
    masks = folder / "dslr" / "resized_anon_masks"
    masks.mkdir()
    keep = np.full(DSLR_SIZE[::-1], 255, np.uint8)
    keep[:20, :30] = 0
    cv2.imwrite(str(masks / "DSC00000.png"), keep)
    if len(phone):
        names = [f"frame_{10 * number:06d}.jpg" for number in range(len(phone))]
        write_capture(folder / "iphone", "rgb", names, phone, ("OPENCV", PHONE, PHONE_SIZE))
    return folder


def write_release(root: Path) -> Path:
    poses = World().poses(9)
    write_scene(root, SCENES[0], poses[:3], poses[3:6])
    write_scene(root, SCENES[1], poses[6:])
    (root / "splits").mkdir()
    for split, scene in zip(("train", "val"), SCENES, strict=True):
        (root / "splits" / f"nvs_sem_{split}.txt").write_text(f"{scene}\n00notthere\n")
    return root


def run(raw: Path, root: Path, *options: str) -> int:
    folders = ["--scannetpp_dir", str(raw), "--output_dir", str(root)]
    return main([*folders, "--num_workers", "1", *options])


def build(folder: Path) -> dict[str, object]:
    root = folder / "processed"
    assert run(write_release(folder / "raw"), root, "--target_resolution", "160") == 0
    return {"ROOT": root}


def _fisheye(straight: np.ndarray, k1: float, k2: float, k3: float, k4: float) -> np.ndarray:
    radius = np.maximum(np.linalg.norm(straight, axis=-1, keepdims=True), 1e-9)
    theta = np.arctan(radius)
    bent = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
    return straight * bent / radius


def _radial(straight: np.ndarray, k1: float, k2: float, p1: float, p2: float) -> np.ndarray:
    x, y = straight[..., 0], straight[..., 1]
    r2 = x**2 + y**2
    factor = k1 * r2 + k2 * r2**2
    return np.stack(
        [
            x + x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
            y + y * factor + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
        ],
        -1,
    )


CASE = Case(
    name="ScanNetpp",
    build=build,
    spec="ScanNetpp(split='all', ROOT='{ROOT}')",
    metric=True,
    # Half a pixel of a small view through so wide a lens is a hundredth of the depth at its border.
    depth_tolerance=0.01,
)
