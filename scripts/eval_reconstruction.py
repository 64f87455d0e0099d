"""Whole reconstructions against the truth: cameras, focals, points and their deviations.

python scripts/eval_reconstruction.py --ckpt checkpoints/rooms_small.safetensors --root ROOT

Every scene of a processed data set gives a few images, a random chain in which each overlaps the
next. They go through ``dust3r.pipeline.reconstruct`` (all pairs; the network's weights as
confidence, and as uncertainty where it states one; ``first guess`` ends before the optimisation),
and pairs made from their true depth, with an error added, go through the alignment alone: what
remains there is the alignment's doing. Models with descriptors also give ``sparse`` rows, by
``mast3r.pipeline.reconstruct_sparse``: as it is, with the cameras of its first stage (``coarse``),
and with depth as the network has it (``fixed depth``). Images that it leaves out count as wrong in
shares and as 180 degrees off in medians. Columns:

- rot, dir: errors, in degrees, of relative rotations and directions of translation; of a scene the
  median (and mean) over its pairs of images. RRA, RTA: share of pairs below 5 and 15 degrees;
  mAA(30): mean over thresholds of 1 to 30 degrees of the share with both below. A translation the
  wrong way is 180 degrees off. Shares are over all scenes; one that raised an error has none.
- focal: relative error, mean over images. ATE: root mean squared distance of camera centres after
  a similarity (Umeyama, 1991), over the largest distance between two of them.
- points: distance of world points to the true ones at the same pixels after a robust similarity,
  over mean depth; median (and mean) over pixels. kept: share of pixels that are points.
- ranking: sparsification error of relative depth errors by deviation / depth, or 1 / confidence
  where none is stated; 0 is the order of the errors themselves, 1 a random one. 1 s, 2 s: share of
  depths within one and two deviations.

A row is the median over the scenes that gave a reconstruction. Failed are those that raised an
error, and those with half of their pairs off by more than 30 degrees in rotation.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alignment_problems import noisy_pairs
from tqdm import tqdm

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.cloud_opt import global_aligner
from dust3r.cloud_opt.similarity import apply, register, scale_of
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.evaluation.image_sets import Truth, chain, paths, read_truth
from dust3r.evaluation.pose_measures import (
    accuracies,
    focal_errors,
    pose_errors,
    trajectory_error,
    with_left_out,
)
from dust3r.model import load_model
from dust3r.pipeline import reconstruct
from dust3r.reconstruction import Reconstruction
from dust3r.uncertainty.metrics import aurc, ause
from dust3r.utils.device import best_device
from dust3r.utils.files import atomic_path
from dust3r.utils.geometry import depthmap_to_pts3d
from dust3r.utils.image import load_images
from mast3r.pipeline import reconstruct_sparse

log = logging.getLogger("eval_reconstruction")

FIRST_GUESS = "first guess (spanning tree)"
_REGISTERED = 20000
_LOST_DEGREES = 30

Measures = dict[str, float]


@dataclass(frozen=True)
class Column:
    """Of the table: a measure of scenes, its unit's factor, digits, and how scenes are joined."""

    title: str
    key: str
    factor: float = 1.0
    digits: int = 1
    join: Callable[[Sequence[float]], float] = np.median


COLUMNS = (
    Column("rot (deg)", "rotation_median", digits=2),
    Column("mean", "rotation_mean", digits=2),
    Column("dir (deg)", "direction_median"),
    Column("mean", "direction_mean"),
    *(
        Column(f"{name}@{limit}", f"{name}@{limit}", 100, 0, np.mean)
        for name in ("RRA", "RTA")
        for limit in (5, 15)
    ),
    Column("mAA(30)", "mAA30", 100, 0, np.mean),
    Column("focal (%)", "focal", 100),
    Column("ATE (%)", "ate", 100),
    Column("points (%)", "point_median", 100),
    Column("mean", "point_mean", 100),
    Column("kept (%)", "kept", 100, 0),
    Column("ranking", "ranking", digits=2),
    Column("1 s (%)", "within_1", 100, 0),
    Column("2 s (%)", "within_2", 100, 0),
    Column("seconds", "seconds"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="a processed data set")
    parser.add_argument("--num_scenes", type=int, default=20)
    parser.add_argument("--images", type=int, default=6, help="of a scene")
    parser.add_argument("--size", type=int, default=224, help="as of load_images")
    parser.add_argument(
        "--weights", nargs="*", default=["confidence"], choices=["confidence", "uncertainty"]
    )
    parser.add_argument(
        "--noise", nargs="*", type=float, default=[0.01, 0.05], help="of alignment alone, relative"
    )
    parser.add_argument("--min_overlap", type=float, default=0.3, help="of an image and the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None, help=".json to write, scene by scene")
    args = parser.parse_args()
    logging.getLogger("dust3r").setLevel(logging.ERROR)
    dataset = ScanNetpp("all", args.root, args.size)
    model = load_model(args.ckpt, best_device(), verbose=False)
    found: dict[str, dict[str, Measures | str]] = {}
    turns = []
    scenes = range(min(args.num_scenes, len(dataset.scenes)))
    for scene in tqdm(scenes, "scenes"):
        rng = np.random.default_rng([args.seed, scene])
        chosen = chain(dataset, scene, args.images, args.min_overlap, rng)
        images = load_images([paths(dataset, n)[0] for n in chosen], args.size, verbose=False)
        truth = read_truth(dataset, chosen, images)
        names = [image["source"].name for image in images]
        still = np.tile(np.eye(4), (len(truth), 1, 1))
        turns.append(np.median(pose_errors(still, truth.poses)[0]))
        for name, run in variants(model, images, truth, args.weights, args.noise, scene):
            measured = attempt(run, truth, names)
            found.setdefault(name, {})[str(dataset.scenes[scene])] = measured
            if args.output:
                with atomic_path(args.output) as temporary:
                    temporary.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(scenes)} scenes of {args.images} images of {args.root}, {args.ckpt}\n")
    titles = ["variant", "failed", *(column.title for column in COLUMNS)]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for name, results in found.items():
        print(f"| {name} | {' | '.join(row(list(results.values())))} |")
    print(
        f"\nCameras that never turn would have a rot of {np.median(turns):.1f}, random directions "
        "a dir of 90."
    )


def variants(
    model: torch.nn.Module,
    images: Sequence[dict[str, Any]],
    truth: Truth,
    weights: Sequence[str],
    noises: Sequence[float],
    seed: int,
) -> Iterator[tuple[str, Callable[[], Reconstruction]]]:
    """Names of the table's rows, and what makes a reconstruction of each."""

    def whole(**options: Any) -> Callable[[], Reconstruction]:
        return lambda: reconstruct(model, images, check_overlap=False, verbose=False, **options)

    def aligned(noise: float) -> Callable[[], Reconstruction]:
        output = noisy_pairs(truth, noise, seed=seed)

        def run() -> Reconstruction:
            scene = global_aligner(output, verbose=False)
            scene.compute_global_alignment()
            return Reconstruction.from_scene(scene)

        return run

    if "confidence" in weights:
        yield FIRST_GUESS, whole(niter=0)
    for kind in weights:
        yield f"whole path, by {kind}", whole(weights=kind)
    if getattr(model, "desc_dim", 0):
        with tempfile.TemporaryDirectory() as cache:

            def sparse(**options: Any) -> Callable[[], Reconstruction]:
                return lambda: reconstruct_sparse(
                    model, images, cache_path=cache, verbose=False, **options
                )

            yield "sparse", sparse()
            yield "sparse, fixed depth", sparse(opt_depth=False)
            yield "sparse, coarse", sparse(niter2=0)
    for noise in noises:
        yield f"alignment alone, {noise:.0%} noise", aligned(noise)


def attempt(
    run: Callable[[], Reconstruction], truth: Truth, names: Sequence[str]
) -> Measures | str:
    """Measures of what ``run`` makes, or why it made nothing."""
    start = time.perf_counter()
    try:
        result = run()
    except ValueError as error:
        log.warning("%s", error)
        return str(error)
    elapsed = time.perf_counter() - start
    return measure(result, truth, names) | {"seconds": elapsed}


def measure(result: Reconstruction, truth: Truth, names: Sequence[str] | None = None) -> Measures:
    """All errors of one reconstruction; the module says what they are.

    Args:
        names: of the images that were given, where some may have been left out.
    """
    kept, count = kept_images(result, names), len(truth)
    rotation, direction = pose_errors(result.poses, truth.poses[kept])
    rotation, direction = with_left_out(rotation, direction, count)
    shares = accuracies(rotation, direction)
    truth = Truth(truth.poses[kept], truth.intrinsics[kept], truth.depths[kept])
    direction = direction[np.isfinite(direction)]
    focals = result.intrinsics[:, (0, 1), (0, 1)].mean(1)
    return {
        "rotation_median": float(np.median(rotation)),
        "rotation_mean": float(rotation.mean()),
        "direction_median": float(np.median(direction)),
        "direction_mean": float(direction.mean()),
        **shares,
        "focal": float(focal_errors(focals, truth.focals).mean()),
        "ate": trajectory_error(result.poses[:, :3, 3], truth.poses[:, :3, 3]),
        **point_measures(result, truth),
    }


def kept_images(result: Reconstruction, names: Sequence[str] | None) -> list[int]:
    """Places in ``names`` of the images that were reconstructed; all where there are none."""
    if names is None or len(result) == len(names):
        return list(range(len(result)))
    return [names.index(source.name) for source in result.sources]


def point_measures(result: Reconstruction, truth: Truth) -> Measures:
    """Errors of points after a similarity, and what deviations tell of those of depth."""
    known = truth.depths > 0
    used = np.stack(result.valid) & known
    true = depthmap_to_pts3d(truth.depths.astype(float), truth.intrinsics, truth.poses)
    points = np.stack([result.pts3d(n) for n in range(len(result))]).astype(float)
    given, wanted = torch.from_numpy(points[used]), torch.from_numpy(true[used])
    chosen = slice(None, None, max(1, len(given) // _REGISTERED))
    ones = torch.ones(1, len(given[chosen]))
    similarity = register(given[None, chosen], wanted[None, chosen], ones)[0]
    distance = (apply(similarity, given) - wanted).norm(dim=-1).numpy()
    depth, true_depth = np.stack(result.depthmaps)[used], truth.depths[used]
    error = np.abs(float(scale_of(similarity)) * depth - true_depth)
    doubts = torch.from_numpy(np.stack(result.doubts())[used]).float()
    relative = torch.from_numpy(error / true_depth).float()
    oracle = aurc(relative, relative)
    measures = {
        "point_median": float(np.median(distance) / true_depth.mean()),
        "point_mean": float(distance.mean() / true_depth.mean()),
        "kept": float(used.sum() / known.sum()),
        "ranking": float(ause(relative, doubts) / (relative.double().mean() - oracle)),
    }
    if result.deviations is not None:
        sigma = float(scale_of(similarity)) * np.stack(result.deviations)[used]
        measures |= {f"within_{k}": float((error <= k * sigma).mean()) for k in (1, 2)}
    return measures


def row(results: Sequence[Measures | str]) -> list[str]:
    """The number of failed scenes, and the columns."""
    measured = [one for one in results if not isinstance(one, str)]
    good = sum(one["rotation_median"] <= _LOST_DEGREES for one in measured)
    cells = [str(len(results) - good)]
    for column in COLUMNS:
        if column.join is np.mean:
            values = [0.0 if isinstance(one, str) else one[column.key] for one in results]
        else:
            values = [one.get(column.key, np.nan) for one in measured]
            values = [value for value in values if np.isfinite(value)]
        value = column.factor * column.join(values) if values else None
        cells.append("-" if value is None else f"{value:.{column.digits}f}")
    return cells


if __name__ == "__main__":
    main()
