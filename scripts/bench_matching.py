"""Seconds, matches and peak memory of reciprocal matching, each problem in a process of its own.

python scripts/bench_matching.py [--problems FILE.py] [--repeats 5] [--skip large]

``--problems`` names a file whose ``matching_problem()`` gives two (H, W, D) descriptor maps. The
matrix rate is that of a 2048^3 fp32 product in the same process, before and after; ``work`` is what
one search there and one back would take at this rate. Peak memory is the process's resident memory;
``above`` is how much of it came after the descriptors were there. ``full`` is a second way to the
same matches, by the whole matrix of scores, where that fits.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_common import matrix_rate, median_seconds, seconds
from torch import Tensor

from mast3r.fast_nn import fast_reciprocal_NNs

Maps = tuple[Tensor, Tensor]

# Name: (height, width), whether it is matched to itself, and whether the full matrix is tried.
OWN = {
    "small": ((96, 128), False, True),
    "usual": ((384, 512), False, False),
    "large": ((1152, 1536), True, False),
}
SUBSAMPLE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=Path, help="file with a matching_problem()")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls; the median counts")
    parser.add_argument("--skip", nargs="*", choices=OWN, default=[], help="problems to leave out")
    parser.add_argument("--dist", choices=("dot", "l2"), default="dot")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.problems, args.repeats, args.dist)))
        return
    print(f"torch {torch.__version__}, {device()}, {torch.get_num_threads()} threads")
    print("| problem | size | seconds | matches | rate (GFLOP/s) | work (s) | peak (MiB) | above |")
    print("|---|---|---|---|---|---|---|---|")
    names = [*(["file"] if args.problems else []), *(name for name in OWN if name not in args.skip)]
    for name in names:
        row = in_a_process(name, args)
        cells = [
            name,
            row["size"],
            f"{row['seconds']:.2f}",
            f"{row['matches']}",
            f"{row['rate'] / 1e9:.0f}",
            f"{row['work'] / row['rate']:.2f}",
            f"{row['peak']:.0f}",
            f"{row['above']:.0f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
        if row["full"]:
            ratio = row["full"] / row["seconds"]
            print(f"| {name}, full | {row['size']} | {row['full']:.2f} ({ratio:.1f}x) |" + " |" * 5)


def matching_problem(
    height: int = 384, width: int = 512, dim: int = 24, noise: float = 0.3, itself: bool = False
) -> Maps:
    """Unit-norm descriptors (H, W, D) of two images, the second shifted and noisy.

    Neighbouring pixels have related descriptors, as a network's do: half of a pixel's descriptor is
    that of its surroundings.
    """
    generator = torch.Generator().manual_seed(0)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    coarse = gaussian(1, dim, height // 8 + 1, width // 8 + 1)
    around = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    first = F.normalize((around[0] + gaussian(dim, height, width)).movedim(0, -1), dim=-1)
    if itself:
        return first, first
    moved = torch.roll(first, (height // 50, width // 40), (0, 1))
    return first, F.normalize(moved + noise * gaussian(height, width, dim) / dim**0.5, dim=-1)


def full_reciprocal(first: Tensor, second: Tensor, subsample: int) -> Maps:
    """The same from the whole matrix of scores: every pixel's neighbour, then walks from seeds."""
    scores = first.flatten(0, 1) @ second.flatten(0, 1).t()
    there, back = scores.argmax(1), scores.argmax(0)
    y = torch.arange(subsample // 2, first.shape[0], subsample, device=first.device)
    x = torch.arange(subsample // 2, first.shape[1], subsample, device=first.device)
    here = (y[:, None] * first.shape[1] + x).flatten()
    for _ in range(9):
        here = back[there[here]]
    here = here[back[there[here]] == here].unique()
    return here, there[here]


def measure(name: str, file: Path | None, repeats: int, dist: str) -> dict:
    """Figures of one problem in this process."""
    if name == "file":
        first, second = load(file)
        try_full = False
    else:
        (height, width), itself, try_full = OWN[name]
        first, second = matching_problem(height, width, itself=itself)
    first, second = first.to(device()), second.to(device())

    def run() -> tuple:
        return fast_reciprocal_NNs(
            first, second, SUBSAMPLE, device=device(), dist=dist, ret_xy=False
        )

    # The rate takes memory too, so that it comes after the peak is read.
    before = peak()
    found = []
    once = seconds(lambda: found.extend(run()))
    after = peak()
    rate = matrix_rate()
    seeds = len(first[SUBSAMPLE // 2 :: SUBSAMPLE]) * len(first[0, SUBSAMPLE // 2 :: SUBSAMPLE])
    pixels = first.shape[:2].numel() + second.shape[:2].numel()
    row = {
        "size": f"{first.shape[1]}x{first.shape[0]}x{first.shape[2]}",
        "seconds": median_seconds(run, repeats) if repeats else once,
        "matches": len(found[0]),
        "rate": max(rate, matrix_rate()),
        "work": 2.0 * seeds * pixels * first.shape[2],
        "peak": after,
        "above": after - before,
        "full": None,
    }
    if try_full:
        full = full_reciprocal(first, second, SUBSAMPLE)
        same = all((torch.from_numpy(a) == b.cpu()).all() for a, b in zip(found, full, strict=True))
        if not same:
            raise SystemExit(f"{name}: the two ways give different matches")
        row["full"] = median_seconds(lambda: full_reciprocal(first, second, SUBSAMPLE), repeats)
    return row


def in_a_process(name: str, args: argparse.Namespace) -> dict:
    command = [sys.executable, __file__, "--only", name, "--dist", args.dist]
    # A minute a call: the first is enough.
    command += ["--repeats", str(0 if name == "large" else args.repeats)]
    if args.problems:
        command += ["--problems", str(args.problems)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{name} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1])


def load(path: Path) -> Maps:
    spec = importlib.util.spec_from_file_location("problems", path)
    if spec is None or not path.is_file():
        raise SystemExit(f"--problems {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.matching_problem()


def peak() -> float:
    """Largest memory of this process so far in MiB, of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
