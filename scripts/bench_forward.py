"""Seconds of a forward pass of the published size on one pair, against this machine's own rate.

python scripts/bench_forward.py [--heads dpt catmlp+dpt] [--sizes 224x224 512x384] [--repeats 3]

FLOPs are torch's count; the share is FLOPs per second over the rate of a 2048^3 fp32 matrix product
measured before and after in the same process. On the CPU, both are given for ``pack_weights()`` as
well. Weights are random: time does not depend on them, but bf16's error does somewhat, so
``--ckpt`` takes published or trained weights.
"""

import argparse
from copy import deepcopy

import torch
from bench_common import HEADS, matrix_rate, median_seconds, random_views
from torch.utils.flop_counter import FlopCounterMode

from dust3r.training import checkpoint
from dust3r.utils.spec import MODELS, build


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
    print("| head | size | GFLOP | seconds | share of fp32 rate | packed | share | bf16 | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for head in args.heads:
        torch.manual_seed(0)
        spec = f"AsymmetricMASt3R({HEADS[head]}, landscape_only=False, {args.widths})"
        model = build(spec, MODELS).eval().to(device)
        if args.ckpt:
            checkpoint.load_state_dict(model, checkpoint.load_file(args.ckpt)["model"])
        packed = deepcopy(model)
        if not packed.pack_weights():
            packed = None
        for size in args.sizes:
            cells = [head, size, *measure(model, packed, size, args.repeats, args.bf16, device)]
            print(f"| {' | '.join(cells)} |", flush=True)


@torch.no_grad()
def measure(
    model: torch.nn.Module,
    packed: torch.nn.Module | None,
    size: str,
    repeats: int,
    bf16: bool,
    device: str,
) -> list[str]:
    """The table's cells from GFLOP on; empty where something does not apply."""
    width, height = map(int, size.split("x"))
    views = random_views(1, height, width, device)
    with FlopCounterMode(display=False) as counter:
        exact = model(*views)[0]["pts3d"]
    flops = counter.get_total_flops()

    def timed(network: torch.nn.Module) -> tuple[float, list[str]]:
        before = matrix_rate()
        elapsed = median_seconds(lambda: network(*views), repeats)
        share = flops / elapsed / max(before, matrix_rate())
        return elapsed, [f"{elapsed:.2f}", f"{share:.2f}"]

    elapsed, cells = timed(model)
    cells = [f"{flops / 1e9:.0f}", *cells, *(timed(packed)[1] if packed else ["", ""])]
    if not bf16:
        return [*cells, "", ""]
    with torch.autocast(device, dtype=torch.bfloat16):
        rough = model(*views)[0]["pts3d"]
        half = median_seconds(lambda: model(*views), repeats)
    error = ((rough - exact).norm() / exact.norm()).item()
    return [*cells, f"{half:.2f} ({elapsed / half:.2f}x)", f"{error:.2%}"]


if __name__ == "__main__":
    main()
