"""The project's processed layout, which every RGB-D preprocessor and the synthetic rooms write.

``ROOT/all_metadata.npz``, ``ROOT/<scene>/images/<basename>.jpg`` and
``ROOT/<scene>/depth/<basename>.png``, as ``dust3r.datasets.scannetpp`` says.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dust3r.datasets.scannetpp import read_metadata
from dust3r.utils.pixels import read_depth_png
from mast3r.visloc.datasets.files import (
    check_rigid,
    every,
    image_size,
    inside,
    listed,
    read_lines,
    require_file,
)
from mast3r.visloc.scene import Camera, LocalisationScene, MapImage, Query

LAYOUT = (
    "the processed layout: ROOT/all_metadata.npz, ROOT/SCENE/images/NAME.jpg and "
    "ROOT/SCENE/depth/NAME.png"
)

Chosen = str | Path | Sequence[str | Path]


def read(
    root: str | Path,
    *,
    map_images: Chosen | None = None,
    query_images: Chosen | None = None,
    scenes: str | Sequence[str] | None = None,
    hold_out: int = 5,
    map_every: int = 1,
    query_every: int = 1,
) -> list[LocalisationScene]:
    """Each scene with a part of its images held out as queries, or one map and one set of queries.

    Names of images are ``<scene>/<basename>``.

    Args:
        root: of the processed data set.
        map_images, query_images: scenes of ``root``, or text files (below ``root``, or absolute)
            of lines ``<scene>/<basename>``, that share one world; both or none. They make one
            scene, whose map leaves out what is a query.
        scenes: those to read where no images are given; by default all.
        hold_out: each n-th image of a scene, from the first on, is a query and not in the map.
        map_every, query_every: take each n-th of the map's images and of the queries.

    Raises:
        FileNotFoundError: the metadata, an image, or a list of images is not there.
        ValueError: they are damaged, name an unknown scene or image, a pose is not rigid, or no
            map image or no query is left.
    """
    tree = _Tree(Path(root).absolute())
    if (map_images is None) != (query_images is None):
        raise ValueError("give both map_images and query_images, or none to hold images out")
    if map_images is not None and query_images is not None:
        if scenes is not None:
            raise ValueError("scenes is for images held out; map_images and query_images say all")
        asked = tree.choose(query_images)
        mapped = [image for image in tree.choose(map_images) if image not in set(asked)]
        chosen = {tree.root.name: (mapped, asked)}
    else:
        if not isinstance(hold_out, int) or hold_out < 2:
            raise ValueError(
                f"hold_out must be a whole number, 2 or more so that a map is left: {hold_out!r}"
            )
        names = tree.scenes if scenes is None else [scenes] if isinstance(scenes, str) else scenes
        chosen = {name: _held_out(tree.images_of(name), hold_out) for name in names}
    return [
        tree.scene(
            name,
            every(images, map_every, "map_every"),
            every(queries, query_every, "query_every"),
        )
        for name, (images, queries) in chosen.items()
    ]


def _held_out(images: list[int], step: int) -> tuple[list[int], list[int]]:
    queries = images[::step]
    return [image for place, image in enumerate(images) if place % step], queries


class _Tree:
    """A processed data set, whose images are known by their place in its metadata."""

    def __init__(self, root: Path) -> None:
        metadata = read_metadata(root)
        self.root = root
        self.scenes = [str(scene) for scene in metadata["scenes"]]
        self._scene_of = metadata["sceneids"]
        self._basenames = [str(image) for image in metadata["images"]]
        self._intrinsics = metadata["intrinsics"].astype(np.float64)
        self._poses = metadata["trajectories"].astype(np.float64)
        self._depth_units = metadata["depth_unit"].tolist()
        names = [self._name(image) for image in range(len(self._basenames))]
        self._place = {name: image for image, name in enumerate(names)}
        if len(self._place) < len(names):
            raise ValueError(f"{root}: its metadata names images twice; preprocess the data again")

    def images_of(self, scene: str) -> list[int]:
        if scene not in self.scenes:
            raise ValueError(f"{self.root} has no scene {scene!r}; it has {listed(self.scenes)}")
        return np.flatnonzero(self._scene_of == self.scenes.index(scene)).tolist()

    def choose(self, given: Chosen) -> list[int]:
        """The images of scenes and of files that list images."""
        chosen: list[int] = []
        for item in [given] if isinstance(given, str | Path) else given:
            if str(item) in self.scenes:
                chosen += self.images_of(str(item))
                continue
            expected = (
                f"a scene of {self.root}, one of {listed(self.scenes)}, or a text file of lines "
                "'scene/image'"
            )
            for line in read_lines(self.root / item, expected):
                if line.text not in self._place:
                    raise line.error(f"no such image in {self.root}; expected 'scene/image'")
                chosen.append(self._place[line.text])
        return list(dict.fromkeys(chosen))

    def scene(self, name: str, images: list[int], queries: list[int]) -> LocalisationScene:
        if not images or not queries:
            raise ValueError(
                f"{self.root}, scene {name}: {len(images)} map images and {len(queries)} queries; "
                "at least one of each is needed"
            )
        return LocalisationScene(
            name,
            tuple(self._map_image(image) for image in images),
            tuple(self._query(query) for query in queries),
        )

    def _name(self, image: int) -> str:
        return f"{self.scenes[self._scene_of[image]]}/{self._basenames[image]}"

    def _map_image(self, image: int) -> MapImage:
        seen = self._query(image)
        depth = require_file(self._file(image, "depth", ".png"), LAYOUT)
        return MapImage(
            seen.name,
            seen.path,
            seen.pose,
            seen.camera,
            depth=functools.partial(
                read_depth_png, depth, unit=self._depth_units[self._scene_of[image]]
            ),
        )

    def _query(self, image: int) -> Query:
        name = self._name(image)
        where = f"{self.root}, image {name}"
        path = require_file(self._file(image, "images", ".jpg"), LAYOUT)
        intrinsics = self._intrinsics[image]
        sound = np.isfinite(intrinsics).all() and intrinsics[[0, 1], [0, 1]].min() > 0
        if not sound or intrinsics[0, 1]:
            raise ValueError(f"{where}: no pinhole camera's intrinsics: {intrinsics.tolist()}")
        camera = Camera.pinhole(intrinsics, image_size(path))
        return Query(name, path, camera, check_rigid(self._poses[image], where))

    def _file(self, image: int, kind: str, suffix: str) -> Path:
        folder = inside(self.root, self.scenes[self._scene_of[image]], self.root) / kind
        return inside(folder, f"{self._basenames[image]}{suffix}", self.root)
