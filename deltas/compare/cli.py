"""``python -m deltas.compare``: depth by several methods on the same frames, side by side.

Each method runs in a process of its own, on the CPU, which tells its time and memory apart from the
others'. All see images, poses and intrinsics alone. Where a method has no depth the prior depth
stands in and is counted, so that the errors of all methods are over the same pixels.
"""

import argparse
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from deltas import checkpoint
from deltas.compare.classical import SiftTriangulation
from deltas.compare.measures import Measured, measure
from deltas.compare.methods import DeltasDepth, DepthMethod, MedianDepth
from deltas.compare.plane_sweep import PlaneSweep
from deltas.compare.pointmap_depth import PointmapDepth
from deltas.compare.report import write
from deltas.data.sequences import Sequences
from deltas.model import Deltas
from dust3r.model import AsymmetricCroCo3DStereo, load_model
from dust3r.training.checkpoint import CheckpointError, load_file
from dust3r.utils.arguments import count
from dust3r.utils.command import exit_status
from dust3r.utils.spread import spread

USER_ERRORS = (ValueError, FileNotFoundError, CheckpointError)

_TRAINING_FRAMES, _TRAINING_STRIDE = 100, 4


@dataclass(frozen=True)
class Settings:
    """Which frames, which methods with which weights, and what counts.

    Attributes:
        data, split, seq_length, seq_gap, anchor_gap, width, height, depth_unit: of ``Sequences``.
        num: anchors, spread evenly over the data set; all where it has fewer.
        methods: names of ``METHODS``.
        prior_depth: metres, of the method ``median``, and where another has no depth.
        mindepth, maxdepth: metres; true depths outside do not count.
    """

    data: str
    methods: tuple[str, ...]
    prior_depth: float
    split: str = "test"
    seq_length: int = 3
    seq_gap: int = 10
    anchor_gap: int | None = None
    num: int = 50
    width: int = 320
    height: int = 240
    depth_unit: float = 1000.0
    mindepth: float = 0.5
    maxdepth: float = 10.0
    deltas_weights: str | None = None
    pointmap_weights: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(
                f"--methods {','.join(self.methods)!r}: expected each once of "
                f"{','.join(METHODS)}" + (f"; {', '.join(unknown)} is unknown" if unknown else "")
            )
        for name in self.methods:
            needed = WEIGHTS.get(name)
            if needed and not getattr(self, needed):
                raise ValueError(f"--methods {name} needs --{needed}, a checkpoint")
        if not 0 < self.mindepth < self.maxdepth:
            raise ValueError(
                f"--mindepth {self.mindepth} must be positive and below --maxdepth {self.maxdepth}"
            )
        if not 0 < self.prior_depth < float("inf"):
            raise ValueError(f"--prior_depth {self.prior_depth} is no depth in metres, above 0")

    def sequences(self, check: bool) -> Sequences:
        """The data set; ``check`` looks at units and poses, as ``Sequences`` does."""
        return Sequences(
            ROOT=self.data,
            split=self.split,
            seq_length=self.seq_length,
            seq_gap=self.seq_gap,
            anchor_gap=self.anchor_gap,
            width=self.width,
            height=self.height,
            depth_unit=self.depth_unit,
            check=check,
        )

    def indices(self, available: int) -> list[int]:
        """Up to ``num`` of that many samples, evenly."""
        return spread(available, self.num)


METHODS: Mapping[str, Callable[[Settings], DepthMethod]] = {
    "median": lambda s: MedianDepth(s.prior_depth),
    "sift": lambda s: SiftTriangulation(s.mindepth, s.maxdepth),
    "planesweep": lambda s: PlaneSweep(s.mindepth, s.maxdepth),
    "deltas": lambda s: DeltasDepth(checkpoint.load_model(s.deltas_weights)),
    "pointmap": lambda s: PointmapDepth(
        _pairwise(s.pointmap_weights), mindepth=s.mindepth, maxdepth=s.maxdepth
    ),
}
# Method: the setting that names its weights.
WEIGHTS = {"deltas": "deltas_weights", "pointmap": "pointmap_weights"}


def main(given: list[str] | None = None) -> int:
    """The exit status of the command line ``given``, or of this process's own."""
    return exit_status(run, make_parser().parse_args(given), USER_ERRORS)


def run(args: argparse.Namespace) -> Sequence[object]:
    """Compare and write; the table and the paths written.

    Raises:
        FileNotFoundError, ValueError, CheckpointError: what was asked for is not there.
    """
    values = {field.name: vars(args)[field.name] for field in fields(Settings)}
    values["methods"] = tuple(filter(None, (name.strip() for name in args.methods.split(","))))
    if values["prior_depth"] is None:
        if args.train is None:
            raise ValueError(
                "give --train, the data set whose median depth is the constant to beat, or this "
                "depth in metres as --prior_depth"
            )
        values["prior_depth"] = training_median(args)
    settings = Settings(**values)
    dataset = settings.sequences(check=True)
    results = {
        name: in_own_process(settings, name)
        for name in tqdm(settings.methods, desc="methods", unit="method", disable=args.silent)
    }
    return write(Path(args.output_dir), settings, dataset, results)


def in_own_process(settings: Settings, name: str) -> Measured:
    """``evaluate`` in a fresh process; its errors are raised here."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(evaluate, settings, name, torch.get_num_threads()).result()


def evaluate(settings: Settings, name: str, threads: int | None = None) -> Measured:
    """One method on the frames of ``settings``, with ``threads`` of torch."""
    if threads is not None:
        torch.set_num_threads(threads)
    dataset = settings.sequences(check=False)
    return measure(
        lambda: METHODS[name](settings),
        dataset,
        settings.indices(len(dataset)),
        prior_depth=settings.prior_depth,
        depth_range=(settings.mindepth, settings.maxdepth),
    )


def training_median(args: argparse.Namespace) -> float:
    """Median of the depths within range in up to 100 frames of ``args.train``, evenly chosen."""
    dataset = Sequences(
        ROOT=args.train,
        split=args.train_split,
        seq_length=2,
        seq_gap=1,
        width=args.width,
        height=args.height,
        depth_unit=args.depth_unit,
    )
    found = []
    for place in spread(len(dataset), _TRAINING_FRAMES):
        sample = dataset[place]
        depth = sample["depthmap"][0, ::_TRAINING_STRIDE, ::_TRAINING_STRIDE]
        found.append(depth[(depth >= args.mindepth) & (depth <= args.maxdepth)])
    depths = np.concatenate(found)
    if not len(depths):
        raise ValueError(
            f"--train {args.train} has no depth from {args.mindepth} to {args.maxdepth} m; check "
            "its unit (--depth_unit)"
        )
    return float(np.median(depths))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deltas.compare", description=__doc__)
    default = {field.name: field.default for field in fields(Settings)}
    add = parser.add_argument
    add("--data", required=True, help="processed data set, recording, or a folder of these")
    add("--output_dir", required=True, help="folder of compare.json, compare.md, compare.png")
    add("--methods", default="median,sift,planesweep", help=f"of {','.join(METHODS)} (%(default)s)")
    add("--deltas_weights", help="checkpoint of DELTAS, for the method deltas")
    add("--pointmap_weights", help="checkpoint of DUSt3R or MASt3R, for the method pointmap")
    add("--train", help="data set whose median depth is the constant to beat")
    add("--train_split", default="train", help="of --train (%(default)s)")
    add("--prior_depth", type=float, help="that constant itself, metres, in place of --train")
    add("--split", default=default["split"], help="of --data: train, val, test, all (%(default)s)")
    for name, what in (
        ("seq_length", "frames, the anchor and its neighbours"),
        ("seq_gap", "frames from one to the next"),
        ("num", "anchors, spread evenly"),
        ("width", "pixels of the images"),
        ("height", "pixels of the images"),
    ):
        add(f"--{name}", type=count, default=default[name], help=f"{what} (%(default)s)")
    add("--anchor_gap", type=int, help="take the anchors that this larger gap has")
    for name, what in (
        ("mindepth", "metres; nearer true depths do not count"),
        ("maxdepth", "metres; farther true depths do not count"),
        ("depth_unit", "steps a metre of raw recordings that do not state it"),
    ):
        add(f"--{name}", type=float, default=default[name], help=f"{what} (%(default)s)")
    add("--silent", action="store_true", help="warnings alone, no progress")
    return parser


def _pairwise(path: str) -> AsymmetricCroCo3DStereo:
    """A pairwise model; CheckpointError for weights of DELTAS."""
    spec = getattr(load_file(path).get("args"), "model", None) or ""
    if spec.strip().partition("(")[0] == Deltas.__name__:
        raise CheckpointError(
            f"{path} is of Deltas, expected a pairwise pointmap model, DUSt3R or MASt3R: "
            "--deltas_weights takes it"
        )
    return load_model(path, verbose=False)
