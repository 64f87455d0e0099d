"""Seconds and errors of the global alignment, on pairs whose cameras are known.

python scripts/bench_alignment.py [--gradient_descent] [--problems FILE.py] [--repeats 3]

Errors are the largest over all pairs of cameras, and the largest of a focal. ``--problems`` names a
file with ``alignment_problem(**kwargs)``, which returns (output of inference, poses, focal), and
``alignment_errors(poses, true_poses, focals, true_focal)``. ``--gradient_descent`` also times what
the alignment replaces: Adam on all pixels for 300 steps. GFLOP/s is the rate of this machine's
matrix product just then. Everything runs in this process, on its threads, one after the other.
"""

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch
from alignment_problems import focal_errors, noisy_pairs, pose_errors, room
from bench_common import matrix_rate, seconds
from torch import Tensor

from dust3r.cloud_opt import PointCloudOptimizer, global_aligner

# Name: room, images, noise and outliers of the project's own problems.
ROOMS = {
    "room, 1 % noise": (0, 8, 0.01, 0.0),
    "room, 3 % noise, 5 % outliers": (1, 8, 0.03, 0.05),
    "room, 5 % noise, 10 % outliers": (2, 12, 0.05, 0.1),
}
GIVEN = {
    "given, as it is": {},
    "given, 2 % noise, 10 % outliers": dict(
        n_images=10, height=128, width=160, focal=150, noise=0.02, outliers=0.1, seed=3
    ),
}

Errors = tuple[float, float, float]


@dataclass(frozen=True)
class Problem:
    """Pairs, and the errors (degrees, degrees, ratio) of poses (N, 4, 4) and focals (N,)."""

    name: str
    output: dict[str, Any]
    errors: Callable[[Tensor, Tensor], Errors]


@dataclass(frozen=True)
class Aligned:
    """Camera-to-world poses (N, 4, 4), focals (N,), and depth maps (H, W)."""

    poses: Tensor
    focals: Tensor
    depthmaps: list[Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=Path, default=None, help="file with further problems")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls; the median counts")
    parser.add_argument("--gradient_descent", action="store_true", help="time 300 steps of Adam")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(
        "| problem | images | pairs | by | seconds | rotation (deg) | direction (deg) | focal (%) "
        "| GFLOP/s |\n|---|---|---|---|---|---|---|---|---|"
    )
    ratios = []
    for problem in problems(args.problems):
        ours = _timed(problem, "second-order steps", second_order, args.repeats)
        if args.gradient_descent:
            theirs = _timed(problem, "300 steps of Adam", gradient_descent, 1)
            ratios.append(f"{theirs / ours:.0f} ({problem.name})")
    if ratios:
        print(f"\nTimes faster than Adam: {', '.join(ratios)}")


def problems(given: Path | None = None) -> Iterator[Problem]:
    """The project's own, then those of a file."""
    for name, (number, count, noise, outliers) in ROOMS.items():
        truth = room(number, count)

        def errors(poses: Tensor, focals: Tensor, truth: Any = truth) -> Errors:
            rotation, direction = pose_errors(poses.double().numpy(), truth.poses)
            focal = focal_errors(focals, truth.focals)
            return rotation.max(), np.nanmax(direction), focal.max()

        yield Problem(name, noisy_pairs(truth, noise, outliers), errors)
    if given is None:
        return
    spec = importlib.util.spec_from_file_location("given_problems", given)
    if spec is None or not given.is_file():
        raise FileNotFoundError(f"--problems {given} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, arguments in GIVEN.items():
        output, true_poses, focal = module.alignment_problem(**arguments)

        def errors(
            poses: Tensor, focals: Tensor, true_poses: Any = true_poses, focal: Any = focal
        ) -> Errors:
            return module.alignment_errors(poses, true_poses, focals, focal)

        yield Problem(name, output, errors)


def second_order(output: dict[str, Any]) -> Aligned:
    """The project's alignment, up to depth maps."""
    return _aligned(_aligner(output, niter=300))


def gradient_descent(output: dict[str, Any], niter: int = 300, rate: float = 0.01) -> Aligned:
    """DUSt3R's objective (Wang et al., 2024, eq. 5) by Adam, from the same first guess.

    Unknown are the depth of every pixel (its logarithm), rotation, translation and log-focal of
    every image, and a similarity of every pair, log-scales of mean 0. Distances between the world
    points of the images and the moved points of the pairs count by the logarithm of confidence. The
    rate falls to 0 along a line.
    """
    scene = _aligner(output, niter=0)
    guess, edges = _aligned(scene), torch.tensor(scene.edges)
    points = [scene.observations.points[side] for side in (0, 1)]
    points = torch.stack([torch.stack(list(maps)).flatten(1, 2).float() for maps in points], 1)
    weights = [
        torch.stack(list(maps)).flatten(1).float() for maps in scene.observations.confidences
    ]
    weights = torch.stack(weights, 1).log() * points.isfinite().all(-1)
    points = points.nan_to_num()
    offsets = _offsets(scene.imshapes[0])
    pairs = scene.get_pw_poses()
    sizes = torch.linalg.det(pairs[:, :3, :3]).pow(1 / 3)
    depth = torch.stack(guess.depthmaps).flatten(1)
    unknowns = {
        "depth": depth.clamp_min(1e-3 * depth.median()).log(),
        "focal": guess.focals[:, None].log(),
        "turn": roma.rotmat_to_unitquat(guess.poses[:, :3, :3]),
        "shift": guess.poses[:, :3, 3],
        "pair_turn": roma.rotmat_to_unitquat(pairs[:, :3, :3] / sizes[:, None, None]),
        "pair_shift": pairs[:, :3, 3],
        "pair_size": sizes.log(),
    }
    # Mean log-scale 0 makes the world's own scale another one.
    grown = unknowns["pair_size"].mean()
    for name in ("depth", "shift", "pair_shift"):
        unknowns[name] = unknowns[name] - grown if name == "depth" else unknowns[name] / grown.exp()
    unknowns = {name: value.clone().requires_grad_() for name, value in unknowns.items()}
    optimiser = torch.optim.Adam(unknowns.values(), lr=rate)
    for step in range(niter):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / niter)
        optimiser.zero_grad()
        _objective(unknowns, points, weights, edges, offsets).backward()
        optimiser.step()
    found = {name: value.detach() for name, value in unknowns.items()}
    poses = torch.eye(4).repeat(len(depth), 1, 1)
    poses[:, :3, :3], poses[:, :3, 3] = _rotations(found["turn"]), found["shift"]
    maps = [
        one.exp().view(shape) for one, shape in zip(found["depth"], scene.imshapes, strict=True)
    ]
    return Aligned(poses, found["focal"][:, 0].exp(), maps)


def _objective(
    unknowns: dict[str, Tensor], points: Tensor, weights: Tensor, edges: Tensor, offsets: Tensor
) -> Tensor:
    """Weighted mean distance; points (P, 2, M, 3), weights (P, 2, M), offsets (M, 2)."""
    depth = unknowns["depth"].exp()[..., None]
    rays = offsets / unknowns["focal"].exp()[..., None]
    own = torch.cat([rays * depth, depth], -1)
    world = own @ _rotations(unknowns["turn"]).mT + unknowns["shift"][:, None]
    size = unknowns["pair_size"]
    linear = (size - size.mean()).exp()[:, None, None] * _rotations(unknowns["pair_turn"])
    moved = points @ linear.mT[:, None] + unknowns["pair_shift"][:, None, None]
    return (weights * (world[edges] - moved).norm(dim=-1)).mean()


def _rotations(quaternions: Tensor) -> Tensor:
    return roma.unitquat_to_rotmat(torch.nn.functional.normalize(quaternions, dim=-1))


def _offsets(shape: tuple[int, int]) -> Tensor:
    """(H W, 2) pixels from the middle."""
    height, width = shape
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([u - width / 2, v - height / 2], -1).flatten(0, 1)


def _aligner(output: dict[str, Any], niter: int) -> PointCloudOptimizer:
    scene = global_aligner(output, verbose=False)
    scene.compute_global_alignment(niter=niter)
    return scene


def _aligned(scene: PointCloudOptimizer) -> Aligned:
    return Aligned(scene.get_im_poses(), scene.get_focals()[:, 0], scene.get_depthmaps())


def _timed(
    problem: Problem, name: str, align: Callable[[dict[str, Any]], Aligned], repeats: int
) -> float:
    """Prints a row; the median of seconds."""
    results: list[Aligned] = []
    times = []
    rate = matrix_rate()
    for _ in range(repeats):
        times.append(seconds(lambda: results.append(align(problem.output))))
    rate = max(rate, matrix_rate())
    rotation, direction, focal = problem.errors(results[-1].poses, results[-1].focals)
    pairs = problem.output["view1"]["idx"]
    cells = [
        problem.name,
        str(len(results[-1].poses)),
        str(len(pairs)),
        name,
        f"{statistics.median(times):.2f}",
        f"{rotation:.2f}",
        f"{direction:.2f}",
        f"{100 * focal:.2f}",
        f"{rate / 1e9:.0f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)
    return statistics.median(times)


if __name__ == "__main__":
    main()
