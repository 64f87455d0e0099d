"""Calibrations fitted on one data set, and what their regions hold on others.

Coverage is the share of an image's pixels whose true depth or point lies within the region that was
to hold it, and its mean over images, which count the same however many pixels they have.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dust3r.datasets.combine import Draw
from dust3r.evaluation.benchmarks import View
from dust3r.evaluation.calibrate_summary import CURVE, ImageCoverage
from dust3r.evaluation.methods import Method
from dust3r.evaluation.predictions import Networks, Predicted, Stored
from dust3r.evaluation.uq import Evaluation, PairSet
from dust3r.training.distributed import World
from dust3r.uncertainty.calibration import (
    STATED,
    UNALIGNED,
    BinnedBy,
    Calibration,
    Kind,
    ScaleBy,
    least_levels,
)
from dust3r.uncertainty.calibration_fit import fit
from dust3r.uncertainty.calibration_samples import ErrorCollector, ErrorSamples
from dust3r.uncertainty.families import FAMILIES, SQUARE_METRES
from dust3r.uncertainty.reliability import ViewErrors, view_errors
from dust3r.uncertainty.stated import DEPTH_SUFFIXES, radial_quantile


@dataclass(frozen=True)
class Subject:
    """What is calibrated: a method's regions, ``'interval'``, ``'ball'`` or ``'ellipsoid'``."""

    method: Method
    region: str

    @property
    def label(self) -> str:
        ellipsoid = self.region == "ellipsoid"
        return f"{self.method.label} ellipsoid" if ellipsoid else self.method.label

    @property
    def states(self) -> bool:
        """Whether its numbers have a unit before they are calibrated; 1 / confidence has none."""
        return FAMILIES[self.method.family].unit == SQUARE_METRES

    @classmethod
    def of(cls, methods: Sequence[Method], ellipsoids: bool) -> list["Subject"]:
        """Intervals and balls, and with ``ellipsoids`` these where a covariance is stated."""
        found = []
        for method in methods:
            interval = method.family in DEPTH_SUFFIXES
            found.append(cls(method, "interval" if interval else "ball"))
            if ellipsoids and FAMILIES[method.family].points is not None:
                found.append(cls(method, "ellipsoid"))
        return found


@dataclass(frozen=True)
class FitOptions:
    """How to fit; see ``dust3r.uncertainty.calibration_fit.fit``."""

    scale_by: ScaleBy = "nll"
    bins: int = 1
    binned_by: BinnedBy | None = None
    alignment: str = UNALIGNED

    def fit(self, samples: ErrorSamples, subject: Subject, **told: Any) -> Calibration:
        # Mahalanobis lengths are whitened: they have one sigma, of which there are no groups.
        whitened = subject.region == "ellipsoid"
        return fit(
            samples,
            family=subject.method.family,
            region=subject.region,
            unit="" if whitened else "m",
            scale_by=self.scale_by,
            bins=1 if whitened else self.bins,
            binned_by=None if whitened else self.binned_by,
            alignment=self.alignment,
            **told,
        )


@dataclass
class Calibrating:
    """The run from pairs to calibrations, and from these to coverage.

    Attributes:
        evaluation: gives predictions.
        subjects: to calibrate.
        options: of the fit.
        levels: shares to report.
        kinds: of calibration to report.
        per_image: pixels of each image to take, at random.
    """

    evaluation: Evaluation
    subjects: Sequence[Subject]
    options: FitOptions
    levels: Sequence[float]
    kinds: Sequence[Kind]
    per_image: int

    def fit(
        self, one: PairSet, world: World, told: Mapping[str, Mapping[str, str]]
    ) -> tuple[dict[str, Calibration], list[str]]:
        """Calibrations by subject, the same on all ranks, and why pairs were left out.

        Args:
            told: by label of a method ``checkpoint`` and ``checkpoint_sha256``.

        Raises:
            ValueError: there is no pixel to fit on, or too few images.
        """
        collectors = {
            subject.label: ErrorCollector(per_image=self.per_image) for subject in self.subjects
        }
        skipped, pairs = [], 0
        by_depth = self.options.binned_by == "relative"
        for pair in self._pairs(one, world):
            if pair.views is None:
                skipped.append(pair.skipped)
                continue
            pairs += 1
            for subject, number, view, found in self._errors(pair):
                name = f"{pair.index:08d}/{number}"
                collector = collectors[subject.label]
                found.add_to(collector, view["valid_mask"], name, with_depths=by_depth)
        skipped = [reason for part in world.gather(skipped) for reason in part]
        pairs = sum(world.gather(pairs))
        fitted = {}
        for subject in self.subjects:
            samples = collectors.pop(subject.label).gathered(world.gather).samples()
            self._check_samples(samples, subject, skipped)
            try:
                found = self.options.fit(
                    samples, subject, dataset=one.spec, pairs=pairs, **told[subject.method.label]
                )
            except ValueError as error:
                raise ValueError(f"{subject.label}: {error}") from error
            highest = max(self.levels)
            if "conformal" in self.kinds and found.levels[-1] < highest - 1e-9:
                raise ValueError(too_few(highest, found.images, subject.label))
            fitted[subject.label] = found
        return fitted, skipped

    def measure(
        self, one: PairSet, world: World, fitted: Mapping[str, Calibration]
    ) -> tuple[dict[str, list[ImageCoverage]], list[str]]:
        """Coverage of every image by subject, of all ranks, and why pairs were left out.

        Raises:
            ValueError: there is no pixel to measure on.
        """
        rows: dict[str, list[ImageCoverage]] = {subject.label: [] for subject in self.subjects}
        skipped = []
        for pair in self._pairs(one, world):
            if pair.views is None:
                skipped.append(pair.skipped)
                continue
            for subject, number, view, found in self._errors(pair):
                calibration = fitted[subject.label]
                collector = ErrorCollector(per_image=self.per_image)
                by_depth = calibration.binned_by == "relative"
                name = f"{pair.index:08d}/{number}"
                found.add_to(collector, view["valid_mask"], name, with_depths=by_depth)
                rows[subject.label].append(
                    ImageCoverage(
                        pair.index,
                        number,
                        view["label"][0],
                        str(Path(view["instance"][0]).parent),
                        int(view["valid_mask"].sum()),
                        collector.left_out,
                        found.scale(view["valid_mask"]),
                        *self._held(collector.samples(), calibration, subject),
                    )
                )
        skipped = [reason for part in world.gather(skipped) for reason in part]
        for label, mine in rows.items():
            every = [row for part in world.gather(mine) for row in part]
            rows[label] = sorted(every, key=lambda row: (row.pair, row.view))
            _check_measured(one.name, label, rows[label], skipped)
        return rows, skipped

    def folders(self, one: PairSet) -> set[str]:
        """Where the images of chosen pairs are."""
        return {str(Path(file).parent) for file in image_files(one, self.evaluation.provider)}

    def kinds_of(self, subject: Subject) -> tuple[str, ...]:
        """What is reported of it: as stated, where that has a unit, and calibrated."""
        return (*((STATED,) if subject.states else ()), *self.kinds)

    def _pairs(self, one: PairSet, world: World) -> Iterator[Predicted]:
        mine = one.indices[world.rank :: world.size]
        with tqdm(total=len(mine), desc=one.name, unit="pair", disable=not world.is_main) as bar:
            for pair in self.evaluation.provider.pairs(one.benchmark, mine) if mine else ():
                yield pair
                bar.update()

    def _errors(self, pair: Predicted) -> Iterator[tuple[Subject, int, View, ViewErrors]]:
        pose1 = pair.views[0]["camera_pose"]
        for subject in self.subjects:
            source, family = self.evaluation.sources[subject.method.label], subject.method.family
            predictions = pair.predictions[source]
            subject.method.check(predictions[0], f"{subject.label}'s {source}")
            for number, (view, prediction) in enumerate(
                zip(pair.views, predictions, strict=True), 1
            ):
                told = subject.region, self.options.alignment
                found = view_errors(view, prediction, family, pose1, *told)
                yield subject, number, view, found

    def _held(
        self, samples: ErrorSamples, calibration: Calibration, subject: Subject
    ) -> tuple[np.ndarray, ...]:
        kinds = self.kinds_of(subject)
        curve = np.full((len(kinds), len(CURVE)), np.nan)
        shares, radii, medians = np.full((3, len(kinds), len(self.levels)), np.nan)
        for row, kind in enumerate(kinds if len(samples) else ()):
            used = None if kind == STATED else calibration
            least = np.sort(least_levels(samples, used, kind=kind, region=subject.region))
            for found, stated in ((curve, CURVE), (shares, self.levels)):
                # A level that is stored misses its value by rounding.
                reached = np.searchsorted(least, np.asarray(stated) + 1e-9, side="right")
                found[row] = reached / len(least)
            for column, level in enumerate(self.levels):
                radius = half_widths(samples, used, kind, subject.region, level)
                radii[row, column] = radius.mean()
                medians[row, column] = np.median(radius)
        return curve, shares, radii, medians

    def _check_samples(
        self, samples: ErrorSamples, subject: Subject, skipped: Sequence[str]
    ) -> None:
        if len(samples):
            return
        why = f" The first of {len(skipped)} pairs left out: {skipped[0]}" if skipped else ""
        if not samples.left_out:
            raise ValueError(
                "--dataset has no pixel with a valid depth, so there is nothing to calibrate with; "
                f"check its depth files and their unit.{why}"
            )
        raise ValueError(
            f"--dataset: none of {samples.left_out:,} pixels can be used for {subject.label!r}: "
            "predictions are not finite, or state no deviation above 0"
        )


def half_widths(
    samples: ErrorSamples, calibration: Calibration | None, kind: str, region: str, level: float
) -> np.ndarray:
    """Radii (N,) of the regions that are to hold ``level``; half the length of intervals."""
    if calibration is None:
        return samples.sigmas * radial_quantile(level, region, samples.df)
    told = {"kind": kind, "df": samples.df, "depth": samples.depths}
    if region == "interval" and kind == "isotonic":
        low, high = calibration.interval(0.0, samples.sigmas, level, **told)
        return (high - low) / 2
    return calibration.radius(samples.sigmas, level, **told)


def check_disjoint(fitted_on: PairSet, measured_on: Sequence[PairSet], provider: Any) -> None:
    """Refuse benchmarks that hold what is fitted on.

    Raises:
        ValueError: one has the specification of ``--dataset``, or shares images with it.
    """
    specs = {one.name: "".join(one.spec.split()) for one in (fitted_on, *measured_on)}
    for one in measured_on:
        if specs[one.name] == specs[fitted_on.name] and isinstance(provider, Networks):
            raise ValueError(
                f"benchmark {one.name} is the data set of --dataset, {one.spec}: coverage is to be "
                "measured on other images than the calibration is fitted on. Give another split, "
                "ROOT or recording"
            )
    files = image_files(fitted_on, provider)
    for one in measured_on:
        shared = files & image_files(one, provider)
        if shared:
            raise ValueError(
                f"benchmark {one.name} shares {len(shared)} images with --dataset, such as "
                f"{min(shared)}: coverage is to be measured on other images than the calibration "
                "is fitted on. Give another split, ROOT or recording"
            )


def image_files(one: PairSet, provider: Networks | Stored) -> set[str]:
    """Files of the images of chosen pairs."""
    if isinstance(provider, Networks):
        draws = (Draw(index, 0, (provider.seed, 0)) for index in one.indices)
        return {str(path) for draw in draws for path in one.benchmark.dataset.draw_paths(draw)}
    truths = Stored(provider.folder, ()).pairs(one.benchmark, one.indices)
    return {view["instance"][0] for pair in truths if pair.views for view in pair.views}


def needed_images(level: float) -> int:
    """Images that a conformal radius of a level needs."""
    return math.ceil(level / (1 - level) - 1e-9)


def too_few(level: float, images: int, what: str) -> str:
    return (
        f"{what}: radii that hold {100 * level:g}% need {needed_images(level)} images or more (in "
        f"every group of --bins), and --dataset gives {images}. Give more pairs, fewer bins, or "
        "lower --levels"
    )


def _check_measured(
    name: str, label: str, rows: Sequence[ImageCoverage], skipped: Sequence[str]
) -> None:
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts["valid"] += row.valid
        counts["left_out"] += row.left_out
    if not counts["valid"]:
        why = f" The first of {len(skipped)} pairs left out: {skipped[0]}" if skipped else ""
        raise ValueError(
            f"benchmark {name} has no pixel with a valid depth, so there is nothing to compare "
            f"with; check its depth files and their unit.{why}"
        )
    if counts["left_out"] == counts["valid"]:
        raise ValueError(
            f"benchmark {name}: none of {counts['valid']:,} pixels can be used for {label!r}: "
            "predictions are not finite, or state no deviation above 0"
        )
