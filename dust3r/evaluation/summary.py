"""From measures of images to the numbers of a method on a benchmark, over all ranks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torchmetrics import Metric

from dust3r.evaluation.levels import LEVELS
from dust3r.evaluation.measure import CONFIDENCE, COUNTS, OWN, ImageMeasure
from dust3r.evaluation.methods import Method
from dust3r.evaluation.rankings import ExactRanking
from dust3r.evaluation.sketch import RankingSketch
from dust3r.training.distributed import World

RANKED = ("aurc", "ause", "rho")
COVERED = (50, 80, 90, 95)


class ErrorSums(Metric):
    """Mean and root mean square of errors, from their sums."""

    full_state_update = False

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        # Number of errors, their sum, the sum of their squares.
        zeros = torch.zeros(3, dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")

    def update(self, count: int, total: float, squares: float) -> None:
        self.sums += torch.tensor([count, total, squares], dtype=torch.float64).to(self.sums)

    def compute(self) -> dict[str, float]:
        """``mae`` and ``rmse``; NaN without any."""
        count, total, squares = self.sums.tolist()
        if not count:
            return {"mae": math.nan, "rmse": math.nan}
        return {"mae": total / count, "rmse": math.sqrt(squares / count)}


class Likelihood(Metric):
    """Mean negative log-likelihood, and how often central regions hold the truth."""

    full_state_update = False

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("nll", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("levels", torch.zeros(LEVELS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: tuple[float, int], levels: np.ndarray) -> None:
        """Add the sum and number of likelihoods, and a histogram of ``Reading.level``."""
        self.nll += torch.tensor(nll, dtype=torch.float64).to(self.nll)
        self.levels += torch.from_numpy(np.asarray(levels, np.int64)).to(self.levels)

    def compute(self) -> dict[str, Any]:
        """``nll``; ``calibration_error``: mean over levels of the difference of stated and found
        coverage; ``reliability``: what is found at (1, 2, ... 100)%; ``coverage``: of some levels.
        Empty without a distribution.
        """
        total, count = self.nll.tolist()
        if not count:
            return {}
        numbers: dict[str, Any] = {"nll": total / count}
        levels = self.levels.cpu().numpy()
        if levels.sum():
            found = levels.cumsum() / levels.sum()
            stated = np.arange(1, LEVELS + 1) / LEVELS
            numbers["calibration_error"] = float(np.abs(found - stated).mean())
            numbers["reliability"] = found
            numbers["coverage"] = {q: float(found[q * LEVELS // 100 - 1]) for q in COVERED}
        return numbers


class ImageMeans(Metric):
    """Means over images of the rankings within each; images whose number is NaN do not count."""

    full_state_update = False

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(2, len(RANKED)).double(), dist_reduce_fx="sum")

    def update(self, numbers: Mapping[str, float]) -> None:
        values = torch.tensor([numbers[key] for key in RANKED], dtype=torch.float64)
        finite = values.isfinite()
        self.sums += torch.stack([values.nan_to_num(0, 0, 0), finite.double()]).to(self.sums)

    def compute(self) -> dict[str, float]:
        total, count = (self.sums[n].tolist() for n in (0, 1))
        return {
            f"{key}_image": total[n] / count[n] if count[n] else math.nan
            for n, key in enumerate(RANKED)
        }


class Counts(Metric):
    """Images, and pixels by what became of them."""

    full_state_update = False

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(1 + len(COUNTS), dtype=torch.int64)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, counts: Mapping[str, int]) -> None:
        values = [1, *(counts[key] for key in COUNTS)]
        self.counts += torch.tensor(values).to(self.counts)

    def compute(self) -> dict[str, int]:
        return dict(zip(("images", *COUNTS), self.counts.tolist(), strict=True))


@dataclass
class MethodMetrics:
    """All metrics of a method on one benchmark."""

    method: Method
    streaming: bool
    counts: Counts = field(default_factory=Counts)
    likelihood: Likelihood = field(default_factory=Likelihood)
    errors: dict[str, ErrorSums] = field(default_factory=dict)
    rankings: dict[tuple[str, str], Metric] = field(default_factory=dict)
    images: dict[tuple[str, str], ImageMeans] = field(default_factory=dict)

    @classmethod
    def of(cls, method: Method, by: Sequence[str], streaming: bool) -> "MethodMetrics":
        """For uncertainties ``by``; the same on all ranks, whatever each of them sees."""
        made = cls(method, streaming)
        for target in method.targets:
            made.errors[target] = ErrorSums()
            for one in by:
                made.rankings[target, one] = RankingSketch() if streaming else ExactRanking()
                made.images[target, one] = ImageMeans()
        return made

    def update(self, measure: ImageMeasure) -> None:
        """Add an image; exact ``rankings`` over all images are for ``pooled`` to update."""
        self.counts.update(measure.counts)
        self.likelihood.update(measure.nll, measure.levels)
        used = measure.counts["used"]
        for target, sums in measure.errors.items():
            self.errors[target].update(used, *sums)
        for key, numbers in measure.numbers.items():
            target, by = key
            self.images[key].update(numbers)
            if self.streaming:
                oracle = measure.sketches[target, "oracle"][0]
                ranked, joint = measure.sketches[key]
                self.rankings[key].update(ranked, oracle, joint)

    def compute(self) -> dict[str, Any]:
        """Numbers over all ranks: counts, likelihood, and by target errors and rankings.

        A ranking has ``aurc``, ``ause``, ``rho`` over all pixels together with their bounds and
        curves, and with ``_image`` the mean over images.
        """
        targets: dict[str, Any] = {}
        for target, errors in self.errors.items():
            targets[target] = errors.compute()
            for (of, by), ranking in self.rankings.items():
                if of == target:
                    targets[target][by] = {**ranking.compute(), **self.images[of, by].compute()}
                    # Sketches are large, and what is computed from them is kept.
                    ranking.reset()
        return {
            "method": self.method.label,
            "family": self.method.family,
            "counts": self.counts.compute(),
            **self.likelihood.compute(),
            "targets": targets,
        }


def to_device(metrics: MethodMetrics, world: World) -> None:
    """Put states where ranks can exchange them."""
    if world.size > 1:
        every = (metrics.counts, metrics.likelihood, *metrics.errors.values(),
                 *metrics.rankings.values(), *metrics.images.values())  # fmt: skip
        for metric in every:
            metric.to(world.device)


def against_confidence(found: Mapping[str, Any], target: str, key: str) -> float:
    """A ranking's number divided by the same of 1 / confidence on the same errors; maybe NaN."""
    if found["family"] == CONFIDENCE:
        return 1.0
    ranking = found["targets"].get(target, {})
    if CONFIDENCE not in ranking or not ranking[CONFIDENCE][key]:
        return math.nan
    return ranking[OWN][key] / ranking[CONFIDENCE][key]
