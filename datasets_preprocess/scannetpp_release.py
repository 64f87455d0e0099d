"""A scene of the ScanNet++ release as a recording: posed pinhole images, depth from the scan.

See ``datasets_preprocess.preprocess_scannetpp`` for the files that are read.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from datasets_preprocess.colmap_text import (
    ColmapCamera,
    ColmapImage,
    read_cameras,
    read_images,
)
from datasets_preprocess.mesh_depth import MeshDepth
from datasets_preprocess.rgbd.pixels import read_color
from datasets_preprocess.rgbd.recording import RawFrame, Recording, RgbdFrame
from datasets_preprocess.scenes import SceneError
from datasets_preprocess.undistort import Lens, Undistortion
from dust3r.utils.pixels import read_mask

MESH = "scans/mesh_aligned_0.05.ply"
TRANSFORMS = "nerfstudio/transforms.json"

_LENS_KEYS = ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4")
# Nerfstudio's world has x and y swapped and z negated; the same matrix leads back.
_NERFSTUDIO_WORLD = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1.0]])
_OPENGL_AXES = np.diag([1.0, -1, -1, 1])


@dataclass(frozen=True)
class Capture:
    """One of the cameras that recorded a scene: the folders of its images and masks."""

    folder: str
    images: str
    masks: str


DSLR = Capture("dslr", "resized_images", "resized_anon_masks")
IPHONE = Capture("iphone", "rgb", "rgb_masks")


@dataclass(frozen=True)
class _Shot:
    """Where a frame's mask is, if there is one, and its camera's undistortion."""

    mask: Path | None
    undistortion: Undistortion


def read_scene(folder: Path, name: str, target_resolution: int, frame_step: int) -> Recording:
    """The recording of the scene in ``folder``; images at most ``target_resolution`` pixels long.

    Raises FileNotFoundError or ValueError where the scan or all cameras are missing or damaged.
    """
    mesh = folder / MESH
    recording = Recording(name, folder, "scannetpp", np.eye(3), [], one_camera=False)
    shots: dict[str, _Shot] = {}
    found = [capture for capture in (DSLR, IPHONE) if (folder / capture.folder).is_dir()]
    if not found:
        raise SceneError(f"{folder} has neither {DSLR.folder} nor {IPHONE.folder}")
    for capture in found:
        cameras, images = _read_capture(folder / capture.folder, recording)
        undistortions = {
            number: Undistortion(Lens.of_colmap(camera), target_resolution)
            for number, camera in cameras.items()
        }
        for image in sorted(images, key=lambda image: image.name)[::frame_step]:
            path = _image_file(folder / capture.folder / capture.images, image.name)
            mask = folder / capture.folder / capture.masks / f"{path.stem}.png"
            shots[path.stem] = _Shot(mask if mask.is_file() else None, undistortions[image.camera])
            recording.add(RawFrame(path.stem, path, mesh, image.pose))
    if recording.frames:
        recording.load = partial(_load, shots=shots, mesh=MeshDepth.from_file(mesh))
    return recording


def _load(frame: RawFrame, *, shots: dict[str, _Shot], mesh: MeshDepth) -> RgbdFrame:
    shot = shots[frame.name]
    undistortion = shot.undistortion
    rgb = undistortion.image(read_color(frame.color))
    depth = mesh.render(undistortion.intrinsics, frame.pose, undistortion.size)
    seen = undistortion.valid
    if shot.mask is not None:
        seen = undistortion.mask(read_mask(shot.mask))
    return RgbdFrame(rgb, np.where(seen, depth, 0), undistortion.intrinsics)


def _read_capture(
    folder: Path, recording: Recording
) -> tuple[dict[int, ColmapCamera], list[ColmapImage]]:
    """Cameras and images of one capture; blurred ones are counted in ``recording``, left out."""
    model, transforms = folder / "colmap", folder / TRANSFORMS
    stored = json.loads(transforms.read_text()) if transforms.is_file() else {}
    frames = [*stored.get("frames", []), *stored.get("test_frames", [])]
    if (model / "images.txt").is_file():
        cameras, images = read_cameras(model / "cameras.txt"), read_images(model / "images.txt")
    elif frames:
        cameras, images = {0: _nerfstudio_camera(stored)}, [_nerfstudio_image(f) for f in frames]
    else:
        raise SceneError(f"{folder} has neither colmap/images.txt nor {TRANSFORMS}")
    bad = {PurePosixPath(frame["file_path"]).name for frame in frames if frame.get("is_bad")}
    usable = []
    for image in images:
        if PurePosixPath(image.name).name in bad:
            recording.skip("marked as bad by the release", image.name)
        elif image.camera not in cameras:
            recording.skip("camera not in cameras.txt", image.name)
        else:
            usable.append(image)
    return {image.camera: cameras[image.camera] for image in usable}, usable


def _nerfstudio_camera(stored: dict) -> ColmapCamera:
    if stored.get("camera_model") != "OPENCV_FISHEYE":
        raise SceneError(
            f"{TRANSFORMS}: expected camera_model OPENCV_FISHEYE, got {stored.get('camera_model')}"
        )
    params = tuple(float(stored[key]) for key in _LENS_KEYS)
    return ColmapCamera("OPENCV_FISHEYE", int(stored["w"]), int(stored["h"]), params)


def _nerfstudio_image(frame: dict) -> ColmapImage:
    pose = _NERFSTUDIO_WORLD @ np.array(frame["transform_matrix"], np.float64) @ _OPENGL_AXES
    return ColmapImage(frame["file_path"], 0, pose)


def _image_file(folder: Path, name: str) -> Path:
    """A model's names may begin with a folder of the machine that it was made on."""
    path = folder / name
    return path if path.is_file() else folder / PurePosixPath(name).name
