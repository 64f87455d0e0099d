"""InLoc: photographs of a phone against cut-outs of indoor laser scans.

Taira et al., "InLoc: Indoor Visual Localization with Dense Matching and View Synthesis", CVPR 2018,
over the scans of Wijmans and Furukawa, "Exploiting 2D Floorplan for Building-scale Panorama RGBD
Alignment", CVPR 2017. A cut-out ``database/cutouts/DUC1/001/DUC_cutout_001_0_0.jpg`` has its points
in the scan's frame beside it, ``XYZcut`` (H, W, 3) of a ``.jpg.mat``; the scan's transformation to
the building is the 4x4 matrix in lines 8 to 11 of ``DUC_trans_001.txt`` in
``database/alignments/DUC1/transformations`` (before it is the one that it was refined from). Poses
of queries are not published: results are sent to the benchmark's server, which calls queries by
their files' names.
"""

import functools
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
import scipy.io

from dust3r.utils.geometry import geotrf
from dust3r.utils.pixels import MAX_PIXELS
from mast3r.visloc.datasets.colmap import make_scene
from mast3r.visloc.datasets.files import (
    check_rigid,
    every,
    image_size,
    open_root,
    read_lines,
    require_file,
    require_folder,
)
from mast3r.visloc.scene import Camera, LocalisationScene, MapImage, Query

log = logging.getLogger(__name__)

LAYOUT = (
    "ROOT/database/cutouts/DUC1/001/DUC_cutout_001_0_0.jpg with its .jpg.mat, "
    "ROOT/database/alignments/DUC1/transformations/DUC_trans_001.txt, and ROOT/query/iphone7/*.JPG"
)
# Of the longer side: 28 mm where a film is 36 mm wide.
FOCAL = 28 / 36
_POINTS = "XYZcut"
_MATRIX_LINES = range(8, 12)


def read(
    root: str | Path,
    *,
    buildings: str | Sequence[str] | None = None,
    pairs: str | Path | None = None,
    map_every: int = 1,
    query_every: int = 1,
) -> list[LocalisationScene]:
    """One scene of all cut-outs and queries, whose names are their paths below ``root``.

    Cut-outs come without a camera. Their ``pose`` is the scan's: its centre is the cut-out's too,
    its axes are not.

    Args:
        root: of the data set.
        buildings: folders of ``database/cutouts`` to take, such as DUC1 and DUC2; by default all.
        pairs: text file of lines 'query image', best first, below ``root`` or absolute.
        map_every, query_every: take each n-th, in the order of names.

    Raises:
        FileNotFoundError: a folder, a cut-out's points or a scan's transformation is not there.
        ValueError: a file is damaged, or no cut-out or no query is left.
    """
    root = open_root(root, LAYOUT)
    cutouts = every(_cutouts(root, buildings), map_every, "map_every")
    photographs = require_folder(root / "query" / "iphone7", LAYOUT)
    files = sorted(p for p in photographs.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))
    queries = [_query(root, path) for path in every(files, query_every, "query_every")]
    poses: dict[Path, np.ndarray] = {}
    images = []
    for path in cutouts:
        transformation = _transformation(root, path)
        if transformation not in poses:
            poses[transformation] = _read_transformation(transformation)
        images.append(_map_image(root, path, poses[transformation]))
    result_name = {query.name: query.path.name for query in queries}
    listed_pairs = root / pairs if pairs is not None else None
    return [make_scene(root, images, queries, listed_pairs, result_name)]


def _cutouts(root: Path, buildings: str | Sequence[str] | None) -> list[Path]:
    folder = require_folder(root / "database" / "cutouts", LAYOUT)
    if buildings is None:
        buildings = [path.name for path in folder.iterdir() if path.is_dir()]
    elif isinstance(buildings, str):
        buildings = [buildings]
    found: list[Path] = []
    for building in sorted(buildings):
        found += require_folder(folder / building, LAYOUT).glob("*/*_cutout_*.jpg")
    if not found:
        raise FileNotFoundError(f"no cut-outs in {folder}; expected {LAYOUT}")
    return sorted(found)


def _query(root: Path, path: Path) -> Query:
    width, height = image_size(path)
    camera = pycolmap.Camera(
        model="SIMPLE_PINHOLE",
        width=width,
        height=height,
        params=[FOCAL * max(width, height), width / 2, height / 2],
    )
    return Query(path.relative_to(root).as_posix(), path, Camera(camera))


def _map_image(root: Path, path: Path, pose: np.ndarray) -> MapImage:
    scan = require_file(path.with_name(f"{path.name}.mat"), LAYOUT)
    points = functools.partial(_read_points, scan, path, pose)
    return MapImage(path.relative_to(root).as_posix(), path, pose, None, points=points)


def _transformation(root: Path, cutout: Path) -> Path:
    building, scan = cutout.parts[-3:-1]
    name = f"{cutout.name.split('_')[0]}_trans_{scan}.txt"
    return root / "database" / "alignments" / building / "transformations" / name


def _read_transformation(path: Path) -> np.ndarray:
    """(4, 4) from the scan to the building."""
    rows = [line for line in read_lines(path, LAYOUT) if line.number in _MATRIX_LINES]
    if len(rows) < len(_MATRIX_LINES) or any(len(row.fields) != 4 for row in rows):
        raise ValueError(
            f"{path}: expected a 4x4 matrix, the refined pose of the scan, in lines "
            f"{_MATRIX_LINES[0]} to {_MATRIX_LINES[-1]}; the file is damaged, copy it again"
        )
    matrix = np.array([row.numbers(row.fields, "a pose") for row in rows])
    return check_rigid(matrix, str(path))


def _read_points(path: Path, image: Path, pose: np.ndarray) -> np.ndarray:
    """World points (H, W, 3) float32 of a cut-out, not finite where its scan has none."""
    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
        shape = shapes.get(_POINTS, ())
        # The header states a size before anything is read.
        sound = len(shape) == 3 and shape[2] == 3 and 0 < math.prod(shape) <= 3 * MAX_PIXELS
        points = scipy.io.loadmat(path, variable_names=[_POINTS])[_POINTS] if sound else None
    except Exception as error:
        # SciPy's reader passes on whatever the damage leads to.
        raise ValueError(f"cannot read the scan {path}: {error}; copy it again") from error
    if points is None or points.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: expected numbers {_POINTS} (H, W, 3) in it, found {shapes or 'nothing'}"
        )
    width, height = image_size(image)
    if points.shape[:2] != (height, width):
        raise ValueError(
            f"{path}: {_POINTS} is {points.shape}, but {image.name} has {width}x{height} pixels"
        )
    world = geotrf(pose, points.astype(np.float64)).astype(np.float32)
    # The scanner stands at the origin; nothing else does.
    world[(points == 0).all(-1)] = np.nan
    return world
