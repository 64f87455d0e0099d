"""Photographs to a COLMAP model: matches of the network, geometric verification, mapping."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.demo import weights
from dust3r.export.frames import Frame, write_images
from dust3r.reconstruction import Reconstruction
from dust3r.training import checkpoint
from dust3r.utils.command import exit_status
from dust3r.utils.device import chosen_device
from dust3r.utils.files import atomic_path
from dust3r.utils.image import load_images
from mast3r.pipeline import scene_pairs
from mast3r.sfm import (
    CAMERA_MODEL,
    MAPPERS,
    Summary,
    check_free,
    guessed_camera,
    map_images,
    match_both_orders,
    verify,
    write_database,
)

log = logging.getLogger(__name__)

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, checkpoint.CheckpointError)

DATABASE, SPARSE = "database.db", "sparse"


def main(given: list[str] | None = None) -> int:
    """Match, verify, map; the exit status."""
    args = make_parser().parse_args(given)
    # COLMAP tells of each of its steps in many lines; what fails is told below.
    pycolmap.logging.minloglevel = int(pycolmap.logging.Level.FATAL)
    return exit_status(run, args, USER_ERRORS)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="map_colmap.py", description=__doc__)
    add = parser.add_argument
    add(
        "--images", nargs="+", type=Path, required=True, metavar="PATH",
        help="a folder of photographs, or files",
    )  # fmt: skip
    add("--output_dir", type=Path, required=True, help="gets images/, database.db and sparse/0, ..")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument(
        "--weights", type=Path, metavar="FILE", help="checkpoint of a model with descriptors"
    )
    chosen.add_argument("--model_name", metavar="NAME", help="repository on the Hugging Face hub")
    add("--masks", type=Path, metavar="FOLDER", help="masks named as the images; black: no match")
    add("--image_size", type=int, help="longer side of images; by default the model's own size")
    add("--scene_graph", default="complete", help="which pairs to match (%(default)s)")
    add("--subsample", type=int, default=8, help="pixels between seeds (%(default)s)")
    add("--min_conf", type=float, default=0.0, help="least confidence of a match (%(default)s)")
    add(
        "--merge", type=float, default=1.0, metavar="PX",
        help="matches within cells of so many pixels of the network's image are one keypoint "
        "(%(default)s); 0: equal ones alone",
    )  # fmt: skip
    add(
        "--max_error", type=float, default=2.0, metavar="PX",
        help="pixels of the network's image that matches may be off (%(default)s)",
    )  # fmt: skip
    add(
        "--focal", type=float, metavar="PX",
        help="known focal in pixels of the photographs, kept as it is; by default a first guess "
        "is taken from EXIF data, or 1.2 times the longer side",
    )  # fmt: skip
    add("--shared_intrinsics", action="store_true", help="one camera took all photographs")
    add("--camera_model", default=CAMERA_MODEL, help="of COLMAP's (%(default)s)")
    add("--mapper", choices=MAPPERS, default=MAPPERS[0], help="COLMAP's (%(default)s)")
    add("--min_images", type=int, default=3, help="drop smaller models (%(default)s)")
    add("--batch_size", type=int, default=8, help="pairs at a time (%(default)s)")
    add("--device", help="cpu, cuda, ...; by default the GPU where there is one")
    add("--seed", type=int, default=0, help="of COLMAP's random samples (%(default)s)")
    add("--overwrite", action="store_true", help="replace the database and models of an older run")
    add("--silent", action="store_true", help="only warnings and errors")
    return parser


def run(args: argparse.Namespace) -> list[str]:
    """Map ``args.images`` and write the files; a line for each model.

    Raises:
        ValueError, FileNotFoundError: an argument is wrong, an image is missing or unreadable, the
            model has no descriptors, or nothing matches, is verified or can be placed.
        FileExistsError: the output folder holds an older run, or other files.
        dust3r.training.checkpoint.CheckpointError: the checkpoint cannot be used.
    """
    database, sparse = args.output_dir / DATABASE, args.output_dir / SPARSE
    if database.exists() and not args.overwrite:
        raise FileExistsError(f"{database} exists already; add --overwrite, or choose another")
    check_free(sparse, args.overwrite)
    device = chosen_device(args.device)
    model, name = weights.load(args.weights, args.model_name)
    size = args.image_size or weights.native_size(model)
    given = args.images[0] if len(args.images) == 1 else args.images
    views = load_images(
        given, size, patch_size=model.patch_size, masks=args.masks, verbose=not args.silent
    )
    pairs = scene_pairs(model, views, args.scene_graph, device, args.batch_size, not args.silent)
    cameras = _cameras(args, views)
    log.info("%s, %d pairs of images of %d pixels, on %s", name, len(pairs), size, device)
    frames = write_upright(views, args.output_dir)
    found = match_both_orders(
        model.to(device),
        pairs,
        batch_size=args.batch_size,
        min_confidence=args.min_conf,
        verbose=not args.silent,
        subsample_or_initxy1=args.subsample,
    )
    # What is a pixel to the network is several to the photograph.
    pixels = np.array([np.diag(view["source"].to_original)[:2].mean() for view in views])
    max_error = args.max_error * float(np.median(pixels))
    # A database of which nothing is verified is of no use, and would be in the way of another try.
    with atomic_path(database) as temporary:
        write_database(
            temporary,
            [(frame.name, frame.size) for frame in frames],
            found,
            cameras,
            merge=args.merge * pixels,
            overwrite=True,
        )
        verify(temporary, max_error=max_error, seed=args.seed)
    models = map_images(
        database,
        args.output_dir / "images",
        sparse,
        mapper=args.mapper,
        max_error=max_error,
        refine_focal=args.focal is None,
        min_images=min(args.min_images, len(views)),
        seed=args.seed,
        overwrite=args.overwrite,
    )
    return [
        f"{sparse / str(number)}: {told.registered} of {len(views)} images, {told.points} points, "
        f"reprojection error {told.error:.2f} px, track length {told.track_length:.1f}"
        for number, told in enumerate(map(Summary.of, models))
    ]


def write_upright(views: Sequence[dict[str, Any]], folder: Path) -> list[Frame]:
    """The upright originals of views in ``folder/images``, as ``dust3r.export.frames`` does it.

    COLMAP does not heed EXIF rotations.
    """
    count = len(views)
    # Nothing is reconstructed yet: images are written by their sources alone.
    nothing = tuple(np.zeros((0, 0), np.float32) for _ in views)
    still = Reconstruction(
        sources=tuple(view["source"] for view in views),
        images=nothing,
        poses=np.tile(np.eye(4), (count, 1, 1)),
        intrinsics=np.tile(np.eye(3), (count, 1, 1)),
        depthmaps=nothing,
        confidences=nothing,
        valid=nothing,
    )
    return write_images(still, folder)


def _cameras(args: argparse.Namespace, views: Sequence[dict[str, Any]]) -> list[pycolmap.Camera]:
    sources = [view["source"] for view in views]
    sizes = {source.size for source in sources}
    if args.shared_intrinsics and len(sizes) > 1:
        raise ValueError(
            "--shared_intrinsics needs photographs of one size (width, height), upright; these "
            f"have {', '.join('{}x{}'.format(*size) for size in sorted(sizes))}"
        )
    return [
        guessed_camera(
            source.size, focal=args.focal, photograph=source.path, model=args.camera_model
        )
        for source in (sources[:1] if args.shared_intrinsics else sources)
    ]


if __name__ == "__main__":
    sys.exit(main())
