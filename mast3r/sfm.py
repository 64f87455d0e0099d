"""Structure from motion on matches: a COLMAP database, its geometric verification, sparse models.

Everything that touches the database or maps goes through pycolmap. Matches of any matcher do; those
of the network come from ``match_both_orders``.
"""

import copy
import logging
import math
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pycolmap

from dust3r.export.colmap import HALF_PIXEL
from dust3r.export.folders import whole_folder
from dust3r.utils.files import atomic_path
from mast3r.sfm_cameras import CAMERA_MODEL, guessed_camera, pinhole_camera
from mast3r.sfm_matches import (
    ImagePairMatches,
    Keypoints,
    PairRows,
    Size,
    match_both_orders,
    tracks,
)

log = logging.getLogger(__name__)

__all__ = [
    "CAMERA_MODEL", "MAPPERS", "ImagePairMatches", "Summary", "check_free", "guessed_camera",
    "map_images", "match_both_orders", "pinhole_camera", "verify", "write_database",
]  # fmt: skip

MAPPERS = ("incremental", "global")
# COLMAP's own: pixels that a point may be off, and the least inliers of a pair.
MAX_ERROR = 4.0
MIN_INLIERS = 15

# COLMAP asks three times as much patience of a new camera's points as of those that it keeps.
_NEW_CAMERA = 3.0


@dataclass(frozen=True)
class Summary:
    """What a sparse model holds.

    Attributes:
        registered: images with a pose.
        points: 3-D points.
        error: mean reprojection error in pixels of the images.
        track_length: mean number of images that see a point.
    """

    registered: int
    points: int
    error: float
    track_length: float

    @classmethod
    def of(cls, model: pycolmap.Reconstruction) -> "Summary":
        return cls(
            model.num_reg_images(),
            model.num_points3D(),
            float(model.compute_mean_reprojection_error()),
            float(model.compute_mean_track_length()),
        )


def write_database(
    path: str | Path,
    images: Sequence[tuple[str, Size]],
    pair_matches: Iterable[ImagePairMatches],
    cameras: Sequence[pycolmap.Camera] | None = None,
    *,
    merge: float | Sequence[float] = 0.0,
    overwrite: bool = False,
) -> Path:
    """A COLMAP database of images, keypoints and matches, whole or not at all.

    The keypoints of an image are all its matched pixels, over all pairs. Matches of a pair in both
    orders are joined; where merged keypoints disagree, each keeps its most confident match of a
    pair. The n-th image has the ``image_id`` n + 1.

    Args:
        path: of the database; its folder is made where missing.
        images: name, as of the file in COLMAP's folder of images, and (width, height) each.
        pair_matches: in pixels of these images, centre of the first one at (0, 0).
        cameras: one for all images, or one each, their principal points in COLMAP's pixels;
            ``guessed_camera`` of each image's size where None.
        merge: side, in pixels, of the cells of a grid whose pixels become one keypoint at their
            mean, so that points are followed over several pairs; for all images, or one each.
            Where 0 only equal pixels are one keypoint.
        overwrite: replace an existing database.

    Raises:
        FileExistsError: there is a database, and ``overwrite`` is not set.
        ValueError: fewer than two images, names that COLMAP cannot use, cameras of another number
            or size than the images, pairs of images that there are not, pixels outside of an image,
            or not one match at all.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already; choose another place, move it away, or have it overwritten"
        )
    _check_images(images)
    sizes = [size for _, size in images]
    cameras = [guessed_camera(size) for size in sizes] if cameras is None else list(cameras)
    _check_cameras(cameras, sizes)
    cells = np.broadcast_to(np.asarray(merge, np.float64), len(images))
    if not (np.isfinite(cells) & (cells >= 0)).all():
        raise ValueError(f"merge={merge} must be 0 pixels or more, for all images or one each")
    keypoints, rows = tracks(list(pair_matches), sizes, cells)
    if not rows:
        raise ValueError(
            f"none of the {len(images)} images has a match: check that they show the same place, "
            "and lower the least confidence of matches if one was asked for"
        )
    with atomic_path(path) as temporary, closing(pycolmap.Database.open(temporary)) as database:
        with pycolmap.DatabaseTransaction(database):
            _fill(database, [name for name, _ in images], cameras, keypoints, rows)
    log.info("%d keypoints, %d pairs with matches", sum(map(len, keypoints)), len(rows))
    return path


def verify(
    database: str | Path,
    *,
    max_error: float = MAX_ERROR,
    min_inliers: int = MIN_INLIERS,
    seed: int = 0,
) -> dict[tuple[int, int], int]:
    """Geometric verification: matches that one two-view geometry explains become inliers.

    Args:
        database: of ``write_database``; replaced once all pairs are verified.
        max_error: pixels that a match may be off its epipolar line.
        min_inliers: least inliers of a verified pair.
        seed: of the random samples.

    Returns:
        numbers of images (i, j), i < j, of verified pairs, and their numbers of inliers.

    Raises:
        FileNotFoundError: there is no database.
        ValueError: no pair is verified, or impossible numbers.
    """
    database = _existing(database)
    _check_max_error(max_error)
    options = pycolmap.TwoViewGeometryOptions(min_num_inliers=min_inliers)
    options.ransac.max_error = max_error
    options.ransac.random_seed = seed
    with atomic_path(database) as temporary:
        shutil.copyfile(database, temporary)
        with closing(pycolmap.Database.open(temporary)) as opened:
            opened.clear_two_view_geometries()
        pycolmap.geometric_verification(temporary, two_view_geometry_options=options)
        with closing(pycolmap.Database.open(temporary)) as opened:
            counted = zip(*opened.read_two_view_geometry_num_inliers(), strict=True)
            matched = opened.num_matched_image_pairs()
        verified = {
            tuple(image - 1 for image in pycolmap.pair_id_to_image_pair(pair)): count
            for pair, count in counted
            if count >= max(1, min_inliers)
        }
        if not verified:
            raise ValueError(
                f"of {matched} pairs with matches none has {min_inliers} that one camera motion "
                f"explains to {max_error:g} pixels: check that the images overlap, allow a larger "
                "error, or take a model that matches these images better"
            )
    log.info("%d of %d pairs verified", len(verified), matched)
    return verified


def map_images(
    database: str | Path,
    image_folder: str | Path | None,
    output: str | Path,
    *,
    mapper: str = "incremental",
    max_error: float = MAX_ERROR,
    refine_focal: bool = True,
    min_images: int = 2,
    seed: int = 0,
    overwrite: bool = False,
) -> list[pycolmap.Reconstruction]:
    """Cameras and points of verified matches; models in ``output/0``, ``output/1``, ...

    Args:
        database: after ``verify``.
        image_folder: where the images lie, which colours of points are from; black where None.
        output: folder of the models, such as ``scene/sparse``.
        mapper: ``'incremental'``, camera by camera; or ``'global'``, all at once, for many images.
        max_error: pixels that a point may be off where it projects to; the global mapper has limits
            of its own, which are angles.
        refine_focal: False keeps the focals of the database, and the distortion.
        min_images: models of fewer images are dropped.
        seed: of the random samples.
        overwrite: replace models that are in ``output``.

    Returns:
        the models, that of most images first (then of most points), as they were written: binary.

    Raises:
        FileNotFoundError: there is no database or no folder of images.
        FileExistsError: ``output`` holds models and ``overwrite`` is not set, or other files.
        ValueError: no model came about, an unknown mapper, or impossible numbers.
    """
    database, output = _existing(database), Path(output)
    if mapper not in MAPPERS:
        raise ValueError(f"mapper={mapper!r} is none of {', '.join(map(repr, MAPPERS))}")
    _check_max_error(max_error)
    if image_folder is not None and not Path(image_folder).is_dir():
        raise FileNotFoundError(f"no folder of images {image_folder}")
    check_free(output, overwrite)
    with tempfile.TemporaryDirectory() as scratch:
        # COLMAP numbers models as it finds them, and writes each before the next.
        given = database, image_folder or scratch, scratch
        if mapper == "incremental":
            options = _incremental_options(max_error, refine_focal, min_images, seed)
            options.extract_colors = image_folder is not None
            found = pycolmap.incremental_mapping(*given, options)
            if not found:
                # Points that two images alone see make large scenes slow; of two images there are
                # no others.
                options.triangulation.ignore_two_view_tracks = False
                found = pycolmap.incremental_mapping(*given, options)
        else:
            options = pycolmap.GlobalPipelineOptions(min_model_size=min_images, random_seed=seed)
            options.mapper.bundle_adjustment.refine_focal_length = refine_focal
            options.mapper.bundle_adjustment.refine_extra_params = refine_focal
            found = pycolmap.global_mapping(*given, options)
    models = sorted(
        found.values(), key=lambda model: (-model.num_reg_images(), -model.num_points3D())
    )
    if not models:
        raise ValueError(
            "no two images could be placed by their matches: they need to be taken from places "
            "apart, and to share more; add images between them, or match more densely"
        )
    with whole_folder(output) as temporary:
        for number, model in enumerate(models):
            (temporary / str(number)).mkdir()
            model.write_binary(temporary / str(number))
        # Those that no new one replaces would be read as part of this run.
        for old in _numbered(output):
            if not (temporary / old.name).is_dir():
                shutil.rmtree(old)
    return models


def check_free(output: str | Path, overwrite: bool) -> None:
    """Refuse a folder of models that holds some, or other files, before hours of work.

    Raises:
        FileExistsError: it does, and ``overwrite`` is not set; or there are other files.
    """
    output = Path(output)
    models = _numbered(output)
    if models and not overwrite:
        raise FileExistsError(
            f"{output} holds models already ({models[0].name}); choose another place, move them "
            "away, or have them overwritten"
        )
    ours = {path for model in models for path in model.glob("*.bin")}
    others = sorted(path for path in output.rglob("*") if path.is_file() and path not in ours)
    if others:
        raise FileExistsError(
            f"{output} holds other files ({others[0].relative_to(output)}); choose another place, "
            "or move them away"
        )


def _numbered(folder: Path) -> list[Path]:
    """Folders that hold a model and are called by a number."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [one for one in entries if one.name.isdecimal() and (one / "images.bin").is_file()]


def _incremental_options(
    max_error: float, refine_focal: bool, min_images: int, seed: int
) -> pycolmap.IncrementalPipelineOptions:
    options = pycolmap.IncrementalPipelineOptions(
        min_model_size=min_images,
        ba_refine_focal_length=refine_focal,
        ba_refine_extra_params=refine_focal,
        random_seed=seed,
    )
    options.mapper.init_max_error = max_error
    options.mapper.filter_max_reproj_error = max_error
    options.mapper.abs_pose_max_error = _NEW_CAMERA * max_error
    options.mapper.abs_pose_refine_focal_length = refine_focal
    options.mapper.abs_pose_refine_extra_params = refine_focal
    options.triangulation.merge_max_reproj_error = max_error
    options.triangulation.complete_max_reproj_error = max_error
    return options


def _check_images(images: Sequence[tuple[str, Size]]) -> None:
    if len(images) < 2:
        raise ValueError(f"a reconstruction needs two images or more, and there is {len(images)}")
    names = [name for name, _ in images]
    for name, size in images:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or not name.isprintable():
            raise ValueError(
                f"{name!r} cannot be the name of an image: give the path of its file within the "
                "folder of images, such as 'kitchen.jpg'"
            )
        if min(size) < 1:
            raise ValueError(f"{name} is said to have {size} pixels (width, height)")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"several images are called {', '.join(twice)}: each needs its own name")


def _check_cameras(cameras: Sequence[pycolmap.Camera], sizes: Sequence[Size]) -> None:
    if len(cameras) not in (1, len(sizes)):
        raise ValueError(
            f"there are {len(cameras)} cameras for {len(sizes)} images: give one for all, or one "
            "each"
        )
    each = cameras if len(cameras) == len(sizes) else [cameras[0]] * len(sizes)
    for camera, size in zip(each, sizes, strict=True):
        if (camera.width, camera.height) != tuple(size):
            raise ValueError(
                f"a camera of {camera.width}x{camera.height} pixels cannot have taken an image of "
                "{}x{} (width x height): one camera for all needs images of one size".format(*size)
            )


def _check_max_error(max_error: float) -> None:
    if not 0 < max_error < math.inf:
        raise ValueError(f"max_error={max_error} pixels must be above 0")


def _existing(database: str | Path) -> Path:
    if not Path(database).is_file():
        raise FileNotFoundError(f"no database {database}; write_database makes one")
    return Path(database)


def _fill(
    database: pycolmap.Database,
    names: Sequence[str],
    cameras: Sequence[pycolmap.Camera],
    keypoints: Keypoints,
    rows: PairRows,
) -> None:
    rigs = []
    for number, given in enumerate(cameras, 1):
        camera = copy.copy(given)
        camera.camera_id = number
        database.write_camera(camera, use_camera_id=True)
        rig = pycolmap.Rig(rig_id=number)
        rig.add_ref_sensor(camera.sensor_id)
        rigs.append(database.write_rig(rig, use_rig_id=True))
    for number, (name, points) in enumerate(zip(names, keypoints, strict=True), 1):
        rig = rigs[0 if len(rigs) == 1 else number - 1]
        image = pycolmap.Image(name=name, camera_id=rig, image_id=number)
        database.write_image(image, use_image_id=True)
        frame = pycolmap.Frame(rig_id=rig, frame_id=number)
        frame.add_data_id(image.data_id)
        database.write_frame(frame, use_frame_id=True)
        database.write_keypoints(number, (points + HALF_PIXEL).astype(np.float32))
    for (i, j), pair in sorted(rows.items()):
        database.write_matches(i + 1, j + 1, pair.astype(np.uint32))
