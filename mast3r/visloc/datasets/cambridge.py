"""Cambridge Landmarks.

Kendall, Grimes and Cipolla, "PoseNet: A Convolutional Network for Real-Time 6-DOF Camera
Relocalization", ICCV 2015. A scene is a folder with ``dataset_train.txt`` and ``dataset_test.txt``
(three lines of header, then 'image x y z w p q r': the camera's centre, and its world-to-camera
quaternion), the images, and ``reconstruction.nvm``, VisualSFM's model of all images.
"""

import functools
import logging
from pathlib import Path

import numpy as np

from mast3r.visloc.datasets.files import (
    every,
    image_size,
    inside,
    listed,
    open_root,
    pose_of,
    read_lines,
)
from mast3r.visloc.datasets.nvm import Nvm, image_key
from mast3r.visloc.scene import LocalisationScene, MapImage, Query

log = logging.getLogger(__name__)

LAYOUT = (
    "SCENE/dataset_train.txt and dataset_test.txt, three lines of header and then lines "
    "'image x y z w p q r', SCENE/reconstruction.nvm, and the images, as SCENE/seq1/frame00001.png"
)
_HEADER = 3


def read(root: str | Path, *, map_every: int = 1, query_every: int = 1) -> list[LocalisationScene]:
    """The scene in ``root``, or those in the folders right below it.

    Poses are those of the lists; cameras and landmarks those of ``reconstruction.nvm``. Map images
    that it lacks are left out, and queries that it lacks have no camera; a warning counts both.

    Args:
        root: the scene's folder, or one of several scenes.
        map_every, query_every: take each n-th image of the lists.

    Raises:
        FileNotFoundError: a list, the model or an image is not there.
        ValueError: one is damaged, or no map image or no query is left.
    """
    root = open_root(root, LAYOUT)
    scenes = [root]
    if not (root / "dataset_train.txt").is_file():
        scenes = sorted(path.parent for path in root.glob("*/dataset_train.txt"))
    if not scenes:
        raise FileNotFoundError(
            f"no dataset_train.txt in {root} nor right below it; expected {LAYOUT}"
        )
    return [_read_scene(scene, map_every, query_every) for scene in scenes]


def _read_scene(scene: Path, map_every: int, query_every: int) -> LocalisationScene:
    trained = every(_read_list(scene, "dataset_train.txt"), map_every, "map_every")
    tested = every(_read_list(scene, "dataset_test.txt"), query_every, "query_every")
    model = Nvm(scene / "reconstruction.nvm", LAYOUT)
    images: list[MapImage] = []
    queries: list[Query] = []
    lacking: list[str] = []
    for name, path, pose in trained:
        stated = model.cameras.get(image_key(name))
        if stated is None:
            lacking.append(name)
            continue
        size = image_size(path)
        landmarks = functools.partial(model.landmarks, stated, size)
        images.append(MapImage(name, path, pose, stated.camera(size), landmarks=landmarks))
    for name, path, pose in tested:
        stated = model.cameras.get(image_key(name))
        if stated is None:
            lacking.append(name)
        camera = stated.camera(image_size(path)) if stated is not None else None
        queries.append(Query(name, path, camera, pose))
    if lacking:
        log.warning("%s lacks %d images: %s", model.path, len(lacking), listed(lacking))
    if not images or not queries:
        raise ValueError(
            f"{scene}: {len(images)} map images that reconstruction.nvm has and {len(queries)} "
            "queries; at least one of each is needed"
        )
    return LocalisationScene(scene.name, tuple(images), tuple(queries))


def _read_list(scene: Path, name: str) -> list[tuple[str, Path, np.ndarray]]:
    """Name, file and pose of each image."""
    entries: dict[str, tuple[str, Path, np.ndarray]] = {}
    for line in read_lines(scene / name, LAYOUT):
        fields = line.fields
        if len(fields) != 8:
            if line.number <= _HEADER:
                continue
            raise line.error("expected 'image x y z w p q r'")
        values = line.numbers(fields[1:], "a pose")
        if fields[0] in entries:
            raise line.error(f"{fields[0]} is there a second time")
        pose = pose_of(values[3:], values[:3], line)
        entries[fields[0]] = fields[0], inside(scene, fields[0], line), pose
    if not entries:
        raise ValueError(f"{scene / name} lists no image; expected {LAYOUT}")
    return list(entries.values())
