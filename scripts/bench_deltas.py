"""Seconds of DELTAS on three frames, against this machine's own rate.

python scripts/bench_deltas.py [--sizes 320x240 640x480] [--frames 3] [--num_kps 512] [--repeats 5]

FLOPs are torch's count of the network as it runs, without those of the zeros that are never
multiplied; seconds are the median call's. The share is FLOPs per second of the best call, as other
processes disturb it least, over the best rate of a 2048^3 fp32 matrix product measured before and
after in the same process. Weights are random: time does not depend on them.
"""

import argparse

import torch
from bench_common import matrix_rate, median_seconds, seconds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from deltas.model import Deltas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["320x240"], help="width x height")
    parser.add_argument("--frames", type=int, default=3, help="the anchor's included")
    parser.add_argument("--num_kps", type=int, default=512, help="points of the anchor")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls; the median counts")
    parser.add_argument("--width", type=int, default=64, help="of the encoder; smaller for a look")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = Deltas(num_kps=args.num_kps, width=args.width).eval().to(device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    print("| size | GFLOP | plain | share | folded | share | GEMM GFLOP/s |")
    print("|---|---|---|---|---|---|---|")
    inputs = {size: sequence(size, args.frames, device) for size in args.sizes}
    plain = {size: measure(model, given, args.repeats) for size, given in inputs.items()}
    model.fold_batch_norms()
    for size, given in inputs.items():
        flops, *cells = plain[size]
        _, *folded = measure(model, given, args.repeats)
        shown = " | ".join(
            f"{median:.3f} | {flops / best / rate:.2f}" for median, best, rate in (cells, folded)
        )
        print(f"| {size} | {flops / 1e9:.0f} | {shown} | {folded[2] / 1e9:.0f} |", flush=True)


@torch.no_grad()
def measure(
    model: Deltas, given: tuple[Tensor, Tensor, Tensor], repeats: int
) -> tuple[int, float, float, float]:
    """FLOPs of a pass, its median and least seconds, and the matrix product's FLOP/s."""
    with FlopCounterMode(display=False) as counter:
        model(*given)
    before = matrix_rate()
    median = median_seconds(lambda: model(*given), repeats)
    best = min(seconds(lambda: model(*given)) for _ in range(repeats))
    return counter.get_total_flops(), median, best, max(before, matrix_rate())


def sequence(size: str, frames: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random images (1, F, 3, H, W), poses 5 cm apart, and intrinsics (1, 3, 3)."""
    width, height = map(int, size.split("x"))
    images = torch.rand(1, frames, 3, height, width, generator=torch.Generator().manual_seed(0))
    poses = torch.eye(4).repeat(1, frames, 1, 1)
    poses[:, :, 0, 3] = 0.05 * torch.arange(frames)
    focal = 0.9 * width
    intrinsics = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]])
    return tuple(tensor.to(device) for tensor in (images * 2 - 1, poses, intrinsics))


if __name__ == "__main__":
    main()
