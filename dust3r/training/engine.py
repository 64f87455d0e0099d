"""One epoch of training, one pass over a test set, and what both are made of."""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dust3r.criterion import Criterion
from dust3r.datasets.loader import StereoLoader
from dust3r.training.batches import Batches, Inputs, PairBatches
from dust3r.training.distributed import World, without_sync
from dust3r.training.fsdp import is_sharded, whole
from dust3r.training.logging import Meters, Recorder, SampleLog, progress_bar, to_floats
from dust3r.training.schedule import Schedule
from dust3r.training.share import Share
from dust3r.training.stages import StageRun
from dust3r.utils.device import view_to_device

log = logging.getLogger(__name__)


class TrainingStopped(RuntimeError):
    """The run cannot go on: the message says why."""


@dataclass(frozen=True)
class Settings:
    """How a step is taken.

    Attributes:
        accum_iter: steps whose gradients are added up for one update.
        grad_clip: largest norm of the gradients; None for no limit.
        stop_after_nan: updates in a row that may be skipped for a loss that is not finite.
        autocast: the type matrix products run in; None for that of the weights.
        print_freq: batches between two entries in TensorBoard.
        save_steps: steps between two kept checkpoints; 0 for none.
        resume_every: steps between two that the next one replaces; 0 for none.
        max_steps: of the whole run; None for those of all epochs.
    """

    accum_iter: int = 1
    grad_clip: float | None = None
    stop_after_nan: int = 20
    autocast: torch.dtype | None = None
    print_freq: int = 20
    save_steps: int = 0
    resume_every: int = 0
    max_steps: int | None = None


@dataclass
class Progress:
    """How far a run is; kept in its checkpoints.

    A step is a batch of each process, as many as the run began with (``share``).

    Attributes:
        epoch: epochs completed.
        epoch_step: steps of the present epoch begun; completed, where an update ends.
        step: the same over all epochs.
        best_so_far: lowest loss of a completed epoch.
        meters: sums of the present epoch.
        batch: batches of this process in the present epoch; follows from the others.
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    best_so_far: float = math.inf
    meters: dict[str, tuple[float, float]] = field(default_factory=dict)
    batch: int = 0

    def advance(self, share: Share) -> None:
        """Begin the next batch of this process."""
        self.batch += 1
        begun = share.steps(self.batch) - self.epoch_step
        self.epoch_step += begun
        self.step += begun

    def end_epoch(self) -> None:
        self.epoch += 1
        self.epoch_step = self.batch = 0
        self.meters = {}


class StopRequest:
    """Set by SIGTERM, as sent by Slurm and Kubernetes before they kill; read between steps.

    And by SIGUSR1, for those who start through torchrun, which kills its processes half a minute
    after it was sent SIGTERM itself.
    """

    def __init__(self) -> None:
        self.received = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._receive)

    def _receive(self, signum: int, frame: Any) -> None:
        self.received = True


@dataclass
class Run:
    """The parts of a training run."""

    model: nn.Module
    stage: StageRun
    loader: StereoLoader
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    world: World
    share: Share
    recorder: Recorder
    samples: SampleLog
    settings: Settings
    progress: Progress
    stop: StopRequest
    batches: Batches = field(default_factory=PairBatches)


def train_one_epoch(run: Run, save_step: Callable[[], None]) -> bool:
    """Train on the rest of the present epoch; True when it is complete, False when stopped.

    Raises:
        TrainingStopped: too many losses in a row were not finite.
    """
    progress, settings = run.progress, run.settings
    run.loader.set_epoch(progress.epoch, progress.batch)
    run.stage.train_mode(run.model)
    meters = Meters(progress.meters)
    bar = progress_bar(
        run.loader, len(run.loader), progress.batch, f"epoch {progress.epoch}", run.world
    )
    losses, files, skipped_in_row, started = [], [], 0, time.perf_counter()
    for batch in bar:
        progress.advance(run.share)
        updates = ends_update(run)
        with without_sync(run.model, active=not updates):
            inputs = run.batches.training_inputs(batch)
            inputs, predictions, loss, details = forward(run, inputs)
            run.scaler.scale(loss / run.share.batches_per_update).backward()
        losses.append(loss.detach())
        files += run.batches.files(inputs)
        if progress.batch == 1:
            run.recorder.panels(inputs, predictions, progress.step, "train")
        if not updates:
            continue

        rate = run.schedule.learning_rate(progress.step - 1)
        healthy, stop = update(run, losses, rate)
        skipped_in_row = 0 if healthy else skipped_in_row + 1
        run.samples.add(progress.epoch, progress.step, files, healthy)
        if healthy:
            values = to_floats({"loss": torch.stack(losses).mean(), **details})
            meters.update(values, weight=len(losses))
            bar.set_postfix_str(f"loss {values['loss']:.4g} lr {rate:.2g}", refresh=False)
            if is_due(settings.print_freq, run):
                throughput = len(files) * run.world.size / (time.perf_counter() - started)
                speed = {
                    "lr": rate,
                    "samples_per_second": throughput,
                    "memory_mb": run.recorder.memory_mb(),
                }
                run.recorder.scalars(values | speed, progress.step, "train")
        else:
            report_not_finite(losses, files, run.world)
            meters.update({"skipped_updates": 1.0})
        if skipped_in_row >= settings.stop_after_nan:
            raise TrainingStopped(
                f"the loss was not finite in {skipped_in_row} updates in a row (--stop_after_nan); "
                "the last good checkpoint is kept. Look at the files named above, lower --lr or "
                "--blr, or set --grad_clip"
            )
        losses, files, started = [], [], time.perf_counter()
        progress.meters = dict(meters.sums)
        save_step()
        if stop or out_of_steps(run):
            break
    return progress.batch == len(run.loader)


def ends_update(run: Run) -> bool:
    """Whether the gradients of the batch that has begun complete an update."""
    progress = run.progress
    if not run.share.ends_step(progress.batch):
        return False
    whole_update = progress.epoch_step % run.settings.accum_iter == 0
    return whole_update or progress.batch == len(run.loader) or out_of_steps(run)


def out_of_steps(run: Run) -> bool:
    """Whether ``--max_steps`` are done."""
    return run.settings.max_steps is not None and run.progress.step >= run.settings.max_steps


def is_due(every: int, run: Run) -> bool:
    """Whether an update that just ended is the first one at or after a multiple of ``every``."""
    return bool(every) and run.progress.step % every < run.settings.accum_iter


@torch.no_grad()
def evaluate(run: Run, loader: StereoLoader, criterion: Criterion, name: str) -> dict[str, float]:
    """Mean loss and terms over a test set, and panels of its first batch.

    Stopped by SIGTERM it returns nothing, and a resumed run evaluates again.
    """
    run.model.eval()
    loader.set_epoch(0)
    meters = Meters()
    for number, batch in enumerate(progress_bar(loader, len(loader), 0, name, run.world)):
        inputs = run.batches.inputs(batch)
        inputs, predictions, loss, details = forward(run, inputs, criterion)
        meters.update(to_floats({"loss": loss, **details}), weight=len(inputs[0]["img"]))
        if number == 0:
            run.recorder.panels(inputs, predictions, run.progress.step, name)
        if run.world.any(run.stop.received)[0]:
            return {}
    return meters.means(run.world)


def forward(
    run: Run, inputs: Inputs, criterion: Criterion | None = None
) -> tuple[Inputs, tuple, Tensor, dict[str, Tensor]]:
    """Inputs on the device, predictions, loss and its terms of a batch."""
    device = run.world.device
    inputs = tuple(view_to_device(view, device) for view in inputs)
    autocast = run.settings.autocast
    # The cache would keep what it cast of every gathered weight until the end of the pass.
    cached = not is_sharded(run.model)
    with torch.autocast(device.type, autocast, autocast is not None, cached):
        predictions = run.model(*inputs)
    loss, details = run.stage.loss(inputs, predictions, criterion)
    return inputs, predictions, loss, details


def update(run: Run, losses: list[Tensor], rate: float) -> tuple[bool, bool]:
    """One step of the optimiser, if loss and gradients are finite on every process.

    Returns:
        whether it was taken, and whether the run was asked to stop; the same on all processes.
    """
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    trained = [p for group in run.optimizer.param_groups for p in group["params"]]
    run.scaler.unscale_(run.optimizer)
    norm = whole(nn.utils.clip_grad_norm_(trained, run.settings.grad_clip or math.inf))
    # In fp16 gradients overflow now and then, and the scaler skips these steps by itself.
    checked = torch.stack(losses).sum() + (0 if run.scaler.is_enabled() else norm)
    bad, stop = run.world.any(not math.isfinite(checked.item()), run.stop.received)
    if not bad:
        run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return not bad, stop


def report_not_finite(losses: list[Tensor], files: list[tuple[str, ...]], world: World) -> None:
    values = ", ".join(f"{loss.item():g}" for loss in losses)
    names = "\n".join(f"  {' with '.join(of_sample)}" for of_sample in files)
    log.warning(
        "rank %d: update skipped, the loss (%s) or its gradient is not finite here or on another "
        "process; the batch was\n%s",
        world.rank,
        values,
        names,
    )
