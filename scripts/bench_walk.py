"""Sparse alignment of a long walk: seconds, memory, and drift against the truth.

python -m datasets_preprocess.make_house --output_dir HOUSE --resolution 224 224
python scripts/bench_walk.py --root HOUSE --ckpt checkpoints/rooms_small_mast3r.safetensors \\
    --cache CACHE --scene_graph retrieval-20-10

The first run computes forward results, a second one of the same command finds them. ``--noise``
takes results made from true depth and poses in place of a network's: what remains is the
alignment's doing. Memory is that of the whole process, at its largest.

Drift: cameras are moved onto the true ones by one similarity (Umeyama, 1991), then the distance of
centres, the root mean square and the largest, also over the length of the way; rotations left; and,
with the first tenth of the cameras aligned alone (their orientation by their rotations, as a
straight tenth would leave it open), how far off the last one then is.
"""

import argparse
import logging
import resource
import time
from pathlib import Path

import cv2
import numpy as np
import roma
import torch
from alignment_problems import Truth
from sparse_problems import KnownResults

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.cloud_opt.scene import Scene
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.image_pairs import make_pairs
from dust3r.model import load_model
from dust3r.utils.image import load_images
from mast3r.cloud_opt.forward import ForwardResults, forward_results, images_of
from mast3r.cloud_opt.sparse_ga import SparseScene
from mast3r.pipeline import scene_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="a processed data set, one scene")
    parser.add_argument("--ckpt", type=Path, help="a model with descriptors")
    parser.add_argument("--cache", type=Path, help="folder of forward results")
    parser.add_argument("--noise", type=float, help="of depth, relative, instead of --ckpt")
    parser.add_argument("--pixel_noise", type=float, default=1.0, help="of matches, with --noise")
    parser.add_argument("--outliers", type=float, default=0.1, help="share of matches, likewise")
    parser.add_argument("--scene_graph", default="swin-5")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--depth", default="network")
    parser.add_argument("--matching_conf_thr", type=float, default=0.0)
    parser.add_argument("--shared_intrinsics", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(args.threads)
    if (args.ckpt is None) == (args.noise is None) or (args.ckpt and not args.cache):
        parser.error("give --ckpt and --cache, or --noise")
    dataset = ScanNetpp("all", args.root, args.size)
    truth = read_walk(dataset, args.images, depth=args.noise is not None)
    start = time.perf_counter()
    results = made(args, dataset, truth)
    forward = time.perf_counter()
    scene = SparseScene(
        results,
        matching_conf_thr=args.matching_conf_thr,
        shared_intrinsics=args.shared_intrinsics,
        verbose=False,
    )
    read = time.perf_counter()
    spread = scene.compute_global_alignment(depth=args.depth)
    aligned = time.perf_counter()
    scene.get_depthmaps()
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(truth)} images, {len(results.edges)} pairs ({scene.n_edges} verified), "
        f"{results.computed} passes computed\n"
        f"pairs and forward passes {forward - start:.0f} s; reading and verifying "
        f"{read - forward:.0f} s, alignment {aligned - read:.0f} s, depth maps "
        f"{ended - aligned:.0f} s; together {ended - start:.0f} s\n"
        f"whole process at most {peak:.1f} GiB; matches are {spread:.2f} pixels off"
    )
    print(drift(scene, truth))


def made(
    args: argparse.Namespace, dataset: ScanNetpp, truth: Truth
) -> ForwardResults | KnownResults:
    """Forward results of the pairs of the graph."""
    if args.noise is not None:
        views = [{"idx": n} for n in range(len(truth))]
        pairs = make_pairs(views, args.scene_graph, symmetrize=False)
        edges = sorted({tuple(sorted((a["idx"], b["idx"]))) for a, b in pairs})
        return KnownResults(truth, args.noise, args.pixel_noise, args.outliers, edges)
    scene = args.root / str(dataset.scenes[0])
    paths = [scene / "images" / f"{name}.jpg" for name in dataset.images[: len(truth)]]
    images = load_images(paths, args.size, verbose=False)
    model = load_model(args.ckpt, verbose=False)
    pairs = scene_pairs(model, images, args.scene_graph, verbose=False)
    return forward_results(*images_of(pairs), model, args.cache, verbose=True)


def read_walk(dataset: ScanNetpp, count: int, depth: bool) -> Truth:
    """Cameras of the first images, and their depth if it is asked for."""
    chosen = range(min(count, len(dataset.images)))
    scene = dataset.root / str(dataset.scenes[0])
    shape = cv2.imread(str(scene / "depth" / f"{dataset.images[0]}.png"), -1).shape
    maps = np.zeros((len(chosen), *shape), np.float32)
    for n in chosen if depth else ():
        maps[n] = dataset.read_depth(scene / "depth" / f"{dataset.images[n]}.png", n)
    return Truth(
        dataset.trajectories[: len(chosen)].astype(float),
        dataset.intrinsics[: len(chosen)].astype(float),
        maps,
    )


def drift(scene: Scene, truth: Truth) -> str:
    """What the module says, in words."""
    poses = truth.poses[list(scene.image_ids)]
    found = scene.get_im_poses().double().numpy()
    length = np.linalg.norm(np.diff(truth.poses[:, :3, 3], axis=0), axis=1).sum()
    distance, rotation = errors_after(found, poses, slice(None))
    loose = errors_of_the_end(found, poses, max(3, len(poses) // 10))
    focal = np.abs(scene.get_focals()[:, 0].numpy() / truth.focals[list(scene.image_ids)] - 1)
    rms = float(np.sqrt(np.mean(distance**2)))
    return (
        f"{len(poses)} of {len(truth)} images, a way of {length:.1f} m: centres "
        f"{rms:.3f} m off (root mean square; {100 * rms / length:.2f} % of the way), at most "
        f"{distance.max():.3f} m; rotations {np.median(rotation):.2f} degrees (median), at most "
        f"{rotation.max():.2f}; focals {100 * np.median(focal):.1f} %\n"
        f"the last camera with the first tenth aligned: {loose:.3f} m off, "
        f"{100 * loose / length:.2f} % of the way"
    )


def errors_after(
    found: np.ndarray, true: np.ndarray, chosen: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (N,) of centres and degrees (N,) after the similarity of the ``chosen`` ones."""
    given, wanted = torch.from_numpy(found[:, :3, 3]), torch.from_numpy(true[:, :3, 3])
    turn, shift, scale = roma.rigid_points_registration(
        given[chosen], wanted[chosen], compute_scaling=True
    )
    distance = (scale * given @ turn.T + shift - wanted).norm(dim=1).numpy()
    left = turn @ torch.from_numpy(found[:, :3, :3])
    angle = roma.rotmat_geodesic_distance(left, torch.from_numpy(true[:, :3, :3]))
    return distance, np.degrees(angle.numpy())


def errors_of_the_end(found: np.ndarray, true: np.ndarray, count: int) -> float:
    """Distance of the last centre once the first ``count`` cameras are moved onto the true ones."""
    given, wanted = (torch.from_numpy(poses[:count]) for poses in (found, true))
    turn = roma.special_procrustes((wanted[:, :3, :3] @ given[:, :3, :3].mT).mean(0))
    centres = [poses[:, :3, 3] - poses[:, :3, 3].mean(0) for poses in (given, wanted)]
    scale = centres[1].norm() / centres[0].norm()
    end = torch.from_numpy(found[-1, :3, 3]) - given[:, :3, 3].mean(0)
    moved = scale * turn @ end + wanted[:, :3, 3].mean(0)
    return float((moved - torch.from_numpy(true[-1, :3, 3])).norm())


if __name__ == "__main__":
    main()
