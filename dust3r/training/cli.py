"""The command line of training: ``python train.py ...`` or ``torchrun ... train.py ...``."""

import argparse
import logging
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dust3r.losses
import dust3r.model  # noqa: F401  (both register what specifications may name)
from dust3r.criterion import Criterion, MissingInput
from dust3r.datasets import SampleError, get_data_loader
from dust3r.datasets.combine import ConcatDataset
from dust3r.datasets.loader import StereoLoader
from dust3r.training import checkpoint
from dust3r.training.arguments import make_parser
from dust3r.training.distributed import World, unwrap
from dust3r.training.engine import (
    Progress,
    Run,
    Settings,
    StopRequest,
    TrainingStopped,
    evaluate,
    train_one_epoch,
)
from dust3r.training.logging import Meters, Recorder, set_up_messages
from dust3r.training.schedule import Schedule, absolute_rate, make_optimizer
from dust3r.training.stages import LossWeights, StageRun, stage_name
from dust3r.utils.device import best_device
from dust3r.utils.hub import weights_file
from dust3r.utils.spec import DATASETS, LOSSES, MODELS, SpecError, build

log = logging.getLogger(__name__)

WARMUP_SHARE = 1 / 20

USER_ERRORS = (SpecError, ValueError, FileNotFoundError, checkpoint.CheckpointError)


def main(arguments: list[str] | None = None) -> int:
    """Train as the arguments say; the exit status."""
    args = make_parser().parse_args(arguments)
    # Gradients of evidential heads reach below 1e-38, where a CPU computes several times slower.
    # Before any other call: threads take this over from the one that starts them.
    torch.set_flush_denormal(True)
    world = World.join(best_device(local_rank()))
    set_up_messages(world)
    try:
        test_criterion = build_criterion(args.test_criterion or args.train_criterion)
        run, tests = set_up(args, world)
    except USER_ERRORS as error:
        # What a user wrote is mended by the message, not by the stack.
        log.error("%s", error)
        log.debug("raised here", exc_info=True)
        world.leave()
        return 2
    try:
        train(run, tests, test_criterion, args)
    except (TrainingStopped, SampleError, MissingInput) as error:
        log.error("%s", error)
        return 1
    finally:
        run.recorder.close()
        world.leave()
    return 0


def local_rank() -> int:
    """Number of this process on its machine, as torchrun tells it."""
    return int(os.environ.get("LOCAL_RANK", 0))


def set_up(args: argparse.Namespace, world: World) -> tuple[Run, dict[str, StereoLoader]]:
    """Everything a run needs, resumed from ``checkpoint-last.pth`` where there is one.

    Raises:
        USER_ERRORS: an argument, a file or a data set is not what it has to be.
    """
    output_dir = Path(args.output_dir)
    seed_everything(args.seed + world.rank)
    torch.backends.cudnn.benchmark = not args.disable_cudnn_benchmark
    torch.backends.cuda.matmul.allow_tf32 = True

    stage = stage_name(args.uq_mode, args.phase, args.freeze_geom_for_uq)
    train_loader = make_loader(args.train_dataset, args, world)
    tests = test_loaders(args, world)
    criterion = build_criterion(args.train_criterion)
    model = build(args.model, MODELS)
    resume_from = checkpoint.find_resume(output_dir)
    saved = checkpoint.load_file(resume_from) if resume_from else None
    if saved is None and args.pretrained:
        weights = checkpoint.load_file(weights_file(args.pretrained))["model"]
        log.info("%s: %s", args.pretrained, checkpoint.load_state_dict(model, weights))

    stage_run = StageRun(stage, model, criterion, loss_weights(args))
    if saved is not None:
        check_same_run(saved, args, resume_from)
        checkpoint.load_state_dict(model, saved["model"])
    model.to(world.device)
    optimizer = make_optimizer(model, args.weight_decay, args.uq_lr_scale)
    autocast, scaler = precision(args, world.device)
    progress = Progress()
    if saved is not None:
        progress = resume(saved, optimizer, scaler, world)
        log.info(
            "resumed from %s: epoch %d, batch %d", resume_from, progress.epoch, progress.epoch_step
        )
    stage_run.follow(progress)
    if args.compile:
        model.compile_layers()
    run = Run(
        model=world.wrap(model),
        stage=stage_run,
        loader=train_loader,
        optimizer=optimizer,
        scaler=scaler,
        schedule=make_schedule(args, len(train_loader), world),
        world=world,
        recorder=Recorder(output_dir, world, progress.step),
        settings=Settings(
            accum_iter=args.accum_iter,
            grad_clip=args.grad_clip,
            stop_after_nan=args.stop_after_nan,
            autocast=autocast,
            print_freq=args.print_freq,
            save_steps=args.save_steps,
            max_steps=args.max_steps,
        ),
        progress=progress,
        stop=StopRequest(),
    )
    describe(run, args)
    return run, tests


def train(
    run: Run, tests: dict[str, StereoLoader], test_criterion: Criterion, args: argparse.Namespace
) -> None:
    """Epochs of training, test and checkpoints, until done or asked to stop."""
    output_dir, progress = Path(args.output_dir), run.progress

    def save(name: str) -> None:
        # Every process takes part: each has its own random state.
        state = snapshot(run, args)
        if run.world.is_main:
            checkpoint.save(output_dir / name, state)
        run.world.barrier()

    def save_step() -> None:
        save(f"checkpoint-step-{progress.step}.pth")
        save(checkpoint.LAST)

    out_of_steps = args.max_steps is not None and progress.step >= args.max_steps
    while progress.epoch < args.epochs and not out_of_steps:
        started = time.perf_counter()
        complete = train_one_epoch(run, save_step)
        out_of_steps = progress.step == args.max_steps
        if run.world.any(run.stop.received)[0] or not (complete or out_of_steps):
            break
        results = {}
        if (
            out_of_steps
            or (progress.epoch + 1) % args.eval_freq == 0
            or (progress.epoch + 1 == args.epochs)
        ):
            for name, loader in tests.items():
                results[name] = evaluate(run, loader, test_criterion, name)
                run.recorder.scalars(results[name], progress.step, name)
        if run.world.any(run.stop.received)[0]:
            break
        is_best = end_epoch(run, results, time.perf_counter() - started, tests)
        if is_best:
            save("checkpoint-best.pth")
        if args.keep_freq and progress.epoch % args.keep_freq == 0:
            save(f"checkpoint-{progress.epoch}.pth")
        if progress.epoch % args.save_freq == 0 or progress.epoch == args.epochs or out_of_steps:
            save(checkpoint.LAST)
    if run.world.any(run.stop.received)[0]:
        save(checkpoint.LAST)
        log.info("stopped by SIGTERM; start the same command again to go on")
    else:
        save("checkpoint-final.pth")
        log.info("done: %s", output_dir)


def end_epoch(
    run: Run, results: dict[str, dict[str, float]], seconds: float, tests: dict[str, StereoLoader]
) -> bool:
    """Log the epoch and move on to the next; whether it was the best so far."""
    progress = run.progress
    meters = Meters(progress.meters)
    skipped = int(meters.sums.pop("skipped_updates", (0, 0))[0])
    means = meters.means(run.world)
    entry: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step}
    entry |= {f"train_{name}": value for name, value in means.items()}
    for name, values in results.items():
        entry |= {f"{name}_{key}": value for key, value in values.items()}
    rate = run.schedule.learning_rate(progress.step)
    entry |= {"lr": rate, "seconds": round(seconds, 1), "memory_mb": run.recorder.memory_mb()}
    bad_samples = sum(run.world.gather(run.loader.num_skipped))
    entry |= {"skipped_updates": skipped, "bad_samples": bad_samples}
    run.recorder.epoch(entry)
    shown = {k: v for k, v in entry.items() if k.startswith(("train_", "test"))}
    log.info("epoch %d: %s", progress.epoch, ", ".join(f"{k} {v:.5g}" for k, v in shown.items()))

    progress.end_epoch()
    losses = [values["loss"] for values in results.values()] if tests else [means.get("loss")]
    losses = [loss for loss in losses if loss is not None]
    if not losses:
        return False
    score = sum(losses) / len(losses)
    if not score < progress.best_so_far:
        return False
    progress.best_so_far = score
    return True


def snapshot(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """What a checkpoint holds; the same call on every process."""
    progress = run.progress
    return {
        "model": unwrap(run.model).state_dict(),
        "args": argparse.Namespace(**vars(args)),
        "epoch": progress.epoch,
        "epoch_step": progress.epoch_step,
        "step": progress.step,
        "best_so_far": progress.best_so_far,
        "meters": dict(progress.meters),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "rng": run.world.gather(checkpoint.capture_rng()),
    }


def resume(
    saved: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    world: World,
) -> Progress:
    """Optimiser, scaler and random state as they were when ``saved`` was written.

    Raises:
        CheckpointError: it is not a resumable checkpoint.
    """
    needed = {"optimizer", "scaler", "step", "epoch_step", "rng", "best_so_far", "epoch"}
    if not needed <= saved.keys():
        raise checkpoint.CheckpointError(
            f"{checkpoint.LAST} in --output_dir has no {', '.join(sorted(needed - saved.keys()))}: "
            "it cannot be resumed. Give it as --pretrained with another --output_dir"
        )
    optimizer.load_state_dict(saved["optimizer"])
    if saved["scaler"]:
        scaler.load_state_dict(saved["scaler"])
    if len(saved["rng"]) == world.size:
        checkpoint.restore_rng(saved["rng"][world.rank])
    return Progress(
        epoch=saved["epoch"],
        epoch_step=saved["epoch_step"],
        step=saved["step"],
        best_so_far=saved["best_so_far"],
        meters=saved["meters"],
    )


def check_same_run(saved: dict[str, Any], args: argparse.Namespace, path: Path) -> None:
    """Raises ValueError where the checkpoint to resume from is of another stage."""
    for name in ("uq_mode", "phase", "freeze_geom_for_uq"):
        before, now = getattr(saved["args"], name, None), getattr(args, name)
        if before != now:
            raise ValueError(
                f"{path} is of a run with --{name} {before}, and this one has --{name} {now}: "
                "give each stage its own --output_dir, and --pretrained with the one before"
            )


def make_loader(dataset: Any, args: argparse.Namespace, world: World, **options: Any):
    return get_data_loader(
        dataset,
        args.batch_size,
        args.num_workers,
        rank=world.rank,
        world_size=world.size,
        seed=args.seed,
        skip_bad_samples=args.skip_bad_samples,
        **options,
    )


def test_loaders(args: argparse.Namespace, world: World) -> dict[str, StereoLoader]:
    """The test sets by name; none for ``[None]``. A list, or ``A(...) + B(...)``, gives several.

    Raises:
        ValueError: two processes or more cannot share a set, or it is no data set.
    """
    described = build(args.test_dataset, DATASETS)
    described = described if isinstance(described, list) else [described]
    parts = []
    for dataset in described:
        if dataset is not None:
            parts += dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
    loaders = {}
    for number, part in enumerate(parts, 1):
        name = "test" if len(parts) == 1 else f"test{number}"
        log.info("%s: %r", name, part)
        loaders[name] = make_loader(part, args, world, shuffle=False, drop_last=False)
    return loaders


def build_criterion(text: str) -> Criterion:
    """Raises ValueError where ``text`` is not the specification of a criterion."""
    criterion = build(text, LOSSES)
    if not isinstance(criterion, Criterion):
        raise ValueError(f"{text!r} is {criterion!r}, and a criterion is expected, as Regr3D(L21)")
    return criterion


def loss_weights(args: argparse.Namespace) -> LossWeights:
    return LossWeights(
        uq=args.lambda_uq,
        evi=args.lambda_evi,
        evi_feat=args.lambda_evi_feat,
        mean_gt=args.lambda_mean_gt,
        mean_distill=args.lambda_mean_distill,
        var_distill=args.lambda_var_distill,
        var_distill_space=args.var_distill,
        uq_xyz=args.lambda_uq_xyz,
        evi_xyz=args.lambda_evi_xyz,
        hetero_xyz=args.lambda_hetero_xyz,
        gate_tv=args.lambda_gate_tv,
        gate_tv_warmup_steps=args.gate_tv_warmup_steps,
        align=args.uq_align,
    )


def make_schedule(args: argparse.Namespace, batches: int, world: World) -> Schedule:
    total = batches * args.epochs
    if args.max_steps is not None:
        total = min(total, args.max_steps)
    effective = args.batch_size * args.accum_iter * world.size
    peak = args.lr if args.lr is not None else absolute_rate(args.blr, effective)
    if args.warmup_epochs is None:
        # The published 40 of 800 epochs would be the whole of a short run.
        warmup = int(WARMUP_SHARE * total)
    else:
        warmup = int(args.warmup_epochs * batches)
    return Schedule(peak, args.min_lr, min(total, warmup), total)


def precision(
    args: argparse.Namespace, device: torch.device
) -> tuple[torch.dtype | None, torch.amp.GradScaler]:
    """Autocast type and gradient scaler. ``--amp`` is fp16 on CUDA, and bf16 elsewhere."""
    autocast = torch.bfloat16 if args.precision == "bf16" else None
    if args.amp and autocast is None:
        autocast = torch.float16 if device.type == "cuda" else torch.bfloat16
    return autocast, torch.amp.GradScaler(device.type, enabled=autocast is torch.float16)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def describe(run: Run, args: argparse.Namespace) -> None:
    model = unwrap(run.model)
    count = {t: 0 for t in (True, False)}
    for parameter in model.parameters():
        count[parameter.requires_grad] += parameter.numel()
    log.info("command: %s", " ".join(sys.argv))
    log.info(
        "stage '%s': %.2f M parameters train, %.2f M are frozen",
        run.stage.name,
        count[True] / 1e6,
        count[False] / 1e6,
    )
    log.info(
        "%d pairs, %d batches an epoch, %d epochs; learning rate up to %.3g, %d process(es) on %s",
        len(run.loader.dataset),
        len(run.loader),
        args.epochs,
        run.schedule.peak,
        run.world.size,
        run.world.device,
    )
    if not math.isfinite(run.schedule.peak):
        raise ValueError(f"the learning rate is {run.schedule.peak}")
