"""Where photographs were taken, in a map of posed images: poses, a table of recalls, a picture."""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dust3r.demo import weights
from dust3r.training import checkpoint
from dust3r.utils.arguments import count
from dust3r.utils.command import exit_status
from dust3r.utils.device import chosen_device
from mast3r.matching import DESCRIPTOR_MODEL
from mast3r.model import AsymmetricMASt3R
from mast3r.visloc.datasets import READERS, read_scenes
from mast3r.visloc.datasets.files import image_size
from mast3r.visloc.localise import MIN_INLIERS, Localisation, localise, retrieve
from mast3r.visloc.matchers import (
    CoarseToFineMatcher,
    Matcher,
    NetworkMatcher,
    NetworkRanking,
    Ranking,
)
from mast3r.visloc.metrics import THRESHOLDS, recalls
from mast3r.visloc.report import query_errors, write_overview, write_report
from mast3r.visloc.scene import Camera, LocalisationScene, Query
from mast3r.visloc.sift import SiftMatcher, SiftRanking

log = logging.getLogger(__name__)

USER_ERRORS = (ValueError, FileNotFoundError, checkpoint.CheckpointError)

# What readers call the choice of the map and of the queries, and a thinned one.
_PLACES = {
    "generic": ("map_images", "query_images"),
    "seven_scenes": ("map_folders", "query_folders"),
}
_STEPS = ("map_every", "query_every")
_LISTED = 5


def main(given: list[str] | None = None) -> int:
    """Localise, write the files; the exit status."""
    args = make_parser().parse_args(given)
    return exit_status(run, args, USER_ERRORS)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="visloc.py", description=__doc__)
    add = parser.add_argument
    add("--dataset", required=True, choices=sorted(READERS), help="layout of the data set")
    add("--root", type=Path, required=True, help="its folder")
    add("--map", nargs="+", metavar="PART", help="parts of it that are the map")
    add("--queries", nargs="+", metavar="PART", help="parts of it to localise")
    add("--map_step", type=count, default=1, help="take each n-th image of the map (%(default)s)")
    add("--query_step", type=count, default=1, help="take each n-th query (%(default)s)")
    add("--max_queries", type=count, help="at most so many of a scene, evenly spread")
    add(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further option of the layout's reader, as its docstring says; may be repeated",
    )
    add("--focal", type=float, help="pixels, of queries whose intrinsics are not known")
    add("--output_dir", type=Path, required=True, help="folder that the files go to")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--weights", type=Path, metavar="FILE", help="checkpoint of a model with descriptors"
    )
    chosen.add_argument("--model_name", metavar="NAME", help="repository on the Hugging Face hub")
    add("--sift", action="store_true", help="match by OpenCV's SIFT; a model then only ranks")
    add(
        "--retrieval",
        choices=("auto", "pairs", "network", "sift"),
        default="auto",
        help="what ranks the map's images: pairs of the data set, the model or SIFT; by default "
        "the first of these there is",
    )
    add("--topk", type=count, default=10, help="map images for a query (%(default)s)")
    add("--image_size", type=int, help="longer side of images; by default the model's own size")
    add("--coarse_to_fine", action="store_true", help="match windows of the full resolution")
    add("--max_image_size", type=int, help="longer side of what --coarse_to_fine looks at")
    add("--subsample", type=count, default=8, help="pixels between seeds (%(default)s)")
    add("--min_conf", type=float, default=0.0, help="least confidence of a match (%(default)s)")
    add("--batch_size", type=count, default=8, help="pairs at a time (%(default)s)")
    add(
        "--pnp_threshold",
        type=float,
        help="pixels of the query within which a point is an inlier; by default 0.8%% of the "
        "longer side",
    )
    add("--min_inliers", type=count, default=MIN_INLIERS, help="of a pose (%(default)s)")
    add("--seed", type=int, default=0, help="of RANSAC (%(default)s)")
    add("--device", help="cpu, cuda, ...; by default the GPU where there is one")
    add("--silent", action="store_true", help="only warnings and errors")
    return parser


def run(args: argparse.Namespace) -> list[str]:
    """Localise all queries of ``args.dataset`` and write the files; the lines to show.

    Where there are several scenes, a folder each and a table of all in ``args.output_dir``.

    Raises:
        ValueError, FileNotFoundError: an argument is wrong, the data set is damaged, intrinsics are
            missing, or the model has no descriptors.
        dust3r.training.checkpoint.CheckpointError: the checkpoint cannot be used.
    """
    _check(args)
    scenes = [_prepared(scene, args) for scene in read_scenes(**_reader_arguments(args))]
    device = chosen_device(args.device)
    model, size, name = _model(args, device)
    lines, done = [], []
    for scene in scenes:
        how = _Means(args, model, size, device)
        log.info("%s: %d map images, %d queries", scene.name, len(scene.images), len(scene.queries))
        ranking = how.ranking(scene)
        results = list(
            localise(
                scene,
                how.matcher,
                retrieve(scene, args.topk, ranking),
                verbose=not args.silent,
                threshold=args.pnp_threshold,
                min_inliers=args.min_inliers,
                seed=args.seed,
            )
        )
        settings = {
            "matcher": how.matcher_name(name),
            "retrieval": f"{how.retrieval(scene)}, {args.topk} images",
            "threshold": args.pnp_threshold or "0.8% of the longer side",
            "least inliers": args.min_inliers,
        }
        folder = args.output_dir / scene.name if len(scenes) > 1 else args.output_dir
        written = write_report(folder, scene, results, settings)
        lines += [*map(str, written), summary_line(scene, results)]
        done.append((scene, results))
    if len(scenes) > 1:
        lines.append(str(write_overview(args.output_dir, done)))
    return lines


def summary_line(scene: LocalisationScene, results: Sequence[Localisation]) -> str:
    """What came out, in one line."""
    found = sum(result.pose is not None for result in results)
    parts = [f"{scene.name}: {found} of {len(results)} queries localised"]
    errors = query_errors(scene.queries, results)
    if errors:
        row = recalls(scene.queries, errors)[-1]
        shares = ", ".join(
            f"{100 * share:.1f}% within {metres:g} m and {degrees:g} deg"
            for (metres, degrees), share in zip(THRESHOLDS, row.recalls, strict=True)
        )
        if math.isfinite(row.position):
            parts.append(f"median {row.position:.3f} m, {row.rotation:.2f} deg")
        parts.append(shares)
    parts.append(f"{np.median([result.seconds for result in results]):.2f} s per query")
    return "; ".join(parts)


class _Means:
    """What ranks and what matches, as the arguments say."""

    def __init__(
        self,
        args: argparse.Namespace,
        model: AsymmetricMASt3R | None,
        size: int,
        device: torch.device,
    ):
        self.args, self.model, self.size, self.device = args, model, size, device
        # Also where the network matches: features are made when they are asked for.
        self.sift = SiftMatcher()
        self.matcher = self._matcher()

    def retrieval(self, scene: LocalisationScene) -> str:
        """pairs, network or sift."""
        if self.args.retrieval != "auto":
            return self.args.retrieval
        if scene.pairs is not None:
            return "pairs"
        return "sift" if self.model is None else "network"

    def ranking(self, scene: LocalisationScene) -> Ranking | None:
        paths = [image.path for image in scene.images]
        kind = self.retrieval(scene)
        if kind == "pairs":
            return None
        if kind == "sift" or self.model is None:
            return SiftRanking(paths, self.sift)
        return NetworkRanking(
            self.model,
            self.size,
            paths,
            device=self.device,
            batch_size=self.args.batch_size,
            verbose=not self.args.silent,
        )

    def matcher_name(self, model_name: str) -> str:
        if self.args.sift:
            return "SIFT"
        scales = ", coarse to fine" if self.args.coarse_to_fine else ""
        return f"{model_name}, images of {self.size} pixels{scales}"

    def _matcher(self) -> Matcher:
        args = self.args
        if args.sift or self.model is None:
            return self.sift
        common = {
            "device": self.device,
            "batch_size": args.batch_size,
            "min_confidence": args.min_conf,
            "subsample_or_initxy1": args.subsample,
        }
        if args.coarse_to_fine:
            common["max_image_size"] = args.max_image_size
            return CoarseToFineMatcher(self.model, self.size, **common)
        return NetworkMatcher(self.model, self.size, **common)


def _check(args: argparse.Namespace) -> None:
    given = args.weights is not None or args.model_name is not None
    if not given and not args.sift:
        raise ValueError(
            "nothing to match by: give --weights FILE or --model_name NAME of a model with "
            "descriptors, or --sift"
        )
    if args.retrieval == "network" and not given:
        raise ValueError("--retrieval network needs a model: give --weights or --model_name")
    if args.sift and args.coarse_to_fine:
        raise ValueError("--coarse_to_fine is of the network; SIFT looks at full images by itself")
    if args.max_image_size is not None and not args.coarse_to_fine:
        raise ValueError("--max_image_size has a meaning with --coarse_to_fine only")
    for name in ("focal", "pnp_threshold"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} {value} must be above 0 pixels")


def _reader_arguments(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {}
    places = _PLACES.get(args.dataset)
    for flag, given, place in (("--map", args.map, 0), ("--queries", args.queries, 1)):
        if given is not None and places is None:
            raise ValueError(f"the layout {args.dataset} has its own map and queries, not {flag}")
        if given is not None:
            options[places[place]] = given
    for name, step in zip(_STEPS, (args.map_step, args.query_step), strict=True):
        if step > 1:
            options[name] = step
    for option in args.option:
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--option {option}: expected NAME=VALUE, such as hold_out=10")
        options[name] = _number(value)
    return {"layout": args.dataset, "root": args.root, **options}


def _number(value: str) -> Any:
    """A whole number, several numbers with commas between, or the text itself."""
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        return value
    if len(numbers) > 1:
        return numbers
    return int(numbers[0]) if numbers[0].is_integer() else numbers[0]


def _prepared(scene: LocalisationScene, args: argparse.Namespace) -> LocalisationScene:
    """With the queries that were asked for, all of known intrinsics."""
    queries = scene.queries
    if args.max_queries is not None and len(queries) > args.max_queries:
        places = np.linspace(0, len(queries) - 1, args.max_queries).round().astype(int)
        queries = tuple(queries[place] for place in places)
    if args.focal is not None:
        queries = tuple(_with_focal(query, args.focal) for query in queries)
    lacking = [query.name for query in queries if query.camera is None]
    if lacking:
        more = f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
        raise ValueError(
            f"{scene.name}: the intrinsics of {', '.join(lacking[:_LISTED])}{more} are not known; "
            "add them to the data set, or give --focal PIXELS (of the original image)"
        )
    return replace(scene, queries=queries)


def _with_focal(query: Query, focal: float) -> Query:
    if query.camera is not None:
        return query
    width, height = image_size(query.path)
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return replace(query, camera=Camera.pinhole(intrinsics, (width, height)))


def _model(
    args: argparse.Namespace, device: torch.device
) -> tuple[AsymmetricMASt3R | None, int, str]:
    """The model, the size of its images and its name; no model where SIFT does all."""
    if args.weights is None and args.model_name is None:
        return None, 0, ""
    model, name = weights.load(args.weights, args.model_name)
    size = args.image_size or weights.native_size(model)
    if not args.sift and not (isinstance(model, AsymmetricMASt3R) and model.desc_dim):
        raise ValueError(
            f"{name} has no descriptors to match by: take the weights of a model with "
            f"{DESCRIPTOR_MODEL}, such as MASt3R's, or --sift"
        )
    log.info("%s, images of %d pixels, on %s", name, size, device)
    return model.to(device), size, name


if __name__ == "__main__":
    sys.exit(main())
