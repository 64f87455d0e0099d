"""Errors, uncertainty, time and memory of one depth method over a data set of sequences."""

import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deltas.compare.methods import Depth, DepthMethod, Frames
from deltas.data.sequences import Sequences, within
from deltas.evaluation.measure import MIN_DEPTH
from dust3r.evaluation.depth_cli import DepthMeasures
from dust3r.uncertainty.metrics import aurc, ause, spearman
from dust3r.utils.spread import spread

# Frames of the picture.
SHOWN = 3
RANKINGS = ("aurc", "ause", "spearman")


@dataclass(frozen=True)
class Measured:
    """What a method is worth.

    Attributes:
        errors: means over images of the eight measures without alignment, and ``abs_rel_median``
            after a scale by the median.
        uncertainty: means over images of ``RANKINGS`` of the absolute error, metres, and ``nll`` in
            nats per pixel with a stated depth; NaN where the method states none.
        frames: number of frames, and of those without any depth of the method's own.
        pixels_without: share of pixels with a true depth where the prior depth stood in.
        seconds, cpu_seconds: median of a frame, by the clock and of all threads together.
        memory: bytes, most of the process beyond what reading the same frames took.
        shown: depth maps (H, W), prior depth included, of up to ``SHOWN`` frames.
    """

    errors: dict[str, float]
    uncertainty: dict[str, float]
    frames: int
    frames_without: int
    pixels_without: float
    seconds: float
    cpu_seconds: float
    memory: int
    shown: list[np.ndarray]


def measure(
    make: Callable[[], DepthMethod],
    dataset: Sequences,
    indices: Sequence[int],
    prior_depth: float,
    depth_range: tuple[float, float],
) -> Measured:
    """Run a method over samples of a data set; meant to be all that its process does.

    Args:
        make: builds the method, which counts as memory but not as time.
        prior_depth: metres, stands in where the method has no depth.
        depth_range: metres; true depths outside do not count.

    Raises:
        ValueError: no sample has a true depth within the range.
    """
    for index in indices:
        dataset[index]
    _forget_peak()
    before = _peak_memory()
    method = make()
    scores = _Scores(prior_depth, depth_range)
    times = []
    shown = spread(len(indices), SHOWN)
    maps = []
    for place, index in enumerate(indices):
        sample = dataset[index]
        frames = Frames.of(sample)
        clocks = time.perf_counter(), time.process_time()
        said = method.predict(frames)
        times.append((time.perf_counter() - clocks[0], time.process_time() - clocks[1]))
        scores.add(said, sample["depthmap"][0], sample["valid_mask"][0])
        if place in shown:
            maps.append(said.filled(prior_depth))
    wall, cpu = np.median(times, axis=0).tolist()
    return Measured(
        **scores.compute(),
        frames=len(indices),
        seconds=wall,
        cpu_seconds=cpu,
        memory=max(0, _peak_memory() - before),
        shown=maps,
    )


class _Scores:
    """Sums over images."""

    def __init__(self, prior_depth: float, depth_range: tuple[float, float]) -> None:
        self.prior_depth, self.depth_range = prior_depth, depth_range
        self.plain, self.median = DepthMeasures(), DepthMeasures()
        self.rankings: list[list[float]] = []
        self.likelihood: list[float] = []
        self.frames_without = 0
        self.counted = self.without = 0

    def add(self, said: Depth, truth: np.ndarray, valid: np.ndarray) -> None:
        """An image: what a method says, true depth (H, W) and where there is one (H, W)."""
        used = within(truth, valid, self.depth_range)
        self.frames_without += not said.stated.any()
        if not used.any():
            return
        stated = torch.from_numpy(said.stated[used])
        depth = torch.from_numpy(said.filled(self.prior_depth)[used])
        wanted = torch.from_numpy(truth[used])
        self.counted += len(wanted)
        self.without += int((~stated).sum())
        self.plain.update(depth, wanted, "none", MIN_DEPTH)
        self.median.update(depth, wanted, "median", MIN_DEPTH)
        if said.uncertainty is not None:
            # Of nothing a method is more certain than of what it says itself.
            doubt = torch.from_numpy(said.uncertainty[used])
            doubt = torch.where(stated & doubt.isfinite(), doubt, torch.inf)
            error = (depth - wanted).abs()
            self.rankings.append([float(rank(error, doubt)) for rank in (aurc, ause, spearman)])
        if said.distribution is not None and stated.any():
            nll = -said.distribution.log_prob(torch.from_numpy(truth))
            self.likelihood.append(float(nll[torch.from_numpy(used)][stated].double().mean()))

    def compute(self) -> dict[str, object]:
        if not self.counted:
            low, high = self.depth_range
            raise ValueError(
                f"no frame has a true depth from {low} to {high} m: check --mindepth, --maxdepth "
                "and the unit of the depth files"
            )
        plain, median = self.plain.compute(), self.median.compute()
        counts = ("images", "images_without", "valid", "not_finite")
        errors = {key: value for key, value in plain.items() if key not in counts}
        uncertainty = dict.fromkeys((*RANKINGS, "nll"), float("nan"))
        if self.rankings:
            uncertainty |= zip(RANKINGS, _means(self.rankings), strict=True)
        if self.likelihood:
            uncertainty["nll"] = float(np.mean(self.likelihood))
        return {
            "errors": errors | {"abs_rel_median": median["abs_rel"]},
            "uncertainty": uncertainty,
            "frames_without": self.frames_without,
            "pixels_without": self.without / self.counted,
        }


def _means(rows: list[list[float]]) -> list[float]:
    """Of each column, without NaN: a rank correlation with a constant is none."""
    columns = (np.array(column) for column in zip(*rows, strict=True))
    kept = (column[np.isfinite(column)] for column in columns)
    return [float(column.mean()) if len(column) else float("nan") for column in kept]


def _forget_peak() -> None:
    """Let ``_peak_memory`` begin at what this process has now, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Most memory that this process had at once, in bytes."""
    # On Linux ru_maxrss begins at what the parent had when it started this process.
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.M) if status.exists() else None
    if found:
        return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
