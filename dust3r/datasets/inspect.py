"""What a data set gives, before a week of training on it: ``python -m dust3r.datasets.inspect``.

Reads a sample of a specification's pairs as training would, and reports counts, resolutions, depths
and overlaps, what cannot be read, and whether another convention of poses, axes or depth units fits
the views better than the one in the files. A page shows pairs with reprojected points and epipolar
lines.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dust3r.datasets.bad_samples import SampleError
from dust3r.datasets.combine import StereoDataset, View
from dust3r.utils.arguments import count
from dust3r.utils.files import atomic_path
from dust3r.utils.image import rgb
from dust3r.utils.reprojection import (
    AGREE,
    AS_GIVEN,
    CONVENTIONS,
    Camera,
    overlap,
    reprojection_errors,
)
from dust3r.utils.spec import DATASETS, build
from dust3r.utils.spread import spread

PAGE = "inspect.html"

_STRIDE = 4
_KEPT_DEPTHS = 500
# Another convention is named where it explains this much more of what is seen.
_BETTER_BY, _LEAST_AGREEMENT = 0.1, 0.2
_PLAUSIBLE_DEPTH_M = (0.1, 100.0)
_PLAUSIBLE_ERROR = 0.05


@dataclass(frozen=True)
class SeenView:
    """A view as seen upright: ``rgb`` (H, W, 3) uint8, ``depth`` (H, W) with 0 = none."""

    label: str
    rgb: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    pose: np.ndarray

    @classmethod
    def of(cls, view: View) -> "SeenView":
        """Of a view that may travel transposed."""
        height, _ = (int(side) for side in view["true_shape"])
        depth = view["depthmap"]
        return cls(
            str(view["label"]),
            (rgb(view["img"], view["true_shape"]) * 255).round().astype(np.uint8),
            depth if depth.shape[0] == height else depth.T,
            np.asarray(view["camera_intrinsics"], np.float64),
            np.asarray(view["camera_pose"], np.float64),
        )

    @property
    def camera(self) -> Camera:
        """Depth, intrinsics and pose, as the functions of ``reprojection`` take them."""
        return self.depth, self.intrinsics, self.pose


@dataclass(frozen=True)
class SeenPair:
    """Two views, their overlap, and the time that reading them took, in seconds."""

    index: int
    first: SeenView
    second: SeenView
    overlap: float
    seconds: float


@dataclass
class Part:
    """What the sampled pairs of one data set of the specification say.

    Attributes:
        name: as its views give it.
        metric: whether depths are in metres.
        sizes: (width, height) of the images, upright -> number of views.
        depths: some valid depths of each view.
        valid: share of each view's pixels that have a depth.
        overlaps: of each pair.
        errors: median of the carried depths' errors of each pair, where any met a depth.
        agreement: convention -> share of carried depths that agree, of each pair.
        seconds: to read each pair.
    """

    name: str
    metric: bool = True
    sizes: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    depths: list[np.ndarray] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    agreement: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: list[float] = field(default_factory=list)

    def add(self, pair: SeenPair, metric: bool, rng: np.random.Generator) -> None:
        """Count one more pair."""
        self.metric = metric
        self.overlaps.append(pair.overlap)
        self.seconds.append(pair.seconds)
        for view in (pair.first, pair.second):
            height, width = view.depth.shape
            self.sizes[width, height] += 1
            found = view.depth[view.depth > 0]
            self.valid.append(found.size / view.depth.size)
            self.depths.append(rng.choice(found, min(len(found), _KEPT_DEPTHS), replace=False))
        for name, change in CONVENTIONS.items():
            cameras = [change(*view.camera) for view in (pair.first, pair.second)]
            errors = reprojection_errors(*cameras[0], *cameras[1], stride=_STRIDE)
            if len(errors):
                self.agreement[name].append(float((errors <= AGREE).mean()))
            if name == AS_GIVEN and np.isfinite(errors).any():
                self.errors.append(float(np.median(errors[np.isfinite(errors)])))

    @property
    def median_depth(self) -> float:
        depths = np.concatenate([np.zeros(0), *self.depths])
        return float(np.median(depths)) if len(depths) else np.nan

    @property
    def median_error(self) -> float:
        return float(np.median(self.errors)) if self.errors else np.inf

    def warnings(self) -> list[str]:
        """What looks wrong, and how to mend it."""
        found = []
        shares = {name: float(np.mean(values)) for name, values in self.agreement.items()}
        best = max(shares, key=shares.__getitem__, default=AS_GIVEN)
        if shares and shares[best] > max(shares[AS_GIVEN] + _BETTER_BY, _LEAST_AGREEMENT):
            found.append(
                f"{self.name}: {best} would explain what the views see better: depths carried from "
                f"view to view agree for {shares[best]:.0%} of pixels then, and for "
                f"{shares[AS_GIVEN]:.0%} as given; expected are camera-to-world poses, axes x "
                "right, y down, z forward, and depth along z in the unit of the poses"
            )
        elif self.median_error > _PLAUSIBLE_ERROR:
            found.append(
                f"{self.name}: depth carried between views is off by {self.median_error:.1%} "
                "(median); check poses, axes, intrinsics and the unit of depth on the page"
            )
        low, high = _PLAUSIBLE_DEPTH_M
        if self.metric and not low <= self.median_depth <= high:
            found.append(
                f"{self.name}: the median depth is {self.median_depth:.3g} m, outside {low:g} to "
                f"{high:g} m: check the unit of depth, or give is_metric_scale=False"
            )
        return found


@dataclass
class Inspection:
    """What a sample of a specification's pairs says.

    Attributes:
        spec: the specification.
        description: of the data sets it describes.
        samples: of an epoch.
        resolutions: (width, height) to choose from.
        parts: by the names that views give.
        shown: the pairs to draw.
        unreadable: why samples could not be read.
    """

    spec: str
    description: str
    samples: int
    resolutions: tuple[tuple[int, int], ...]
    parts: dict[str, Part]
    shown: list[SeenPair]
    unreadable: list[str]

    @property
    def sizes(self) -> str:
        """The resolutions in words."""
        return ", ".join(f"{width}x{height}" for width, height in self.resolutions)

    def warnings(self) -> list[str]:
        """What looks wrong, and how to mend it."""
        found = [line for part in self.parts.values() for line in part.warnings()]
        if self.unreadable:
            sampled = len(self.unreadable) + sum(len(part.overlaps) for part in self.parts.values())
            found.append(
                f"{len(self.unreadable)} of {sampled} sampled pairs cannot be read, first: "
                f"{self.unreadable[0]}; --skip_bad_samples trains without them"
            )
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 1 where the specification is wrong, or 2 where something looks wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m dust3r.datasets.inspect", description=__doc__.splitlines()[0]
    )
    parser.add_argument("dataset", help="specification, as --train_dataset takes it")
    parser.add_argument("--num_pairs", type=count, default=48, help="pairs to read")
    parser.add_argument("--num_shown", type=count, default=8, help="of them, to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--output_dir", type=Path, default=Path("output/inspect"))
    args = parser.parse_args(arguments)
    # Loads matplotlib, which a wrong specification need not wait for.
    from dust3r.datasets import inspect_page

    try:
        found = inspect(args.dataset, args.num_pairs, args.num_shown, args.seed)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(inspect_page.text(found))
    path = args.output_dir / PAGE
    with atomic_path(path) as temporary:
        temporary.write_text(inspect_page.page(found))
    print(f"\npage: {path}")
    return 2 if found.warnings() else 0


def inspect(spec: str, num_pairs: int = 48, num_shown: int = 8, seed: int = 0) -> Inspection:
    """Read pairs spread over the data sets of a specification.

    Raises:
        SpecError, ValueError: the specification is wrong, or does not describe a data set.
        FileNotFoundError: a ``ROOT`` is not there.
    """
    dataset = build(spec, DATASETS)
    if not isinstance(dataset, StereoDataset):
        raise ValueError(f"expected a data set, but {spec!r} describes {dataset!r}")
    rng = np.random.default_rng(seed)
    parts: dict[str, Part] = {}
    pairs: list[tuple[str, SeenPair]] = []
    unreadable: list[str] = []
    with tqdm(total=min(num_pairs, len(dataset)), desc="reading", unit="pair") as progress:
        for index, aspect in _chosen(dataset, num_pairs, rng):
            progress.update()
            begin = time.perf_counter()
            try:
                views = dataset[(index, aspect)]
            except SampleError as error:
                unreadable.append(str(error))
                continue
            seconds = time.perf_counter() - begin
            first, second = (SeenView.of(view) for view in views)
            shared = overlap(*first.camera, *second.camera, stride=_STRIDE)
            name = str(views[0]["dataset"])
            pair = SeenPair(index, first, second, shared, seconds)
            part = parts.setdefault(name, Part(name))
            part.add(pair, bool(views[0]["is_metric_scale"]), rng)
            pairs.append((name, pair))
    shown = _spread(pairs, num_shown)
    described = repr(dataset), len(dataset), dataset.resolutions
    return Inspection(spec, *described, parts, shown, unreadable)


def _chosen(
    dataset: StereoDataset, number: int, rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Indices and aspect ratios: one in each of so many equal stretches, that mixtures be whole."""
    number = min(number, len(dataset))
    edges = np.linspace(0, len(dataset), number + 1)
    for place, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        index = min(int(rng.uniform(low, high)), len(dataset) - 1)
        yield index, place % len(dataset.resolutions)


def _spread(pairs: Sequence[tuple[str, SeenPair]], number: int) -> list[SeenPair]:
    """Some pairs of every data set in turn, from little overlap to much."""
    groups: dict[str, list[SeenPair]] = defaultdict(list)
    for name, pair in pairs:
        groups[name].append(pair)
    chosen: list[SeenPair] = []
    for n, group in enumerate(groups.values()):
        share = number // len(groups) + (n < number % len(groups))
        group.sort(key=lambda pair: pair.overlap)
        chosen += [group[place] for place in spread(len(group), share)]
    return chosen


if __name__ == "__main__":
    sys.exit(main())
