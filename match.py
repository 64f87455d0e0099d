"""Matches of two photographs: a picture of them, and their pixels in an NPZ."""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.demo import weights
from dust3r.training import checkpoint
from dust3r.utils.command import exit_status
from dust3r.utils.device import chosen_device
from dust3r.utils.image import load_images
from dust3r.utils.pixels import read_upright
from mast3r.coarse_to_fine import match_coarse_to_fine
from mast3r.matching import Matches, draw_matches, match_views, save_matches

log = logging.getLogger(__name__)

USER_ERRORS = (ValueError, FileNotFoundError, checkpoint.CheckpointError)


def main(given: list[str] | None = None) -> int:
    """Match, write ``matches.png`` and ``matches.npz``; the exit status."""
    args = make_parser().parse_args(given)
    return exit_status(run, args, USER_ERRORS)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="match.py", description=__doc__)
    add = parser.add_argument
    add("--images", nargs=2, type=Path, required=True, metavar=("A", "B"), help="two photographs")
    add("--output_dir", type=Path, required=True, help="folder that the files go to")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument(
        "--weights", type=Path, metavar="FILE", help="checkpoint of a model with descriptors"
    )
    chosen.add_argument("--model_name", metavar="NAME", help="repository on the Hugging Face hub")
    add("--mask1", type=Path, metavar="FILE", help="mask of the first image; black: no match here")
    add("--mask2", type=Path, metavar="FILE", help="mask of the second image")
    add("--image_size", type=int, help="longer side of images; by default the model's own size")
    add("--coarse_to_fine", action="store_true", help="match windows of the full resolution")
    add("--max_image_size", type=int, help="longer side of what --coarse_to_fine looks at")
    add("--subsample", type=int, default=8, help="pixels between seeds (%(default)s)")
    add("--min_conf", type=float, default=0.0, help="least confidence of a match (%(default)s)")
    add("--max_matches", type=int, help="keep at most so many, the most alike; all if not given")
    add("--lines", type=int, default=50, help="lines in the picture (%(default)s)")
    add("--device", help="cpu, cuda, ...; by default the GPU where there is one")
    add("--silent", action="store_true", help="only warnings and errors")
    return parser


def run(args: argparse.Namespace) -> list[Path]:
    """Match ``args.images`` and write the files; their paths.

    Raises:
        ValueError, FileNotFoundError: an argument is wrong, an image is missing or unreadable, the
            model has no descriptors, or nothing matches.
        dust3r.training.checkpoint.CheckpointError: the checkpoint cannot be used.
    """
    if args.max_image_size is not None and not args.coarse_to_fine:
        raise ValueError("--max_image_size has a meaning with --coarse_to_fine only")
    device = chosen_device(args.device)
    model, name = weights.load(args.weights, args.model_name)
    size = args.image_size or weights.native_size(model)
    log.info("%s, images of %d pixels, on %s", name, size, device)
    images = [np.asarray(read_upright(path)[0]) for path in args.images]
    common = {
        "device": device,
        "subsample_or_initxy1": args.subsample,
        "max_matches": args.max_matches,
        "min_confidence": args.min_conf,
    }
    masks = [args.mask1, args.mask2]
    if args.coarse_to_fine:
        matches: Matches = match_coarse_to_fine(
            model.to(device),
            *args.images,
            size=size,
            max_image_size=args.max_image_size,
            mask1=args.mask1,
            mask2=args.mask2,
            verbose=not args.silent,
            **common,
        )
    else:
        views = load_images(
            args.images, size, patch_size=model.patch_size, masks=masks, verbose=False
        )
        matches = match_views(model, *views, **common)
    if not len(matches):
        raise ValueError(
            f"no pixel of {args.images[0]} and {args.images[1]} is each other's nearest: check "
            "that they show the same place, lower --subsample or --min_conf, or widen the masks"
        )
    log.info("%d matches", len(matches))
    sizes = {f"size{n}": np.array(image.shape[1::-1]) for n, image in enumerate(images, 1)}
    files = {f"image{n}": str(path) for n, path in enumerate(args.images, 1)}
    title = f"{len(matches)} matches of {args.images[0].name} and {args.images[1].name}"
    return [
        save_matches(args.output_dir / "matches.npz", matches, **sizes, **files),
        draw_matches(args.output_dir / "matches.png", *images, matches, args.lines, title),
    ]


if __name__ == "__main__":
    sys.exit(main())
