"""ETH3D's high-resolution multi-view scenes to the processed layout.

    python -m datasets_preprocess.preprocess_eth3d --eth3d_dir RAW --output_dir ROOT

RAW holds the training scenes, unpacked from the archives ``dslr_undistorted``, ``dslr_jpg`` (of
which the calibration is needed) and ``dslr_depth``:
``<scene>/images/dslr_images_undistorted/*.JPG``, ``<scene>/dslr_calibration_undistorted`` (COLMAP's
text files, PINHOLE), ``<scene>/dslr_calibration_jpg`` (THIN_PRISM_FISHEYE) and
``<scene>/ground_truth_depth/dslr_images/*.JPG``: no JPEG files but height x width float32, z in
metres of the distorted images, infinite where there is none. Documented on the data set's page
(Schoeps et al., CVPR 2017). Depth is read where each pixel of an undistorted image lies in the
distorted one; it is written with 256 steps a metre, for scenes are up to 100 m deep.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pycolmap

from datasets_preprocess.rgbd.frames import resized
from datasets_preprocess.rgbd.pixels import read_color, resample_depth
from datasets_preprocess.rgbd.recording import (
    RawFrame,
    Recording,
    RgbdFrame,
    intrinsics_matrix,
)
from datasets_preprocess.rgbd.scenes import (
    DEFAULT_MAX_PAIRS,
    Source,
    preprocess_sources,
    require_folder,
    scene_parser,
)
from datasets_preprocess.rgbd.settings import Settings
from datasets_preprocess.scenes import SceneError, run_command
from dust3r.datasets.eth3d import ETH3D

STEPS_PER_METRE = 256
_MAX_SIDE = 1600
_UNDISTORTED, _DISTORTED = "dslr_calibration_undistorted", "dslr_calibration_jpg"
_NO_PIXEL = -10.0


@dataclass(frozen=True)
class Eth3dFrame(RawFrame):
    """A frame with the cameras of its undistorted and of its distorted image."""

    pinhole: pycolmap.Camera
    lens: pycolmap.Camera


def main(argv: list[str] | None = None) -> int:
    """Command line; see ``--help``."""
    defaults = Settings(max_pairs=DEFAULT_MAX_PAIRS, max_side=_MAX_SIDE)
    parser = scene_parser("ETH3D to the processed layout, which ETH3D reads.", defaults)
    parser.add_argument("--eth3d_dir", type=Path, required=True, help="folder of the scenes")
    return run_command(_run, parser, argv)


def find_scenes(root: Path) -> list[Source]:
    """The scenes right below ``root``: folders with images that are undistorted."""
    folders = sorted(path.parent for path in root.glob(f"*/{_UNDISTORTED}"))
    return [Source(path.name, path) for path in folders]


def read_scene(source: Source, settings: Settings) -> Recording:
    """The frames of a scene, with depth to be undistorted on reading.

    Raises FileNotFoundError where a calibration is missing, ValueError where it is damaged or its
    undistorted cameras are no pinholes.
    """
    folder = source.folder
    pinholes, lenses = (_model(folder / part) for part in (_UNDISTORTED, _DISTORTED))
    cameras = {
        Path(image.name).name: lenses.cameras[image.camera_id] for image in lenses.images.values()
    }
    recording = Recording(source.name, folder, "eth3d", np.eye(3), [])
    recording.depth_unit, recording.one_camera = STEPS_PER_METRE, False
    recording.load = partial(_load, max_side=settings.max_side)
    images = sorted(pinholes.images.values(), key=lambda image: image.name)
    for image in images[:: settings.frame_step]:
        name = Path(image.name).name
        if name not in cameras:
            recording.skip(f"not in {_DISTORTED}", name)
            continue
        pinhole = pinholes.cameras[image.camera_id]
        if pinhole.model != pycolmap.CameraModelId.PINHOLE:
            raise SceneError(f"{_UNDISTORTED} has {pinhole.model.name} cameras, expected PINHOLE")
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().inverse().matrix()
        color = folder / "images" / "dslr_images_undistorted" / name
        depth = folder / "ground_truth_depth" / "dslr_images" / name
        stem = Path(name).stem
        recording.add(Eth3dFrame(stem, color, depth, pose, pinhole, cameras[name]))
    return recording


def _model(folder: Path) -> pycolmap.Reconstruction:
    for name in ("cameras.txt", "images.txt", "points3D.txt"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {folder / name}; unpack the archive that holds it")
    return pycolmap.Reconstruction(folder)


def _load(frame: Eth3dFrame, *, max_side: int | None) -> RgbdFrame:
    """The undistorted image, no larger than ``max_side``, and its depth."""
    lens, pinhole = frame.lens, frame.pinhole
    rgb = read_color(frame.color)
    if rgb.shape[:2] != (pinhole.height, pinhole.width):
        raise ValueError(f"{frame.color}: {rgb.shape[:2]}, expected {pinhole.summary()}")
    stored = np.fromfile(frame.depth, "<f4")
    if stored.size != lens.width * lens.height:
        raise ValueError(
            f"{frame.depth}: {stored.size} values, expected {lens.width} x {lens.height}"
        )
    distorted = stored.reshape(lens.height, lens.width)
    distorted = np.where(np.isfinite(distorted) & (distorted > 0), distorted, 0)
    fx, fy, cx, cy = pinhole.params
    # COLMAP counts pixels from the corner of the first one, we from its centre.
    intrinsics = intrinsics_matrix(fx, fy, cx - 0.5, cy - 0.5)
    longest = max(rgb.shape[:2])
    if max_side is not None and longest > max_side:
        rgb, intrinsics = resized(rgb, intrinsics, max_side / longest)
    x, y = _lens_pixels(lens, intrinsics, rgb.shape[:2])
    return RgbdFrame(rgb, resample_depth(distorted, x, y), intrinsics)


def _lens_pixels(
    lens: pycolmap.Camera, intrinsics: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the lens shows each pixel of a pinhole camera: x and y (H, W) float32."""
    rows, columns = np.indices(shape)
    pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(columns.size)], 1)
    found = lens.img_from_cam(pixels @ np.linalg.inv(intrinsics).T) - 0.5
    found = np.where(np.isfinite(found), found, _NO_PIXEL)
    x, y = found.T.reshape(2, *shape).astype(np.float32)
    return x, y


def _run(options: argparse.Namespace) -> str:
    root = require_folder(options.eth3d_dir, "--eth3d_dir", "courtyard/, delivery_area/ ...")
    return preprocess_sources(find_scenes(root), read_scene, options, ETH3D)


if __name__ == "__main__":
    sys.exit(main())
