"""Where a run goes on: which checkpoint, what it holds, and whether it is of this run."""

import argparse
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dust3r.training import checkpoint, fsdp
from dust3r.training.distributed import World, unwrap
from dust3r.training.engine import Progress, Run
from dust3r.training.logging import Meters
from dust3r.training.share import Share

log = logging.getLogger(__name__)

STEP_FILE = re.compile(r"checkpoint-step-(\d+)\.pth")

# What a checkpoint must agree on with the command that goes on from it, and what to do otherwise.
SAME_STAGE = ("uq_mode", "phase", "freeze_geom_for_uq", "train_geom_for_uq")
SAME_BATCHES = ("batch_size", "accum_iter")


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that a run goes on from.

    Attributes:
        path: its file.
        content: what ``checkpoint.load_file`` read.
        began: processes that the run began with.
    """

    path: Path
    content: dict[str, Any]

    @property
    def began(self) -> int:
        return self.content.get("processes", len(self.content["rng"]))


def find(output_dir: str | Path) -> Path | None:
    """The file that a run in ``output_dir`` continues from, or None for a new run.

    That of the most steps among checkpoint-last and checkpoint-step-<N> that are whole: a run may
    have been killed between writing one and the other, and a disk may have lost a part of a file.
    Where all are damaged it is one of them, so that reading it says what is wrong.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        return None
    steps = [path for path in folder.iterdir() if STEP_FILE.fullmatch(path.name)]
    steps.sort(key=lambda path: int(STEP_FILE.fullmatch(path.name)[1]), reverse=True)
    last = folder / checkpoint.LAST
    candidates = [last, *steps] if last.is_file() else steps
    found: dict[Path, int] = {}
    for path in candidates:
        if found and int(STEP_FILE.fullmatch(path.name)[1]) <= max(found.values()):
            break
        step = _step_of(path)
        if step is None:
            log.warning("%s cannot be read as a checkpoint of a run: passed over", path)
        else:
            found[path] = step
    if found:
        return max(found, key=found.get)
    return candidates[0] if candidates else None


def read(output_dir: str | Path, world: World) -> Resumed | None:
    """The checkpoint to go on from, the same on every process; None for a new run.

    Raises:
        CheckpointError: it is damaged, or not one that can be resumed from.
        FileNotFoundError: this machine does not see the file that the main process found.
    """
    # One process looks: on a network disk others may see another state of the folder.
    path = world.first(find(output_dir) if world.is_main else None)
    if path is None:
        return None
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is there for the main process and not for process {world.rank}: --output_dir "
            "must be one folder that all machines see"
        )
    content = checkpoint.load_file(path)
    needed = {"optimizer", "scaler", "step", "epoch_step", "rng", "best_so_far", "epoch"}
    if not needed <= content.keys():
        raise checkpoint.CheckpointError(
            f"{path.name} in --output_dir has no {', '.join(sorted(needed - content.keys()))}: "
            "it cannot be resumed. Give it as --pretrained with another --output_dir"
        )
    return Resumed(path, content)


def check_same_run(resumed: Resumed, args: argparse.Namespace) -> None:
    """Raises ValueError where the checkpoint is of another stage, or of other batches."""
    before = vars(resumed.content["args"] or argparse.Namespace())
    mends = {
        SAME_STAGE: "give each stage its own --output_dir, and --pretrained with the one before",
        SAME_BATCHES: "batches and accumulation stay those that a run began with, so that no "
        "sample is lost and the schedule holds; the number of processes may change, and each of "
        "them then takes more or fewer batches for an update. Give the former ones, or another "
        "--output_dir with --pretrained",
    }
    for names, mend in mends.items():
        for name in names:
            # A checkpoint from before an argument was there has its default.
            was, now = before.get(name) or None, getattr(args, name) or None
            if was != now and (names is SAME_STAGE or was is not None):
                raise ValueError(
                    f"{resumed.path} is of a run with --{name} {was}, and this one has --{name} "
                    f"{now}: {mend}"
                )


def restore(
    resumed: Resumed,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    world: World,
    share: Share,
) -> Progress:
    """Optimiser, scaler and random state as they were at the checkpoint; how far it was."""
    saved = resumed.content
    fsdp.load_moments(optimizer, saved["optimizer"])
    if saved["scaler"]:
        scaler.load_state_dict(saved["scaler"])
    if len(saved["rng"]) == world.size:
        checkpoint.restore_rng(saved["rng"][world.rank])
    else:
        log.warning(
            "%s was written by %d processes, now there are %d: each takes %d batches for an "
            "update. The samples of every update stay the same; random numbers of the network and "
            "the order of sums do not",
            resumed.path,
            len(saved["rng"]),
            world.size,
            share.batches_per_update,
        )
    return Progress(
        epoch=saved["epoch"],
        epoch_step=saved["epoch_step"],
        step=saved["step"],
        best_so_far=saved["best_so_far"],
        meters=saved["meters"],
        batch=share.batches(saved["epoch_step"]),
    )


def snapshot(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """What a checkpoint holds; the same call on every process.

    The same for sharded models as for others. Those are put together on the main process alone.
    """
    progress = run.progress
    return {
        "model": fsdp.whole_weights(unwrap(run.model), keep=run.world.is_main),
        "args": argparse.Namespace(**vars(args)),
        "epoch": progress.epoch,
        "epoch_step": progress.epoch_step,
        "step": progress.step,
        "best_so_far": progress.best_so_far,
        "meters": Meters(progress.meters).of_one(run.world),
        "optimizer": fsdp.whole_moments(run.optimizer, keep=run.world.is_main),
        "scaler": run.scaler.state_dict(),
        "rng": run.world.gather(checkpoint.capture_rng()),
        "processes": run.share.began,
    }


def _step_of(path: Path) -> int | None:
    """Steps done at a checkpoint, without reading its tensors; None where it is not whole."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, tensors stay on the disk; the end of the file, which is written last, is read.
            step = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"]
    except Exception:
        # Bytes that are not a checkpoint can make the reader raise nearly anything.
        return None
    return int(step)
