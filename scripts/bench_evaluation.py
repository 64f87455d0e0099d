"""Time and memory of evaluating stored predictions, over the number of pairs.

python scripts/bench_evaluation.py --pairs 100 1000

Makes predictions of 224x224 pairs (points, confidence and GeoUQ's evidence, 4 MB a pair) in a
temporary folder, each in files of its own, and runs ``evaluate.py uq --predictions`` over them.
Told are seconds by the clock, from the start of Python to the last file, seconds of CPU, and the
most memory that a process held. Exact evaluations need 6.5 MB of disk a pair beside this.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from dust3r.evaluation.predictions import INDEX, TRUTH, Predicted, pair_file, store_pair
from dust3r.utils.geometry import depthmap_to_pts3d

ROOT = Path(__file__).parents[1]
SOURCE = "made-up"
_DISTINCT = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--methods", default="conf,geom")
    parser.add_argument("--workers", type=int, default=2, help="processes that measure")
    parser.add_argument("--processes", type=int, default=1, help="of torchrun, each with workers")
    parser.add_argument("--streaming", action="store_true", help="sketches in place of all pixels")
    parser.add_argument("--folder", type=Path, help="for the predictions; else a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make(folder, max(args.pairs), args.size)
        mode = "streaming" if args.streaming else "exact"
        processes = f"{args.processes} x {args.workers} processes"
        print(f"{args.size}x{args.size}, {args.methods}, {mode}, {processes}\n")
        print("| pairs | seconds | CPU seconds | seconds / pair | memory of a process (MB) |")
        print("|---|---|---|---|---|")
        for pairs in args.pairs:
            seconds, cpu, memory = run(folder, pairs, args)
            print(f"| {pairs} | {seconds:.1f} | {cpu:.1f} | {seconds / pairs:.3f} | {memory:.0f} |")


def make(folder: Path, pairs: int, size: int) -> None:
    """``pairs`` stored predictions, a few distinct ones and copies of these."""
    generator = torch.Generator().manual_seed(0)
    for index in tqdm(range(pairs), "making predictions", leave=False):
        if index < _DISTINCT:
            store_pair(folder, "Walls", _pair(index, size, generator))
            continue
        for name in (TRUTH, SOURCE):
            source, copy = (pair_file(folder, "Walls", name, n) for n in (index % _DISTINCT, index))
            shutil.copyfile(source, copy)
    content = {
        "benchmarks": {"Walls": {"spec": "made up", "pairs": list(range(pairs))}},
        "methods": {},
        "sources": {SOURCE: SOURCE},
    }
    (folder / INDEX).write_text(json.dumps(content))


def run(folder: Path, pairs: int, args: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds by the clock, of CPU, and megabytes of the largest process."""
    with tempfile.TemporaryDirectory(dir=args.folder) as out:
        launch = [sys.executable]
        if args.processes > 1:
            launch += ["-m", "torch.distributed.run", "--standalone"]
            launch += ["--nproc_per_node", str(args.processes)]
        command = [*launch, str(ROOT / "evaluate.py"), "uq", "--predictions", str(folder)]
        command += ["--methods", args.methods, "--num_pairs", str(pairs), "--device", "cpu"]
        command += ["--num_workers", str(args.workers), "--output_dir", out]
        command += ["--streaming"] if args.streaming else []
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, after.ru_maxrss / 1024


def _pair(index: int, size: int, generator: torch.Generator) -> Predicted:
    intrinsics = torch.tensor([[[0.9 * size, 0, size / 2], [0, 0.9 * size, size / 2], [0, 0, 1]]])
    views, predictions = [], []
    for number in range(2):
        pose = torch.eye(4)[None].clone()
        pose[0, 0, 3] = 0.1 * (2 * index + number)
        noise = torch.randn(5, 1, size, size, generator=generator)
        depth = 2 + 0.5 * noise[0].sigmoid()
        sigma = 0.05 * noise[1].exp()
        points = depthmap_to_pts3d(depth, intrinsics, pose) + sigma[..., None] * noise[2][..., None]
        views.append(
            {
                "img": noise[3].tanh()[:, None].expand(-1, 3, -1, -1),
                "depthmap": depth,
                "valid_mask": depth > 0,
                "camera_pose": pose,
                "camera_intrinsics": intrinsics,
                "true_shape": torch.tensor([[size, size]]),
                "label": [f"wall/{2 * index + number}"],
                "instance": [f"wall/{2 * index + number}.jpg"],
            }
        )
        mean, beta = (depth + sigma * noise[2])[:, None], (30 * sigma.square())[:, None]
        evidence = {"gamma": mean, "nu": 5 + 0 * mean, "alpha": 31 + 0 * mean, "beta": beta}
        predictions.append(
            {
                "pts3d_in_other_view" if number else "pts3d": points,
                "conf": 1 + 1 / (sigma * noise[4].exp()),
                "depth_mu": mean.clone(),
                "depth_var": sigma.square()[:, None],
                **{f"depth_{key}": value for key, value in evidence.items()},
            }
        )
    return Predicted(index, tuple(views), {SOURCE: tuple(predictions)})


if __name__ == "__main__":
    main()
