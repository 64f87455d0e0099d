"""What a run tells: averages, ``log.txt``, TensorBoard, progress bars."""

import json
import logging
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from dust3r.training.distributed import World
from dust3r.utils.files import atomic_path
from dust3r.utils.panels import depth_figure

PANEL_SAMPLES = 2


class Meters:
    """Running means by name, of any number of processes."""

    def __init__(self, sums: Mapping[str, tuple[float, float]] | None = None):
        self.sums = {name: tuple(pair) for name, pair in (sums or {}).items()}

    def update(self, values: Mapping[str, float], weight: float = 1.0) -> None:
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (total + weight * value, count + weight)

    def means(self, world: World) -> dict[str, float]:
        """Means over all processes, which must hold the same names."""
        return {name: total / count for name, (total, count) in self.of_one(world).items()}

    def of_one(self, world: World) -> dict[str, tuple[float, float]]:
        """Sums that, where every process goes on from them, have the means of all of them."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        sums = world.sum(torch.tensor([self.sums[n] for n in names], dtype=torch.float64))
        return dict(zip(names, map(tuple, (sums / world.size).tolist()), strict=True))


def to_floats(details: Mapping[str, Tensor | float]) -> dict[str, float]:
    """0-d tensors to numbers, waiting for the device once."""
    values = torch.stack([torch.as_tensor(v).detach().float().cpu() for v in details.values()])
    return dict(zip(details, values.tolist(), strict=True))


Figures = Callable[[tuple, tuple, int, str], Iterable[tuple[str, Figure]]]


def pair_figures(
    views: tuple[dict[str, Any], dict[str, Any]],
    predictions: tuple[dict[str, Tensor], dict[str, Tensor]],
    step: int,
    group: str,
) -> Iterator[tuple[str, Figure]]:
    """rgb, depth, mean, standard deviation and error of the first samples of a batch."""
    pose1 = views[0]["camera_pose"]
    for index in range(min(PANEL_SAMPLES, len(views[0]["img"]))):
        for number, (view, prediction) in enumerate(zip(views, predictions, strict=True), 1):
            figure = depth_figure(view, prediction, index, view["label"][index], pose1)
            yield f"sample {index} view {number}", figure


class Recorder:
    """``log.txt`` and TensorBoard of a run; silent but on the main process.

    Attributes:
        figures: gives name and figure of what ``panels`` shows; of pairs, if it is not replaced.
    """

    def __init__(self, output_dir: Path, world: World, start_step: int = 0):
        self.figures: Figures = pair_figures
        self.is_main = world.is_main
        self.device = world.device
        self.log_file = output_dir / "log.txt"
        self._board = None
        if self.is_main:
            # Slow to import, and of no use to the other processes.
            from torch.utils.tensorboard import SummaryWriter

            # What a killed run logged after its last checkpoint is about to be logged again.
            self._board = SummaryWriter(output_dir / "tensorboard", purge_step=start_step or None)

    def scalars(self, values: Mapping[str, float], step: int, group: str) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)

    def panels(
        self,
        inputs: tuple[Mapping[str, Any], ...],
        predictions: tuple[Any, ...],
        step: int,
        group: str,
    ) -> None:
        """``figures`` of a batch's inputs and predictions."""
        if self._board is None:
            return
        for name, figure in self.figures(inputs, predictions, step, group):
            self._board.add_figure(f"{group}/{name}", figure, step)

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Add one JSON object to ``log.txt``, in place of an earlier one of the same epoch."""
        if not self.is_main:
            return
        lines = self.log_file.read_text().splitlines() if self.log_file.is_file() else []
        # A killed run may have logged an epoch that it did not get to save.
        kept = [line for line in lines if json.loads(line)["epoch"] < entry["epoch"]]
        with atomic_path(self.log_file) as temporary:
            temporary.write_text("\n".join([*kept, json.dumps(entry)]) + "\n")
        self._board.flush()

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def memory_mb(self) -> float:
        """Peak memory of this process so far: of the GPU where there is one, else resident."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


class SampleLog:
    """The pairs of every update that is in the weights: a line of JSON each, in a file per process.

    Lines of updates that a killed run took after its last checkpoint go when it is resumed: they
    are taken again, from the weights of that checkpoint.

    Args:
        output_dir: where ``samples-<rank>.jsonl`` go.
        start_step: steps in the weights.
        active: else nothing is written.
    """

    def __init__(self, output_dir: Path, world: World, start_step: int = 0, active: bool = False):
        self._file = output_dir / f"samples-{world.rank}.jsonl" if active else None
        if active and world.is_main:
            for path in output_dir.glob("samples-*.jsonl"):
                kept = [
                    line for line in _whole_lines(path) if json.loads(line)["step"] <= start_step
                ]
                with atomic_path(path) as temporary:
                    temporary.write_text("".join(f"{line}\n" for line in kept))
        if active:
            output_dir.mkdir(parents=True, exist_ok=True)
            world.barrier()

    def add(self, epoch: int, step: int, pairs: Iterable[tuple[str, ...]], used: bool) -> None:
        """Pairs of this process in the update that ended with ``step``; whether it was taken."""
        if self._file is None:
            return
        entry = {"epoch": epoch, "step": step, "used": used, "pairs": list(pairs)}
        with self._file.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _whole_lines(path: Path) -> list[str]:
    """Lines but for one that a kill cut off."""
    return path.read_text().split("\n")[:-1]


def progress_bar(items: Iterable[Any], total: int, start: int, title: str, world: World) -> tqdm:
    """``items`` with a bar on the main process, which begins at ``start`` of ``total``."""
    return tqdm(
        items,
        desc=title,
        total=total,
        initial=start,
        disable=not world.is_main,
        dynamic_ncols=True,
        mininterval=1.0 if sys.stderr.isatty() else 30.0,
    )


def set_up_messages(world: World) -> None:
    """Messages of the main process in full, warnings alone of the others."""
    prefix = "" if world.size == 1 else f"[rank {world.rank}] "
    logging.basicConfig(format=f"%(asctime)s {prefix}%(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger().setLevel(logging.INFO if world.is_main else logging.WARNING)
