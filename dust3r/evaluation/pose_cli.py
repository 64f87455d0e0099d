"""``evaluate.py pose``: relative rotations and translations of cameras over sets of images."""

import argparse
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchmetrics import Metric
from tqdm import tqdm

from dust3r.cloud_opt import GlobalAlignerMode, global_aligner
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.evaluation import report
from dust3r.evaluation.benchmarks import Benchmark, parse_benchmarks
from dust3r.evaluation.image_sets import chain, paths
from dust3r.evaluation.pose_measures import (
    MAA_DEGREES,
    WORST_DEGREES,
    accuracies,
    pose_errors,
    relative_errors,
    with_left_out,
)
from dust3r.image_pairs import make_pairs
from dust3r.inference import inference
from dust3r.model import AsymmetricCroCo3DStereo, load_model
from dust3r.pipeline import reconstruct
from dust3r.reconstruction import Reconstruction
from dust3r.training.distributed import World
from dust3r.utils.arguments import count
from dust3r.utils.image import load_images

log = logging.getLogger(__name__)

HELP = "relative camera poses: RRA@15, RTA@15, mAA@30"
DENSE, PAIRS = "dense", "pairs"

_LIMIT = 15
_EXAMPLE = "\"Rooms:ScanNetpp('all', ROOT='data/rooms', resolution=224)\""
_DESCRIPTION = """\
Every scene of a processed data set gives a set of images, a random chain in which each overlaps the
next. Of all pairs of a set: RRA@15 and RTA@15, the shares whose relative rotation, and direction of
relative translation, are less than 15 degrees off; mAA@30, the mean over thresholds of 1 to 30
degrees of the share with both below. Images that are left out, and sets that fail, count as 180
degrees off. Writes pose.csv (sets), pose.json, pose.md and sets.json to --output_dir.
"""

Images = Sequence[dict[str, Any]]
Errors = tuple[np.ndarray, np.ndarray]


class PoseAccuracy(Metric):
    """Shares of all pairs, from sums over sets; medians are of all pairs, which are kept."""

    full_state_update = False

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("rotation", [], dist_reduce_fx="cat")
        self.add_state("direction", [], dist_reduce_fx="cat")
        self.add_state("sets", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, rotation: np.ndarray, direction: np.ndarray, failed: bool) -> None:
        """Add a set: errors of its pairs in degrees, NaN for directions that do not exist."""
        self.rotation.append(torch.from_numpy(rotation).to(self.device))
        self.direction.append(torch.from_numpy(direction).to(self.device))
        self.sets += torch.tensor([1, int(failed)]).to(self.sets)

    def compute(self) -> dict[str, float]:
        states = (self.rotation, self.direction)
        joined = (torch.cat(s) if isinstance(s, list) and s else s for s in states)
        rotation, direction = (torch.as_tensor(s).cpu().numpy() for s in joined)
        return {
            "sets": int(self.sets[0]),
            "failed": int(self.sets[1]),
            "pairs": len(rotation),
            **numbers_of(rotation, direction),
        }


def numbers_of(rotation: np.ndarray, direction: np.ndarray) -> dict[str, float]:
    """RRA@15, RTA@15, mAA@30 and medians of pairs' errors in degrees, (P,) each."""
    shares = accuracies(rotation, direction, (_LIMIT,))
    known = direction[np.isfinite(direction)]
    return {
        f"RRA@{_LIMIT}": shares[f"RRA@{_LIMIT}"],
        f"RTA@{_LIMIT}": shares[f"RTA@{_LIMIT}"],
        f"mAA@{MAA_DEGREES}": shares["mAA30"],
        "rotation_median": float(np.median(rotation)),
        "direction_median": float(np.median(known)) if len(known) else float("nan"),
    }


@dataclass(frozen=True)
class ImageSet:
    """Images of one scene: their numbers in the data set, files and true poses (N, 4, 4)."""

    benchmark: str
    scene: str
    images: tuple[int, ...]
    files: tuple[Path, ...]
    poses: np.ndarray


def add_arguments(
    parser: argparse.ArgumentParser, aligners: Mapping[str, Callable[..., Any]], **_: Any
) -> None:
    parser.description = _DESCRIPTION
    known = (DENSE, *aligners, PAIRS)
    add = parser.add_argument
    add("--benchmarks", required=True, help=f"named processed data sets, such as {_EXAMPLE}")
    add("--ckpt", required=True, type=Path, help="the checkpoint")
    add("--output_dir", required=True, type=Path, help="folder that the files go to")
    add(
        "--methods",
        default=DENSE,
        help=f"by commas, of {', '.join(known)}: how poses come about; {PAIRS}: of each pair by "
        "itself (%(default)s)",
    )
    add("--num_sets", type=count, help="scenes of each benchmark; by default all")
    add("--images", type=count, default=6, help="of a set (%(default)s)")
    add("--min_overlap", type=float, default=0.3, help="of an image and the next (%(default)s)")
    add("--size", type=int, default=224, help="as of load_images (%(default)s)")
    add("--seed", type=int, default=0, help="of the choice of images (%(default)s)")
    add("--batch_size", type=count, default=8, help="pairs at a time (%(default)s)")
    add("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")


def run(
    args: argparse.Namespace, world: World, aligners: Mapping[str, Callable[..., Any]], **_: Any
) -> str:
    """Evaluate and write; what to tell on the command line. Raises as ``uq_cli.run``."""
    if args.images < 2:
        raise ValueError(f"--images {args.images}: a relative pose is of two images or more")
    reconstructors = {DENSE: partial(reconstruct, check_overlap=False), **aligners}
    ways = list(dict.fromkeys(part.strip() for part in args.methods.split(",")))
    for name in ways:
        if name not in (*reconstructors, PAIRS):
            known = ", ".join((*reconstructors, PAIRS))
            raise ValueError(f"--methods: {name!r} is unknown; choose of {known}")
    sets = [
        one
        for benchmark in parse_benchmarks(args.benchmarks)
        for one in image_sets(benchmark, args.num_sets, args.images, args.min_overlap, args.seed)
    ]
    model = load_model(args.ckpt, world.device, verbose=world.is_main)
    names = list(dict.fromkeys(one.benchmark for one in sets))
    metrics = {(b, w): PoseAccuracy().to(world.device) for b in names for w in ways}
    rows: list[dict[str, Any]] = []
    for one in tqdm(sets[world.rank :: world.size], "sets", disable=not world.is_main):
        images = load_images(list(one.files), args.size, verbose=False)
        for way in ways:
            try:
                if way == PAIRS:
                    errors = errors_of_pairs(model, images, one.poses, args.batch_size)
                else:
                    result = reconstructors[way](
                        model, images, batch_size=args.batch_size, verbose=False
                    )
                    errors = errors_of_scene(result, images, one.poses)
                failed = ""
            except ValueError as error:
                log.warning("%s, %s: %s", one.scene, way, error)
                errors = with_left_out(np.empty(0), np.empty(0), len(images))
                failed = str(error)
            metrics[one.benchmark, way].update(*errors, bool(failed))
            told = {"benchmark": one.benchmark, "scene": one.scene, "method": way}
            rows.append({**told, **numbers_of(*errors), "failed": failed})
    rows = [row for part in world.gather(rows) for row in part]
    found = [{"benchmark": b, "method": w} | m.compute() for (b, w), m in metrics.items()]
    if not world.is_main:
        return ""
    rows.sort(key=lambda row: (names.index(row["benchmark"]), row["scene"]))
    text = _markdown(found, args)
    settings = {key: getattr(args, key) for key in ("benchmarks", "methods", "num_sets", "images",
                "min_overlap", "size", "seed")} | {"ckpt": str(args.ckpt)}  # fmt: skip
    chosen = [
        {"benchmark": one.benchmark, "scene": one.scene, "images": [f.name for f in one.files]}
        for one in sets
    ]
    report.write_json(args.output_dir / "sets.json", chosen)
    report.write_json(args.output_dir / "pose.json", {"settings": settings, "results": found})
    report.write_csv(args.output_dir / "pose.csv", rows)
    report.write_text(args.output_dir / "pose.md", f"# Camera poses\n\n{text}")
    return f"{text}\nin {args.output_dir}\n"


def image_sets(
    benchmark: Benchmark, wanted: int | None, images: int, min_overlap: float, seed: int
) -> list[ImageSet]:
    """A set of ``images`` of each of the first ``wanted`` scenes, all where None.

    A function of the name, the scene's name and the seed.

    Raises:
        ValueError: the data set has no scenes, or one of its scenes no such images.
    """
    dataset = benchmark.dataset
    if not isinstance(dataset, ScanNetpp):
        raise ValueError(
            f"--benchmarks, {benchmark.name}: poses are evaluated on the scenes of one processed "
            f"data set, such as {_EXAMPLE}, and this is {dataset!r}"
        )
    sets = []
    scenes = np.unique(dataset.sceneids[dataset.pairs])
    for scene in scenes[:wanted].tolist():
        name = str(dataset.scenes[scene])
        rng = np.random.default_rng((seed, zlib.crc32(f"{benchmark.name}/{name}".encode())))
        chosen = chain(dataset, scene, images, min_overlap, rng)
        poses = dataset.trajectories[chosen].astype(float)
        files = tuple(paths(dataset, n)[0] for n in chosen)
        sets.append(ImageSet(benchmark.name, name, tuple(chosen), files, poses))
    return sets


def errors_of_scene(result: Reconstruction, images: Images, true: np.ndarray) -> Errors:
    """Of all pairs of images; those that the reconstruction left out are 180 degrees off."""
    names = [image["source"].name for image in images]
    kept = [names.index(source.name) for source in result.sources]
    return with_left_out(*pose_errors(result.poses, true[kept]), len(images))


def errors_of_pairs(
    model: AsymmetricCroCo3DStereo, images: Images, true: np.ndarray, batch_size: int = 8
) -> Errors:
    """Of each pair by itself: cameras by PnP on its own pointmaps, without any alignment."""
    rotations, directions = [], []
    for first, second in combinations(range(len(images)), 2):
        pair = make_pairs([images[first], images[second]])
        output = inference(pair, model, batch_size=batch_size, verbose=False)
        wanted = np.linalg.inv(true[first]) @ true[second]
        try:
            scene = global_aligner(output, mode=GlobalAlignerMode.PairViewer, verbose=False)
        except ValueError as error:
            log.warning("%s", error)
            rotation, direction = np.full((2, 1), WORST_DEGREES)
        else:
            poses = scene.get_im_poses().double().cpu().numpy()
            found = np.linalg.inv(poses[0]) @ poses[1]
            rotation, direction = relative_errors(found[None], wanted[None])
        rotations.append(rotation)
        directions.append(direction)
    return np.concatenate(rotations), np.concatenate(directions)


def _markdown(found: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> str:
    header = ["benchmark", "poses", "sets", "failed", f"RRA@{_LIMIT}", f"RTA@{_LIMIT}",
              f"mAA@{MAA_DEGREES}", "rotation, median", "direction, median"]  # fmt: skip
    rows = []
    for one in found:
        shares = [f"{100 * one[key]:.1f}%" for key in header[4:7]]
        medians = [f"{one[f'{key}_median']:.2f} deg" for key in ("rotation", "direction")]
        counts = [str(one["sets"]), str(one["failed"])]
        rows.append([one["benchmark"], one["method"], *counts, *shares, *medians])
    return (
        f"Sets of {args.images} images, of which each overlaps the next by {args.min_overlap} or "
        f"more; shares of pairs.\n\n{report.table(header, rows)}\n"
    )
