"""7-Scenes, and any folders of frames of its kind.

Shotton et al., "Scene Coordinate Regression Forests for Camera Relocalization in RGB-D Images",
CVPR 2013. A scene is a folder with ``TrainSplit.txt`` and ``TestSplit.txt`` (lines ``sequence1``)
and sequences ``seq-01``, each with ``frame-000000.color.png`` (or .jpg), ``.depth.png`` (uint16
millimetres; 0 and 65535 = none) and ``.pose.txt`` (camera-to-world, metres).

All have the intrinsics of ``camera-intrinsics.txt`` (3x3, the centre of the first pixel at (0, 0))
in the sequence or in the scene, or else those that the data set states for its depth camera. In
the data set as distributed, colour is of another camera beside it and only roughly registered.
"""

import functools
import logging
import re
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np

from dust3r.utils.pixels import read_depth_png
from mast3r.visloc.datasets.files import (
    check_rigid,
    every,
    image_size,
    listed,
    open_root,
    read_lines,
    require_file,
    require_folder,
)
from mast3r.visloc.scene import Camera, LocalisationScene, MapImage, Query

log = logging.getLogger(__name__)

INTRINSICS = (585.0, 585.0, 320.0, 240.0)
LAYOUT = (
    "SCENE/TrainSplit.txt and TestSplit.txt with lines 'sequence1', and SCENE/seq-01/ with "
    "frame-000000.color.png, frame-000000.depth.png, frame-000000.pose.txt; for folders of frames "
    "without splits give map_folders and query_folders"
)
_CAMERA_FILE = "camera-intrinsics.txt"
_NO_DEPTH_M = 65.5345  # 65535 mm, and not 65534
_SUFFIXES = (".png", ".jpg", ".jpeg")

Folders = str | Path | Sequence[str | Path]


def read(
    root: str | Path,
    *,
    map_folders: Folders | None = None,
    query_folders: Folders | None = None,
    intrinsics: Sequence[float] | None = None,
    map_every: int = 1,
    query_every: int = 1,
) -> list[LocalisationScene]:
    """The scene in ``root``, or those in the folders right below it.

    Names of images are paths below ``root``: ``seq-01/frame-000000.color.png``. Frames whose pose
    is not finite are left out with a warning, and the map leaves out what is a query. Queries
    without a pose file have no pose.

    Args:
        root: the scene's folder, or one of several scenes.
        map_folders, query_folders: folders of frames below ``root`` (or absolute paths) in place of
            the splits; both or none.
        intrinsics: fx, fy, cx, cy in pixels, the centre of the first pixel at (0, 0), in place of
            those found.
        map_every, query_every: take each n-th frame of a sequence.

    Raises:
        FileNotFoundError: a file or folder that the layout has is not there.
        ValueError: a file is damaged, a pose is not rigid, or there is no frame at all.
    """
    root = open_root(root, LAYOUT)
    if (map_folders is None) != (query_folders is None):
        raise ValueError("give both map_folders and query_folders, or none for the scene's splits")
    if intrinsics is not None:
        intrinsics = _matrix(np.asarray(intrinsics, np.float64), "intrinsics")
    if map_folders is not None and query_folders is not None:
        split = _given(root, map_folders), _given(root, query_folders)
        return [_read_scene(root, *split, intrinsics, map_every, query_every)]
    scenes = [root]
    if not (root / "TrainSplit.txt").is_file():
        scenes = sorted(path.parent for path in root.glob("*/TrainSplit.txt"))
    if not scenes:
        raise FileNotFoundError(
            f"no TrainSplit.txt in {root} nor right below it; expected {LAYOUT}"
        )
    return [
        _read_scene(
            scene,
            _split(scene, "TrainSplit.txt"),
            _split(scene, "TestSplit.txt"),
            intrinsics,
            map_every,
            query_every,
        )
        for scene in scenes
    ]


def _given(root: Path, folders: Folders) -> list[Path]:
    if isinstance(folders, str | Path):
        folders = [folders]
    return [require_folder(root / folder, "a folder of frames") for folder in folders]


def _split(scene: Path, name: str) -> list[Path]:
    folders = []
    for line in read_lines(scene / name, LAYOUT):
        number = re.fullmatch(r"sequence\s*(\d{1,4})", line.text)
        if number is None:
            raise line.error("expected 'sequence' and a number, as sequence1")
        folders.append(require_folder(scene / f"seq-{int(number[1]):02d}", LAYOUT))
    if not folders:
        raise ValueError(f"{scene / name} names no sequence; expected lines 'sequence1'")
    return folders


def _read_scene(
    root: Path,
    map_folders: list[Path],
    query_folders: list[Path],
    intrinsics: np.ndarray | None,
    map_every: int,
    query_every: int,
) -> LocalisationScene:
    images: dict[str, MapImage] = {}
    queries: dict[str, Query] = {}
    lost: list[str] = []
    for folder in dict.fromkeys(query_folders):
        colours = every(_colours(folder), query_every, "query_every")
        camera = _camera(root, folder, colours[0], intrinsics)
        for colour in colours:
            name, file = _name(root, colour, queries), _beside(colour, "pose.txt")
            pose = _read_pose(file) if file.is_file() else None
            if pose is None and file.is_file():
                lost.append(name)
            else:
                queries[name] = Query(name, colour, camera, pose)
    for folder in dict.fromkeys(map_folders):
        colours = every(_colours(folder), map_every, "map_every")
        camera = _camera(root, folder, colours[0], intrinsics)
        for colour in colours:
            name = _name(root, colour, images)
            if name in queries:
                continue
            pose = _read_pose(require_file(_beside(colour, "pose.txt"), LAYOUT))
            if pose is None:
                lost.append(name)
                continue
            depth = functools.partial(
                _read_depth, require_file(_beside(colour, "depth.png"), LAYOUT)
            )
            images[name] = MapImage(name, colour, pose, camera, depth=depth)
    if lost:
        log.warning(
            "%s: %d frames left out, their poses are not finite: %s", root, len(lost), listed(lost)
        )
    if not images or not queries:
        raise ValueError(
            f"{root}: {len(images)} map images and {len(queries)} queries with a finite pose; at "
            "least one of each is needed"
        )
    return LocalisationScene(root.name, tuple(images.values()), tuple(queries.values()))


def _colours(folder: Path) -> list[Path]:
    """The colour images by their names, one of each frame."""
    found: dict[str, Path] = {}
    for suffix in _SUFFIXES:
        for path in folder.glob(f"*.color{suffix}"):
            found.setdefault(path.name.removesuffix(suffix), path)
    if not found:
        raise FileNotFoundError(
            f"no *.color.png or .jpg in {folder} (are its archives unpacked?); expected {LAYOUT}"
        )
    return [found[frame] for frame in sorted(found)]


def _name(root: Path, colour: Path, taken: Container[str]) -> str:
    if colour.is_relative_to(root):
        name = colour.relative_to(root).as_posix()
    else:
        name = f"{colour.parent.name}/{colour.name}"
    if name in taken:
        raise ValueError(
            f"two frames would be called {name}, one of them {colour}; rename a folder"
        )
    return name


def _beside(colour: Path, ending: str) -> Path:
    return colour.with_name(f"{colour.name.rsplit('.color.', 1)[0]}.{ending}")


def _camera(root: Path, folder: Path, colour: Path, intrinsics: np.ndarray | None) -> Camera:
    size = image_size(colour)
    if intrinsics is None:
        files = [path / _CAMERA_FILE for path in (folder, root)]
        file = next((path for path in files if path.is_file()), None)
        if file is not None:
            intrinsics = _matrix(_read_numbers(file), str(file))
        elif size == (640, 480):
            intrinsics = _matrix(np.array(INTRINSICS), "7-Scenes")
            log.info("%s: no %s, so fx fy cx cy = %s", folder, _CAMERA_FILE, INTRINSICS)
        else:
            raise FileNotFoundError(
                f"no {_CAMERA_FILE} in {folder} or {root}, and the images have {size[0]}x{size[1]} "
                "pixels, not 7-Scenes' 640x480; add the file (3x3) or give intrinsics"
            )
    return Camera.pinhole(intrinsics, size)


def _matrix(values: np.ndarray, where: str) -> np.ndarray:
    """Intrinsics (3, 3) of fx, fy, cx, cy or of nine numbers."""
    values = values.ravel()
    if values.size == 4:
        fx, fy, cx, cy = values
        values = np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1])
    if values.size != 9 or not np.isfinite(values).all():
        raise ValueError(f"{where}: expected 3x3 numbers or fx, fy, cx, cy, got {values.tolist()}")
    matrix = values.reshape(3, 3)
    if min(matrix[0, 0], matrix[1, 1]) <= 0 or matrix[0, 1] or matrix[1, 0]:
        raise ValueError(f"{where}: no pinhole camera's intrinsics: {matrix.tolist()}")
    return matrix


def _read_pose(file: Path) -> np.ndarray | None:
    """The (4, 4) camera-to-world matrix, None where it is not finite: tracking was lost."""
    values = _read_numbers(file)
    if values.size != 16:
        raise ValueError(f"{file}: expected a pose of 4x4 numbers, got {values.size}")
    if not np.isfinite(values).all():
        return None
    return check_rigid(values.reshape(4, 4), str(file))


def _read_numbers(file: Path) -> np.ndarray:
    values: list[float] = []
    for line in read_lines(file, LAYOUT):
        try:
            values.extend(float(field) for field in line.fields)
        except ValueError as error:
            raise line.error(f"expected numbers ({error})") from None
        if len(values) > 16:
            raise line.error("expected a matrix of at most 4x4 numbers")
    return np.array(values)


def _read_depth(file: Path) -> np.ndarray:
    depth = read_depth_png(file)
    depth[depth >= _NO_DEPTH_M] = 0
    return depth
