"""A COLMAP model (Schoenberger and Frahm, 2016) as the map, other images as queries."""

import dataclasses
import functools
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pycolmap

from dust3r.utils.colmap_files import check_binary_model
from dust3r.utils.load_images import IMAGE_SUFFIXES
from dust3r.utils.pixels import MAX_PIXELS
from mast3r.visloc.datasets.files import (
    Line,
    check_rigid,
    check_size,
    every,
    inside,
    listed,
    open_root,
    read_lines,
    read_pairs,
    require_folder,
)
from mast3r.visloc.scene import HALF_PIXEL, Camera, Landmarks, LocalisationScene, MapImage, Query

log = logging.getLogger(__name__)

LAYOUT = (
    "a COLMAP model: cameras, images and points3D as .bin or .txt, in ROOT/sparse/0, ROOT/sparse, "
    "ROOT or the folder given as model, and the images in ROOT/images or the folder given as images"
)
LIST_LINE = "'name' or 'name MODEL width height parameters...', in COLMAP's models"
_PARTS = ("cameras", "images", "points3D")
_PLACES = ("sparse/0", "sparse", ".")


def read(
    root: str | Path,
    *,
    queries: str | Path | None = None,
    truth: str | Path | None = None,
    model: str | Path | None = None,
    images: str | Path = "images",
    query_images: str | Path | None = None,
    query_camera: str | None = None,
    pairs: str | Path | None = None,
    map_every: int = 1,
    query_every: int = 1,
) -> list[LocalisationScene]:
    """One scene of a model's images and of queries, which leave the map where they are in it.

    Names of images are COLMAP's, and those of queries their paths below ``query_images``. All paths
    are below ``root``, or absolute. A query's camera is that of its line in the list, else
    ``query_camera``, else the one that ``truth`` or the map has for its name, else None.

    Args:
        queries: a folder of images, or a text file of lines 'name' or 'name MODEL width height
            parameters...' (COLMAP's models and pixels). By default the images of ``truth`` that
            the map has not.
        truth: folder of a second model, in the world of the first, whose poses are the truth.
        model: folder of the map's model, by default ``sparse/0``, ``sparse`` or ``root`` itself.
        images: folder of the map's images.
        query_images: folder of the images that ``queries`` lists, by default ``images``.
        query_camera: 'MODEL width height parameters...' of every query.
        pairs: text file of lines 'query image', best first.
        map_every, query_every: take each n-th image, in the order of names, and each n-th query.

    Raises:
        FileNotFoundError: a model, image, folder or list is not there.
        ValueError: one is damaged, a camera is not of its image's size, a name leads out of its
            folder, or no map image or no query is left.
    """
    root = open_root(root, LAYOUT)
    found = Model(root / model) if model is not None else find_model(root, _PLACES, LAYOUT)
    other = Model(root / truth) if truth is not None else None
    asked = read_queries(
        _query_source(root, queries, images, query_images, found, other),
        [known for known in (other, found) if known is not None],
        _camera_of_all(query_camera),
        every_nth=query_every,
    )
    if other is not None:
        asked = [
            dataclasses.replace(query, pose=other.pose(query.name))
            if query.name in other
            else query
            for query in asked
        ]
    apart = {query.name for query in asked}
    kept = [name for name in found.names if name not in apart]
    if len(kept) < len(found.names):
        log.info("%d of the map's images are queries, and left out", len(found.names) - len(kept))
    mapped = found.map_images(every(kept, map_every, "map_every"), root / images)
    return [make_scene(root, mapped, asked, root / pairs if pairs is not None else None)]


def make_scene(
    root: Path,
    images: Iterable[MapImage],
    queries: Iterable[Query],
    pairs: Path | None,
    result_name: dict[str, str] | None = None,
) -> LocalisationScene:
    """The scene of a data set's folder, with the pairs of a file if one is given.

    Raises:
        FileNotFoundError, ValueError: as ``read_pairs``.
        ValueError: there is no image or no query.
    """
    images, queries = tuple(images), tuple(queries)
    if not images or not queries:
        raise ValueError(
            f"{root}: {len(images)} map images and {len(queries)} queries; at least one of each is "
            "needed"
        )
    chosen = None
    if pairs is not None:
        chosen = read_pairs(pairs, [query.name for query in queries], [i.name for i in images])
    return LocalisationScene(root.name, images, queries, chosen, result_name)


class Model:
    """A COLMAP model, its images known by their names.

    Args:
        folder: of cameras, images and points3D, binary or text.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: they are damaged, or no image has a pose.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _check_there(folder)
        check_binary_model(folder)
        try:
            self._model = pycolmap.Reconstruction(folder)
            images = [image for image in self._model.images.values() if image.has_pose]
            self._images = {image.name: image for image in images}
            cameras = list(self._model.cameras.values())
        except Exception as error:
            # COLMAP's own checks, and those of containers and memory beneath.
            raise ValueError(f"the COLMAP model {folder} is damaged: {error}") from error
        if not self._images or len(self._images) < len(images):
            fault = "names images twice" if images else "has no image with a pose"
            raise ValueError(f"the COLMAP model {folder} {fault}")
        self._cameras = {
            camera.camera_id: check_camera(camera, f"{folder}, camera {camera.camera_id}")
            for camera in cameras
        }

    @property
    def names(self) -> list[str]:
        """Of the images with a pose, sorted."""
        return sorted(self._images)

    def __contains__(self, name: object) -> bool:
        return name in self._images

    def camera(self, name: str) -> Camera:
        """Of the image ``name``."""
        return self._cameras[self._images[name].camera_id]

    def pose(self, name: str) -> np.ndarray:
        """(4, 4) camera-to-world of the image ``name``."""
        world_to_camera = np.eye(4)
        world_to_camera[:3] = self._images[name].cam_from_world().matrix()
        where = f"{self.folder}, image {name}"
        return np.linalg.inv(check_rigid(world_to_camera, where))

    def landmarks(self, name: str) -> Landmarks:
        """The points that the image ``name`` observes.

        Raises:
            ValueError: a pixel or a point is not finite, or the model lacks it.
        """
        seen = self._images[name].get_observation_points2D()
        points = self._model.points3D
        pixels = np.array([point.xy for point in seen], np.float64).reshape(-1, 2)
        lacking = [point.point3D_id for point in seen if point.point3D_id not in points]
        if lacking:
            raise ValueError(f"{self.folder}, image {name}: the model lacks its point {lacking[0]}")
        world = np.array([points[point.point3D_id].xyz for point in seen], np.float64)
        if not (np.isfinite(pixels).all() and np.isfinite(world).all()):
            raise ValueError(f"{self.folder}, image {name}: its points are not finite")
        return Landmarks(pixels - HALF_PIXEL, world.reshape(-1, 3))

    def map_images(self, names: Iterable[str], images: Path) -> list[MapImage]:
        """Images with their landmarks, whose files are in the folder ``images``.

        Raises:
            FileNotFoundError: an image is not there.
            ValueError: it is damaged, not of its camera's size, or not in the folder.
        """
        mapped = []
        for name in names:
            path = inside(images, name, self.folder)
            camera = self.camera(name)
            check_size(path, camera.size, str(self.folder))
            landmarks = functools.partial(self.landmarks, name)
            mapped.append(MapImage(name, path, self.pose(name), camera, landmarks=landmarks))
        return mapped


def find_model(root: Path, places: Iterable[str], layout: str) -> Model:
    """The first model in ``places`` below ``root``.

    Raises:
        FileNotFoundError: there is none; the message says the layout expected.
        ValueError: it is damaged.
    """
    places = list(places)
    for place in places:
        if any((root / place / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return Model(root / place)
    raise FileNotFoundError(
        f"no COLMAP model in {root}: no cameras.bin or .txt in {', '.join(places)}; expected "
        f"{layout}"
    )


def read_query_list(path: Path, images: Path, layout: str) -> list[Query]:
    """Queries of lines 'name' or 'name MODEL width height parameters...', in COLMAP's models.

    Args:
        images: folder that the names are below.
        layout: that the list is part of, for the error of a missing file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: a line is no such line, or names a query again.
    """
    queries: dict[str, Query] = {}
    for line in read_lines(path, layout):
        name, *stated = line.fields
        if name in queries:
            raise line.error(f"{name} is there a second time")
        camera = _parse_camera(stated, line) if stated else None
        queries[name] = Query(name, inside(images, name, line), camera)
    return list(queries.values())


def read_queries(
    queries: list[Query], models: list[Model], camera: Camera | None, *, every_nth: int
) -> list[Query]:
    """Each n-th query, with the ``camera`` of all or that of a model where it has none itself.

    Raises:
        FileNotFoundError: an image is not there.
        ValueError: it is damaged or not of its camera's size, or ``every_nth`` is less than 1.
    """
    complete = []
    for query in every(queries, every_nth, "query_every"):
        found = query.camera or camera
        if found is None:
            found = next((m.camera(query.name) for m in models if query.name in m), None)
        if found is not None:
            check_size(query.path, found.size, "the list of queries or the model")
        complete.append(dataclasses.replace(query, camera=found))
    unknown = [query.name for query in complete if query.camera is None]
    if unknown:
        log.warning("%d queries have no camera: %s", len(unknown), listed(unknown))
    return complete


def check_camera(camera: pycolmap.Camera, where: str) -> Camera:
    """The camera, of a size and of parameters that can be.

    Raises:
        ValueError: they cannot be; ``where`` begins the message.
    """
    focals = [camera.params[index] for index in camera.focal_length_idxs()]
    sound = (
        camera.verify_params()
        and np.isfinite(camera.params).all()
        and 0 < camera.width * camera.height <= MAX_PIXELS
        and focals
        and min(focals) > 0
    )
    if not sound:
        raise ValueError(
            f"{where}: no usable camera: {camera.model.name} {camera.width} {camera.height} "
            f"{list(camera.params)}; expected positive focal lengths and finite parameters"
        )
    return Camera(camera)


def _query_source(
    root: Path,
    queries: str | Path | None,
    images: str | Path,
    query_images: str | Path | None,
    model: Model,
    truth: Model | None,
) -> list[Query]:
    folder = root / (images if query_images is None else query_images)
    if queries is None:
        if truth is None:
            raise ValueError(
                "no queries: give queries, a folder of images or a text file that lists them, or "
                "truth, a second COLMAP model that has them"
            )
        names = [name for name in truth.names if name not in model]
        return [Query(name, inside(folder, name, truth.folder), None) for name in names]
    source = root / queries
    if not source.is_dir():
        expected = f"a folder of images, or a text file of lines {LIST_LINE}"
        return read_query_list(source, folder, expected)
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return [Query(path.relative_to(source).as_posix(), path, None) for path in files]


def _camera_of_all(stated: str | None) -> Camera | None:
    if stated is None:
        return None
    return _parse_camera(stated.split(), Line(Path("query_camera"), 1, stated))


def _parse_camera(fields: list[str], line: Line) -> Camera:
    models = {name for name in pycolmap.CameraModelId.__members__ if name != "INVALID"}
    if len(fields) < 3 or fields[0] not in models:
        raise line.error(f"expected {LIST_LINE}; models are {', '.join(sorted(models))}")
    width, height = (line.count(field, "width and height", MAX_PIXELS) for field in fields[1:3])
    params = line.numbers(fields[3:], "a camera's parameters")
    needed = pycolmap.Camera.create_from_model_name(1, fields[0], 1.0, 1, 1)
    if len(params) != len(needed.params):
        raise line.error(f"{fields[0]} has parameters {needed.params_info}, got {len(params)}")
    camera = pycolmap.Camera(model=fields[0], width=width, height=height, params=params)
    return check_camera(camera, f"{line.path}, line {line.number}")


def _check_there(folder: Path) -> None:
    require_folder(folder, LAYOUT)
    for suffix in (".bin", ".txt"):
        if all((folder / f"{part}{suffix}").is_file() for part in _PARTS):
            return
    there = [path.name for path in sorted(folder.iterdir())]
    raise FileNotFoundError(
        f"{folder} lacks files of a COLMAP model, it has {listed(there) or 'nothing'}; expected "
        f"{LAYOUT}"
    )
