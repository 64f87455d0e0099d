"""Seconds, rate and peak memory of a training step of each stage.

python scripts/bench_train.py [--size 224x224] [--batch_size 1] [--widths "..."] [--precision bf16]
    [--activation_checkpointing]

Each stage runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import multiprocessing
import resource

import torch
from bench_common import HEADS, matrix_rate, median_seconds, random_views
from torch.utils.flop_counter import FlopCounterMode

from dust3r.losses import L21, ConfLoss, Regr3D
from dust3r.training.recompute import recompute_blocks
from dust3r.training.schedule import make_optimizer
from dust3r.training.stages import LossWeights, StageRun
from dust3r.utils.spec import MODELS, build
from dust3r.utils.view import symmetrise

STAGES = {
    "plain": "dpt",
    "geom": "dpt_uq",
    "geom, geometry frozen": "dpt_uq",
    "feat, phase 1": "dpt_uq_feat",
    "feat, phase 2": "dpt_uq_feat",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="224x224", help="width x height")
    parser.add_argument("--batch_size", type=int, default=1, help="pairs, before symmetrising")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--widths", default="", help="widths of a smaller model")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--activation_checkpointing", action="store_true", help="as that of train.py"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {args}")
    print("| stage | GFLOP | seconds | share of fp32 rate | peak memory (GB) |")
    print("|---|---|---|---|---|")
    for stage in args.stages:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(row, (stage, args, device)), flush=True)


def row(stage: str, args: argparse.Namespace, device: str) -> str:
    torch.set_flush_denormal(True)  # as train.py
    width, height = map(int, args.size.split("x"))
    spec = f"AsymmetricMASt3R({HEADS[STAGES[stage]]}, {args.widths})"
    model = build(spec, MODELS).to(device)
    if args.activation_checkpointing:
        recompute_blocks(model)
    weights = LossWeights(uq=1, evi_feat=0.1, mean_gt=1, mean_distill=1, var_distill=0.1)
    run = StageRun(stage, model, ConfLoss(Regr3D(L21, norm_mode="avg_dis"), alpha=0.2), weights)
    run.train_mode(model)
    optimizer = make_optimizer(model, 0.05)
    views = symmetrise(*random_views(args.batch_size, height, width, device))

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            predictions = model(*views)
        loss, _ = run.loss(views, predictions)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    before = matrix_rate()
    elapsed = median_seconds(step, args.repeats)
    rate = max(before, matrix_rate())
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e9
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    share = f"{flops / elapsed / rate:.2f}"
    return f"| {stage} | {flops / 1e9:.0f} | {elapsed:.2f} | {share} | {memory:.1f} |"


if __name__ == "__main__":
    main()
