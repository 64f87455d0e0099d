"""MegaDepth to the layout that ``MegaDepth`` reads.

    python -m datasets_preprocess.preprocess_megadepth --megadepth_dir DIR --output_dir ROOT

DIR holds both parts of the release (https://www.cs.cornell.edu/projects/megadepth/; Li and Snavely,
CVPR 2018), as their archives unpack:

    MegaDepth_v1/<landmark>/dense<k>/imgs/<photograph>.jpg      undistorted; the archive has it in
    MegaDepth_v1/<landmark>/dense<k>/depths/<photograph>.h5     phoenix/S6/zl548/ before all
    MegaDepth_v1_SfM/<landmark>/sparse/manhattan/<k>/           COLMAP's model, bin or txt

An ``.h5`` file (read by h5py) has one array ``depth`` (H, W), z in the model's unit; negative
values are an order of near and far, no depths, and count as none. COLMAP's undistortion of the
model's cameras, which is how the photographs were made, gives their intrinsics
(https://colmap.github.io/format.html; the centre of the first pixel is at (0.5, 0.5) there). Of a
model that is undistorted already, ``Undistorted_SfM/<landmark>/sparse`` or
``MegaDepth_v1/<landmark>/dense<k>/sparse``, the cameras are taken as they are.

Without a list of pairs those of measured overlap are taken, for each reconstruction.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pycolmap

from datasets_preprocess.indexed_pairs import (
    PairRange,
    ScenePart,
    SceneSource,
    SceneWriter,
    SourceView,
    add_pair_options,
    convert_all,
    listed_folder,
    listed_pairs,
    pair_range,
    write_scene_index,
)
from datasets_preprocess.rgbd.frames import align, limit_size
from datasets_preprocess.scenes import SceneError, SceneReport, run_command
from dust3r.datasets.megadepth import MegaDepth
from dust3r.utils.image import read_rgb

_INNER = ("", "MegaDepth_v1", "phoenix/S6/zl548/MegaDepth_v1")
_MODELS = (
    "MegaDepth_v1_SfM/{landmark}/sparse/manhattan/{number}",
    "{landmark}/sparse/manhattan/{number}",
    "Undistorted_SfM/{landmark}/sparse",
    "Undistorted_SfM/{landmark}/sparse-txt",
)
_SAME_SHAPE = 0.01
_HALF_PIXEL = 0.5
_MAX_SIDE, _MAX_PAIRS = 800, 5000


def main(argv: list[str] | None = None) -> int:
    """Command line entry; 1 after a user's error."""
    return run_command(_run, _parser(), argv)


def read_depth_h5(path: Path) -> np.ndarray:
    """Depth (H, W) float32 of one of the release's files, 0 = none.

    Raises FileNotFoundError where it is missing, ValueError where it is damaged, ImportError with
    what to do where h5py is not installed.
    """
    h5py = _h5py()
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    try:
        with h5py.File(path, "r") as file:
            depth = np.asarray(file["depth"], np.float32)
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged or holds no depth ({error})") from error
    if depth.ndim != 2:
        raise ValueError(f"{path} holds an array of {depth.shape}, expected (H, W)")
    return np.where(depth > 0, depth, 0)


def _h5py():
    try:
        import h5py
    except ImportError as error:
        raise ValueError(
            "MegaDepth's depth is in HDF5 files, which h5py reads: pip install h5py"
        ) from error
    return h5py


def _run(options: argparse.Namespace) -> str:
    _h5py()
    return convert_all(
        _sources(options.megadepth_dir, options.precomputed_pairs),
        partial(
            _convert,
            root=options.megadepth_dir,
            wanted=pair_range(options),
            max_side=options.max_side,
        ),
        _write_index,
        lambda root: MegaDepth(ROOT=root, resolution=(512, 384)),
        options,
        "MegaDepth",
    )


def _sources(root: Path, pairs_file: Path | None) -> list[SceneSource]:
    listed_folder(root, "--megadepth_dir")
    folders = sorted(
        depths.parent for inner in _INNER for depths in (root / inner).glob("*/dense*/depths")
    )
    if not folders:
        raise FileNotFoundError(
            f"{root} has no <landmark>/dense<k>/depths, nor has its MegaDepth_v1; give the folder "
            "that MegaDepth's archives were unpacked in"
        )
    named = {f"{path.parent.name}/{path.name.removeprefix('dense')}": path for path in folders}
    if pairs_file is None:
        return [SceneSource(name, path) for name, path in named.items()]
    listed = {
        "/".join(scene.replace("dense", "").split()): pairs
        for scene, pairs in listed_pairs(pairs_file).items()
    }
    sources = [
        SceneSource(name, path, listed[name]) for name, path in named.items() if name in listed
    ]
    if not sources:
        raise ValueError(f"{pairs_file} has no pair of the {len(named)} reconstructions in {root}")
    return sources


def _convert(
    source: SceneSource, folder: Path, *, root: Path, wanted: PairRange, max_side: int
) -> SceneReport:
    model = _read_model(_model_folder(root, source))
    registered = {image.name: image for image in model.images.values() if image.has_pose}
    photographs = {path.name: path for path in sorted((source.path / "imgs").iterdir())}
    # Some lists of pairs name photographs without their suffix.
    by_stem = {path.stem: path for path in photographs.values()}
    names = sorted(by_stem if source.pairs is None else source.views())
    writer = SceneWriter(folder)
    for name in names:
        path = photographs.get(name) or by_stem.get(name)
        if path is None:
            writer.report.skip("not in the release", name)
        elif path.name not in registered:
            writer.report.skip("not in COLMAP's model", name)
        else:
            image = registered[path.name]
            writer.take(name, partial(_read_view, path, image, name, max_side))
    return writer.finish(source, wanted)


def _read_view(path: Path, image: pycolmap.Image, name: str, max_side: int) -> SourceView:
    rgb = read_rgb(path)
    depth = read_depth_h5(path.parents[1] / "depths" / f"{path.stem}.h5")
    camera = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), image.camera)
    intrinsics = camera.calibration_matrix()
    for size, what in ((rgb.shape[1::-1], "photograph"), ((camera.width, camera.height), "camera")):
        stretch = np.array(depth.shape[::-1]) / size
        if abs(stretch[0] / stretch[1] - 1) > _SAME_SHAPE:
            raise ValueError(
                f"the {what} is {size[0]}x{size[1]}, its depth map "
                f"{depth.shape[1]}x{depth.shape[0]}"
            )
    # The centre of the first pixel, (0.5, 0.5) in COLMAP's models, is at (0, 0) here.
    intrinsics[:2] *= stretch[:, None]
    intrinsics[:2, 2] -= _HALF_PIXEL
    frame = limit_size(align(rgb, depth, intrinsics, None), max_side)
    pose = np.eye(4)
    pose[:3] = image.cam_from_world().inverse().matrix()
    return SourceView(name, {"": frame.rgb}, frame.depth, frame.intrinsics, pose)


def _model_folder(root: Path, source: SceneSource) -> Path:
    landmark, number = source.name.split("/")
    places = [source.path / "sparse"]
    for pattern in _MODELS:
        if number == "0" or "{number}" in pattern:
            inner = pattern.format(landmark=landmark, number=number)
            places += [base / inner for base in (root, root.parent, source.path.parents[1])]
    for place in places:
        if any((place / f"images.{suffix}").is_file() for suffix in ("bin", "txt")):
            return place
    raise SceneError(
        "there is no COLMAP model of it: expected images.bin or images.txt in one of "
        f"{', '.join(str(place) for place in dict.fromkeys(places))}"
    )


def _read_model(folder: Path) -> pycolmap.Reconstruction:
    try:
        return pycolmap.Reconstruction(folder)
    except (RuntimeError, ValueError, IndexError) as error:
        raise SceneError(f"COLMAP's model {folder} cannot be read ({error})") from error


def _write_index(root: Path, parts: list[ScenePart]) -> None:
    names = [part.scene.replace("/", " ") for part in parts]
    write_scene_index(root / MegaDepth.INDEX, parts, scene_names=names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="MegaDepth to the layout that the data set MegaDepth reads.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--megadepth_dir", type=Path, required=True, help="folder of the release")
    add_pair_options(parser, max_pairs=_MAX_PAIRS)
    parser.add_argument(
        "--max_side", type=int, default=_MAX_SIDE, help="scale down to this longest side, in pixels"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
