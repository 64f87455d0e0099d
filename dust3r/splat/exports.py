"""Exports of reconstructions as views: COLMAP models and nerfstudio's transforms.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from dust3r.export.colmap import HALF_PIXEL
from dust3r.export.frames import IMAGES
from dust3r.export.nerfstudio import OPENGL_AXES, TRANSFORMS
from dust3r.splat.views import View, photograph_key
from dust3r.utils.colmap_files import check_binary_model

LAYOUT = (
    "a folder with a COLMAP model (cameras, images and points3D, .bin or .txt, in sparse/0, "
    "sparse or the folder itself) or nerfstudio's transforms.json, and the photographs"
)

_PLACES = ("sparse/0", "sparse", ".")
_UNDISTORT = (
    "splats need pinhole cameras: undistort the images (colmap image_undistorter), and make both "
    "exports of the undistorted ones"
)
_NERFSTUDIO_LENS = ("k1", "k2", "k3", "k4", "p1", "p2")
_NERFSTUDIO_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE")


@dataclass(frozen=True)
class Export:
    """What ``open_export`` found.

    Attributes:
        root: the folder.
        model: the folder of a COLMAP model, or a transforms.json.
        views: in the order of names.
    """

    root: Path
    model: Path
    views: tuple[View, ...]

    @property
    def is_colmap(self) -> bool:
        return self.model.is_dir()

    @property
    def model_name(self) -> str:
        """Its path below ``root``."""
        return self.model.relative_to(self.root).as_posix()


def open_export(path: str | Path, images: str | Path | None = None) -> Export:
    """The views of an export.

    Args:
        path: a folder as ``LAYOUT`` says, COLMAP first where it holds both; or a transforms.json.
        images: folder of the photographs where the COLMAP model has no ``images`` beside it; names
            need not be spelt alike.

    Raises:
        FileNotFoundError: there is no such folder, no model in it, or a photograph is missing.
        ValueError: the model cannot be read, has no images with poses, or its cameras have
            distortion.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".json":
        return _checked(path.parent, path, _nerfstudio_views(path))
    if not path.is_dir():
        raise FileNotFoundError(f"no export {path}: give {LAYOUT}")
    for place in _PLACES:
        model = path / place
        if any((model / f"cameras.{suffix}").is_file() for suffix in ("bin", "txt")):
            return _checked(path, model, _colmap_views(path, model, images))
    if (path / TRANSFORMS).is_file():
        return _checked(path, path / TRANSFORMS, _nerfstudio_views(path / TRANSFORMS))
    raise FileNotFoundError(f"{path} holds no reconstruction: give {LAYOUT}")


def read_colmap(model: Path) -> pycolmap.Reconstruction:
    """Raises ValueError where the model is damaged."""
    check_binary_model(model)
    try:
        return pycolmap.Reconstruction(model)
    except Exception as error:
        # Its readers raise errors of many kinds at damaged files.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read the COLMAP model {model}: {reason}") from error


def read_transforms(path: Path) -> dict[str, Any]:
    """Raises ValueError where the file is no transforms.json."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; export it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise ValueError(f"{path} has no list of 'frames'; give nerfstudio's transforms.json")
    return content


def _checked(root: Path, model: Path, views: list[View]) -> Export:
    if not views:
        raise ValueError(f"{model} has no image with a pose")
    for view in views:
        turn = view.pose[:3, :3]
        orthogonal = np.allclose(turn @ turn.T, np.eye(3), atol=1e-3)
        if not (np.isfinite(view.pose).all() and orthogonal and np.linalg.det(turn) > 0):
            raise ValueError(f"the pose of {view.name} in {model} is no rigid motion: {view.pose}")
        if not (view.intrinsics[0, 0] > 0 and view.intrinsics[1, 1] > 0):
            raise ValueError(f"the focals of {view.name} in {model} are not positive")
        if not view.path.is_file():
            raise FileNotFoundError(
                f"no photograph {view.path}, which {model} names; put it there, or say with "
                "--images where the photographs are"
            )
    return Export(root, model, tuple(sorted(views, key=lambda view: view.name)))


def _colmap_views(root: Path, model: Path, images: str | Path | None) -> list[View]:
    reconstruction = read_colmap(model)
    find = _finder(root / IMAGES, images)
    views = []
    for image in reconstruction.images.values():
        if not image.has_pose:
            continue
        camera = reconstruction.cameras[image.camera_id]
        if not _is_pinhole(camera):
            raise ValueError(
                f"the camera of {image.name} in {model} is {camera.model.name} with parameters "
                f"{[round(float(p), 4) for p in camera.params]}; {_UNDISTORT}"
            )
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().inverse().matrix()
        intrinsics = np.array(camera.calibration_matrix(), np.float64)
        intrinsics[:2, 2] -= HALF_PIXEL
        size = (int(camera.width), int(camera.height))
        views.append(View(image.name, find(image.name), size, intrinsics, pose, size))
    return views


def _is_pinhole(camera: pycolmap.Camera) -> bool:
    if camera.model.name in ("PINHOLE", "SIMPLE_PINHOLE"):
        return True
    extra = np.asarray(camera.params)[list(camera.extra_params_idxs())]
    return "FISHEYE" not in camera.model.name and not extra.any()


def _finder(folder: Path, other: str | Path | None) -> Callable[[str], Path]:
    """Paths of photographs by name: in the model's own folder, else by their letters elsewhere."""
    if folder.is_dir() or other is None:
        return lambda name: folder / name
    if not Path(other).is_dir():
        raise FileNotFoundError(f"no folder of images {other}")
    files = [path for path in sorted(Path(other).rglob("*")) if path.is_file()]
    by_key = {photograph_key(path.name): path for path in files}

    def find(name: str) -> Path:
        exact = Path(other) / name
        return exact if exact.is_file() else by_key.get(photograph_key(name), exact)

    return find


def _nerfstudio_views(path: Path) -> list[View]:
    content = read_transforms(path)
    views = []
    for number, frame in enumerate(content["frames"]):
        told = {**content, **frame}
        name = str(told.get("file_path", f"frame {number}"))
        try:
            pose = np.array(told["transform_matrix"], np.float64).reshape(4, 4) @ OPENGL_AXES
            size = int(told["w"]), int(told["h"])
            fx, fy, cx, cy = (float(told[key]) for key in ("fl_x", "fl_y", "cx", "cy"))
            lens = [float(told.get(key, 0)) for key in _NERFSTUDIO_LENS]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name} in {path} lacks what a camera needs ({error!r}): transform_matrix, w, h, "
                "fl_x, fl_y, cx and cy, of the frame or of all"
            ) from error
        model = told.get("camera_model", "OPENCV")
        if any(lens) or model not in _NERFSTUDIO_MODELS:
            raise ValueError(f"the camera of {name} in {path} is {model} {lens}; {_UNDISTORT}")
        intrinsics = np.array([[fx, 0, cx - HALF_PIXEL], [0, fy, cy - HALF_PIXEL], [0, 0, 1]])
        views.append(View(name, path.parent / name, size, intrinsics, pose, size))
    return views
