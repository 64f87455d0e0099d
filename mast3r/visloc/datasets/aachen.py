"""Aachen Day-Night v1.1, as visuallocalization.net distributes it.

Sattler et al., "Benchmarking 6DOF Outdoor Visual Localization in Changing Conditions", CVPR 2018;
Zhang, Sattler and Scaramuzza, "Reference Pose Generation for Long-term Visual Localization via
Learned Features and View Synthesis", IJCV 2021 (v1.1). Poses of queries are not published: results
are sent to the benchmark's server, which calls queries by their files' names.
"""

import dataclasses
from pathlib import Path, PurePosixPath

from mast3r.visloc.datasets.colmap import (
    Model,
    find_model,
    make_scene,
    read_queries,
    read_query_list,
)
from mast3r.visloc.datasets.files import every, open_root, require_folder
from mast3r.visloc.scene import LocalisationScene, Query

LAYOUT = (
    "ROOT/3D-models/aachen_v_1_1/ with a COLMAP model (cameras, images, points3D as .bin or .txt; "
    "the .nvm files are not read), ROOT/images/images_upright/ or ROOT/images_upright/ with db/ "
    "and query/, and ROOT/queries/day_time_queries_with_intrinsics.txt and night_time_... of lines "
    "'name MODEL width height parameters...'"
)
_LISTS = "_time_queries_with_intrinsics.txt"
_GROUPS = ("day", "night")
_PLACES = ("3D-models/aachen_v_1_1", "3D-models", "aachen_v_1_1")
_IMAGES = ("images/images_upright", "images_upright")


def read(
    root: str | Path,
    *,
    model: str | Path | None = None,
    images: str | Path | None = None,
    pairs: str | Path | None = None,
    map_every: int = 1,
    query_every: int = 1,
) -> list[LocalisationScene]:
    """One scene: the model's images, and the queries in groups 'day' and 'night'.

    Names are the paths below ``images``: ``db/1.jpg``, ``query/night/nexus5x/IMG_1.jpg``.

    Args:
        root: of the data set. All other paths are below it, or absolute.
        model: folder of the COLMAP model, by default ``3D-models/aachen_v_1_1`` or ``3D-models``.
        images: folder of images, by default ``images/images_upright`` or ``images_upright``.
        pairs: text file of lines 'query image', best first, such as retrieval's.
        map_every, query_every: take each n-th map image, in the order of names, and each n-th
            query of a group.

    Raises:
        FileNotFoundError: the model, an image, or both lists of queries are not there.
        ValueError: one is damaged, or a camera is not of its image's size.
    """
    root = open_root(root, LAYOUT)
    found = Model(root / model) if model is not None else find_model(root, _PLACES, LAYOUT)
    if images is None:
        images = next((place for place in _IMAGES if (root / place).is_dir()), _IMAGES[0])
    folder = require_folder(root / images, LAYOUT)
    mapped = found.map_images(every(found.names, map_every, "map_every"), folder)
    queries = _queries(root, folder, query_every)
    result_name = {query.name: PurePosixPath(query.name).name for query in queries}
    listed_pairs = root / pairs if pairs is not None else None
    return [make_scene(root, mapped, queries, listed_pairs, result_name)]


def _queries(root: Path, images: Path, every_nth: int) -> list[Query]:
    lists = {group: root / "queries" / f"{group}{_LISTS}" for group in _GROUPS}
    there = {group: path for group, path in lists.items() if path.is_file()}
    if not there:
        raise FileNotFoundError(f"no {' or '.join(map(str, lists.values()))}; expected {LAYOUT}")
    queries: list[Query] = []
    for group, path in there.items():
        listed = read_queries(read_query_list(path, images, LAYOUT), [], None, every_nth=every_nth)
        queries += [dataclasses.replace(query, group=group) for query in listed]
    return queries
