"""The command line of training: ``python train.py ...`` or ``torchrun ... train.py ...``."""

import argparse
import logging
import math
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
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
from dust3r.training import checkpoint, resume
from dust3r.training.arguments import make_parser
from dust3r.training.distributed import World, unwrap
from dust3r.training.engine import (
    Progress,
    Run,
    Settings,
    StopRequest,
    TrainingStopped,
    evaluate,
    is_due,
    out_of_steps,
    train_one_epoch,
)
from dust3r.training.logging import Meters, Recorder, SampleLog, set_up_messages
from dust3r.training.recompute import recompute_blocks
from dust3r.training.resume import snapshot
from dust3r.training.schedule import Schedule, absolute_rate, make_optimizer
from dust3r.training.share import Share, share_out
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

    def prepare(world: World) -> tuple[Run, Callable[[], None]]:
        test_criterion = build_criterion(args.test_criterion or args.train_criterion)
        run, tests = set_up(args, world)
        return run, partial(train, run, tests, test_criterion, args)

    return execute(prepare, args.hang_timeout)


def execute(prepare: Callable[[World], tuple[Run, Callable[[], None]]], hang_timeout: float) -> int:
    """Join the other processes, prepare a run, train it and leave; the exit status.

    Args:
        prepare: gives the run and what trains it; errors of the user are told, and end this.
        hang_timeout: see ``World.join``.
    """
    # Gradients of evidential heads reach below 1e-38, where a CPU computes several times slower.
    # Before any other call: threads take this over from the one that starts them.
    torch.set_flush_denormal(True)
    world = World.join(best_device(local_rank()), hang_timeout)
    set_up_messages(world)
    try:
        run, train_it = prepare(world)
    except USER_ERRORS as error:
        # What a user wrote is mended by the message, not by the stack.
        log.error("%s", error)
        log.debug("raised here", exc_info=True)
        world.leave()
        return 2
    try:
        train_it()
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
    """Everything a run needs, resumed from the newest checkpoint of it where there is one.

    Raises:
        USER_ERRORS: an argument, a file or a data set is not what it has to be.
    """
    output_dir = Path(args.output_dir)
    seed_everything(args.seed + world.rank)
    torch.backends.cudnn.benchmark = not args.disable_cudnn_benchmark
    torch.backends.cuda.matmul.allow_tf32 = True

    stage = stage_name(args.uq_mode, args.phase, args.freeze_geom_for_uq, args.train_geom_for_uq)
    autocast, scaler = precision(args, world.device)
    resumed = resume.read(output_dir, world)
    share = Share(resumed.began if resumed else world.size, world.size, args.accum_iter)
    train_loader = train_loader_of(args, world, share)
    tests = test_loaders(args, world)
    criterion = build_criterion(args.train_criterion)
    model = build(args.model, MODELS)
    if resumed is None and args.pretrained:
        weights = checkpoint.load_file(weights_file(args.pretrained))["model"]
        log.info("%s: %s", args.pretrained, checkpoint.load_state_dict(model, weights))

    stage_run = StageRun(stage, model, criterion, loss_weights(args))
    if resumed is not None:
        resume.check_same_run(resumed, args)
        checkpoint.load_state_dict(model, resumed.content["model"])
    if args.activation_checkpointing:
        log.info("recomputing %d blocks", recompute_blocks(model))
    if args.compile:
        model.compile_layers()
    wrapped = world.wrap(model, sharded=args.fsdp)
    optimizer = make_optimizer(model, args.weight_decay, args.uq_lr_scale)
    progress = Progress()
    if resumed is not None:
        progress = resume.restore(resumed, optimizer, scaler, world, share)
        log.info(
            "resumed from %s: epoch %d, step %d",
            resumed.path,
            progress.epoch,
            progress.epoch_step,
        )
    stage_run.follow(progress)
    run = Run(
        model=wrapped,
        stage=stage_run,
        loader=train_loader,
        optimizer=optimizer,
        scaler=scaler,
        schedule=make_schedule(args, share.steps(len(train_loader)), share.began),
        world=world,
        share=share,
        recorder=Recorder(output_dir, world, progress.step),
        samples=SampleLog(output_dir, world, progress.step, args.log_samples),
        settings=Settings(
            accum_iter=args.accum_iter,
            grad_clip=args.grad_clip,
            stop_after_nan=args.stop_after_nan,
            autocast=autocast,
            print_freq=args.print_freq,
            save_steps=args.save_steps,
            resume_every=args.resume_every,
            max_steps=args.max_steps,
        ),
        progress=progress,
        stop=StopRequest(),
    )
    describe(run, args)
    return run, tests


def train(
    run: Run,
    tests: dict[str, StereoLoader],
    test_criterion: Criterion,
    args: argparse.Namespace,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Epochs of training, test and checkpoints, until done or asked to stop.

    Args:
        extra: what checkpoints hold besides what resuming needs.
    """
    output_dir, progress = Path(args.output_dir), run.progress

    def save(*names: str) -> None:
        # Every process takes part: each has its own random state, and its part of what is sharded.
        state = snapshot(run, args) | dict(extra or {})
        if run.world.is_main:
            for name in names:
                checkpoint.save(output_dir / name, state)
        run.world.barrier()

    def save_step() -> None:
        if is_due(run.settings.save_steps, run):
            save(f"checkpoint-step-{progress.step}.pth", checkpoint.LAST)
        elif is_due(run.settings.resume_every, run):
            save(checkpoint.LAST)

    while progress.epoch < args.epochs and not out_of_steps(run):
        started = time.perf_counter()
        complete = train_one_epoch(run, save_step)
        if run.world.any(run.stop.received)[0] or not (complete or out_of_steps(run)):
            break
        results = {}
        if (
            out_of_steps(run)
            or (progress.epoch + 1) % args.eval_freq == 0
            or (progress.epoch + 1 == args.epochs)
        ):
            for name, loader in tests.items():
                results[name] = evaluate(run, loader, test_criterion, name)
                run.recorder.scalars(results[name], progress.step, name)
        if run.world.any(run.stop.received)[0]:
            break
        is_best = end_epoch(run, results, time.perf_counter() - started, tests)
        is_last = progress.epoch == args.epochs or out_of_steps(run)
        names = []
        if is_best:
            names.append("checkpoint-best.pth")
        if args.keep_freq and progress.epoch % args.keep_freq == 0:
            names.append(f"checkpoint-{progress.epoch}.pth")
        if progress.epoch % args.save_freq == 0 or is_last:
            names.append(checkpoint.LAST)
        if names:
            save(*names)
    if run.world.any(run.stop.received)[0]:
        save(checkpoint.LAST)
        log.info("stopped by a signal; start the same command again to go on")
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


def train_loader_of(args: argparse.Namespace, world: World, share: Share) -> StereoLoader:
    """This process's batches for training.

    Raises:
        ValueError: the data set cannot feed so many processes, or an epoch cannot be shared out.
    """
    began = World(world.rank % share.began, share.began, world.device)
    return share_out(make_loader(args.train_dataset, args, began), share, world.rank)


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
        hetero_beta=args.hetero_beta,
        gate_tv=args.lambda_gate_tv,
        gate_tv_warmup_steps=args.gate_tv_warmup_steps,
        align=args.uq_align,
    )


def make_schedule(args: argparse.Namespace, steps: int, processes: int) -> Schedule:
    """The learning rate of a run of ``steps`` an epoch, begun by so many processes."""
    total = steps * args.epochs
    if args.max_steps is not None:
        total = min(total, args.max_steps)
    effective = args.batch_size * args.accum_iter * processes
    peak = args.lr if args.lr is not None else absolute_rate(args.blr, effective)
    if args.warmup_epochs is None:
        # The published 40 of 800 epochs would be the whole of a short run.
        warmup = int(WARMUP_SHARE * total)
    else:
        warmup = int(args.warmup_epochs * steps)
    return Schedule(peak, args.min_lr, min(total, warmup), total)


def precision(
    args: argparse.Namespace, device: torch.device
) -> tuple[torch.dtype | None, torch.amp.GradScaler]:
    """Autocast type and gradient scaler. ``--amp`` is fp16 on CUDA, and bf16 elsewhere.

    Raises:
        ValueError: fp16 with ``--fsdp``.
    """
    autocast = torch.bfloat16 if args.precision == "bf16" else None
    if args.amp and autocast is None:
        autocast = torch.float16 if device.type == "cuda" else torch.bfloat16
    if args.fsdp and autocast is torch.float16:
        raise ValueError(
            "--amp 1 scales the loss for fp16, which --fsdp does not do here: use --precision bf16"
        )
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
        "%d samples, %d steps an epoch, %d epochs; learning rate up to %.3g, %d process(es) on %s",
        len(run.loader.dataset),
        run.share.steps(len(run.loader)),
        args.epochs,
        run.schedule.peak,
        run.world.size,
        run.world.device,
    )
    if not math.isfinite(run.schedule.peak):
        raise ValueError(f"the learning rate is {run.schedule.peak}")
