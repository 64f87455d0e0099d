"""Seconds of a forward pass of the published size on one pair, against this machine's own rate.

python scripts/bench_forward.py [--heads dpt catmlp+dpt] [--sizes 224x224 512x384] [--repeats 3]

FLOPs are torch's count; the share is FLOPs per second over the rate of a 2048^3 fp32 matrix product
measured before and after in the same process. On the CPU, ``packed`` is after ``pack_weights()``,
and so is bf16. Weights are random: time does not depend on them, but bf16's error does somewhat, so
``--ckpt`` takes published or trained weights.
"""

import argparse
from dataclasses import dataclass

import torch
from bench_common import HEADS, matrix_rate, median_seconds, random_views
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dust3r.training import checkpoint
from dust3r.utils.spec import MODELS, build


@dataclass(frozen=True)
class Timing:
    """Median seconds of a call, its share of the fp32 matrix rate, and its points (B, H, W, 3)."""

    seconds: float
    share: float
    points: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=["dpt", "catmlp+dpt"])
    parser.add_argument("--sizes", nargs="+", default=["224x224", "512x384"], help="width x height")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls; the median counts")
    parser.add_argument("--widths", default="", help="widths of a smaller model, for a quick look")
    parser.add_argument("--ckpt", default=None, help="weights to use")
    parser.add_argument("--bf16", action="store_true", help="also time bf16 and give its error")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    print("| head | size | GFLOP | fp32 | share | packed | share | bf16 | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for head in args.heads:
        torch.manual_seed(0)
        spec = f"AsymmetricMASt3R({HEADS[head]}, landscape_only=False, {args.widths})"
        model = build(spec, MODELS).eval().to(device)
        if args.ckpt:
            checkpoint.load_state_dict(model, checkpoint.load_file(args.ckpt)["model"])
        for cells in measure(model, args.sizes, args.repeats, args.bf16, device):
            print(f"| {head} | {' | '.join(cells)} |", flush=True)


@torch.no_grad()
def measure(
    model: nn.Module, sizes: list[str], repeats: int, bf16: bool, device: str
) -> list[list[str]]:
    """The table's cells of every size, from the size on; ``model`` is left packed."""
    pairs = {size: random_views(1, *map(int, size.split("x")[::-1]), device) for size in sizes}
    flops = {}
    for size, views in pairs.items():
        with FlopCounterMode(display=False) as counter:
            model(*views)
        flops[size] = counter.get_total_flops()

    def timed(half: bool = False) -> dict[str, Timing]:
        timings = {}
        for size, views in pairs.items():

            def forward(views: tuple[dict, dict] = views) -> Tensor:
                with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
                    return model(*views)[0]["pts3d"]

            before = matrix_rate()
            seconds = median_seconds(forward, repeats)
            share = flops[size] / seconds / max(before, matrix_rate())
            timings[size] = Timing(seconds, share, forward())
        return timings

    plain = timed()
    packed = timed() if model.pack_weights() else {}
    half = {}
    if bf16:
        model.pack_weights(torch.bfloat16)
        half = timed(half=True)
    return [
        [size, f"{flops[size] / 1e9:.0f}", *cells(plain[size], packed.get(size), half.get(size))]
        for size in sizes
    ]


def cells(plain: Timing, packed: Timing | None, half: Timing | None) -> list[str]:
    found = []
    for timing in (plain, packed):
        found += [f"{timing.seconds:.2f}", f"{timing.share:.2f}"] if timing else ["", ""]
    if not half:
        return [*found, "", ""]
    error = (half.points - plain.points).norm() / plain.points.norm()
    return [*found, f"{half.seconds:.2f} ({half.seconds / plain.seconds:.2f}x)", f"{error:.2%}"]


if __name__ == "__main__":
    main()
