"""Depth of DELTAS measured on sequences of posed frames: tables over seq_gap, curves, pictures."""

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deltas.checkpoint import load_model
from deltas.data.sequences import Sequences
from deltas.evaluation import measure as evaluate
from deltas.evaluation.figures import gap_figure, sample_figure
from deltas.evaluation.measure import GapMeasures
from deltas.evaluation.tables import markdown
from deltas.model import Deltas
from dust3r.datasets.base import SPLITS
from dust3r.evaluation import report
from dust3r.training.checkpoint import CheckpointError
from dust3r.utils.arguments import count
from dust3r.utils.command import exit_status
from dust3r.utils.device import chosen_device
from dust3r.utils.plots import save_png
from dust3r.utils.spread import spread

log = logging.getLogger(__name__)

USER_ERRORS = (ValueError, FileNotFoundError, CheckpointError)
SETTINGS = ("num_kps", "detection_threshold", "frac_superpoint")


def main(given: list[str] | None = None) -> int:
    """Measure, write the files, print the tables; the exit status."""
    args = make_parser().parse_args(given)
    return exit_status(run, args, USER_ERRORS)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="test_learnabledepth.py", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="ROOT", help="processed data set or recordings")
    add(
        "--pretrained",
        type=Path,
        required=True,
        metavar="FILE",
        help="weights: a .pth.tar of the published form, or a checkpoint of train_deltas.py",
    )
    add(
        "--ttype2",
        type=_split,
        choices=SPLITS,
        default="test",
        help="split to test on (%(default)s); test.txt and the like are understood",
    )
    add("--seq_length", type=int, default=3, help="frames of a sequence (%(default)s)")
    add(
        "--seq_gap",
        type=int,
        nargs="+",
        default=[1, 5, 10, 20],
        help="frames from one to the next; of several, all have the anchors of the largest "
        "(1 5 10 20)",
    )
    add("--width", type=int, default=320, help="of the images, in pixels (%(default)s)")
    add("--height", type=int, default=240, help="of the images, in pixels (%(default)s)")
    add("--mindepth", type=float, help="in metres: of points, and of true depths that count")
    add("--maxdepth", type=float, help="likewise; by default both as the model was made")
    add("--num_kps", type=count, help="points of an anchor; by default as the model was made")
    add("--detection_threshold", type=float, help="least score of a point; likewise")
    add("--frac_superpoint", type=float, help="part of the points chosen by score; likewise")
    add(
        "--num_samples", type=count, help="at most so many anchors, evenly spread; all if not given"
    )
    add("--depth_unit", type=float, default=1000.0, help="steps a metre of raw recordings' depth")
    add("--no_check", action="store_true", help="take units and poses as they are, unchecked")
    add("--batch_size", type=count, default=4, help="sequences at a time (%(default)s)")
    add("--num_workers", type=int, default=2, help="processes that load (%(default)s)")
    add("--seed", type=int, default=0, help="of random points (%(default)s)")
    add(
        "--output_dir",
        type=Path,
        default=Path("output/learnabledepth"),
        help="folder that the files go to (%(default)s)",
    )
    add(
        "--pictures",
        type=int,
        default=3,
        metavar="N",
        help="of N anchors, evenly spread, and of the best, the median and the worst, for each "
        "gap; 0 for none (%(default)s)",
    )
    add("--device", help="cpu, cuda, ...; by default the GPU where there is one")
    add("--silent", action="store_true", help="only warnings and errors")
    return parser


def run(args: argparse.Namespace) -> list[str]:
    """Measure and write; the tables and the files' names.

    Raises:
        ValueError, FileNotFoundError: an argument or the data is wrong; the message says which.
        CheckpointError: the weights cannot be used.
    """
    _check(args)
    device = chosen_device(args.device)
    model = configured(load_model(args.pretrained, device), args)
    sequences = evaluate.sequences_at(
        args.data,
        args.seq_gap,
        check=not args.no_check,
        split=args.ttype2,
        seq_length=args.seq_length,
        width=args.width,
        height=args.height,
        depth_unit=args.depth_unit,
    )
    anchors = len(next(iter(sequences.values())))
    indices = spread(anchors, args.num_samples)
    log.info(
        "%d of %d anchors at seq_gap %s", len(indices), anchors, ", ".join(map(str, sequences))
    )
    measures = evaluate.evaluate(
        model,
        sequences,
        indices,
        seed=args.seed,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        verbose=not args.silent,
    )
    measured = {gap: one.compute() for gap, one in measures.items()}
    table = markdown(measured)
    written = [*_write(args, model, measures, measured, table)]
    written += _pictures(args, model, sequences, measures)
    return [table, *map(str, written)]


def configured(model: Deltas, args: argparse.Namespace) -> Deltas:
    """The model with the settings that were given, its batch norms folded.

    Raises:
        ValueError: a setting is out of range.
    """
    low, high = model.depth_range
    low = low if args.mindepth is None else args.mindepth
    high = high if args.maxdepth is None else args.maxdepth
    if not 0 < low < high < float("inf"):
        raise ValueError(
            f"depths from {low:g} to {high:g} m: --mindepth must be above 0 and below --maxdepth"
        )
    model.depth_range = low, high
    for name in SETTINGS:
        value = getattr(args, name)
        if value is not None:
            setattr(model, name, value)
    model.fold_batch_norms()
    return model


def _check(args: argparse.Namespace) -> None:
    for name in ("detection_threshold", "frac_superpoint"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"--{name} {value:g} must be within 0 and 1")
    for name in ("pictures", "num_workers", "seed"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} {getattr(args, name)} must be 0 or more")


def _write(
    args: argparse.Namespace,
    model: Deltas,
    measures: Mapping[int, GapMeasures],
    measured: Mapping[int, Mapping[str, Any]],
    table: str,
) -> Iterator[Path]:
    """The tables and curves; the paths."""
    settings = {
        "data": str(args.data),
        "pretrained": str(args.pretrained),
        "split": args.ttype2,
        "seq_length": args.seq_length,
        "width": args.width,
        "height": args.height,
        "mindepth": model.depth_range[0],
        "maxdepth": model.depth_range[1],
        "seed": args.seed,
    } | {name: getattr(model, name) for name in SETTINGS}
    results = [
        {"seq_gap": gap} | measured[gap] | {"per_image": one.images}
        for gap, one in measures.items()
    ]
    yield (path := args.output_dir / "depth.json")
    report.write_json(path, {"settings": settings, "results": results})
    yield (path := args.output_dir / "depth.md")
    report.write_text(path, f"# Depth of {args.pretrained.name} on {args.data.name}\n\n{table}")
    if len(measured) > 1:
        yield (path := args.output_dir / "depth.png")
        save_png(gap_figure(measured, f"{args.pretrained.name} on {args.data.name}"), path)


def _pictures(
    args: argparse.Namespace,
    model: Deltas,
    sequences: Mapping[int, Sequences],
    measures: Mapping[int, GapMeasures],
) -> Iterator[Path]:
    """Pictures of a few anchors of each gap; the paths."""
    for gap, measured in measures.items() if args.pictures else ():
        records = {one["index"]: one for one in measured.images}
        chosen = [[*records][n] for n in spread(len(records), args.pictures)]
        roles = measured.extremes()
        for (index,), batches in evaluate.load(
            {gap: sequences[gap]}, sorted({*chosen, *roles.values()})
        ):
            one = records[index]
            title = (
                f"{one['label']}, seq_gap {gap}: abs_rel {report.number(one['abs_rel'])}, "
                f"rmse {report.number(one['rmse'])} m, a1 {report.number(one['a1'])}"
            )
            name = "-".join(
                [f"gap_{gap:02d}", f"{index:05d}"] + [r for r in roles if roles[r] == index]
            )
            for _, batch, prediction in evaluate.predict(model, batches, args.seed):
                alone = evaluate.only(0, batch, prediction)
                path = args.output_dir / "pictures" / f"{name}.png"
                save_png(sample_figure(*alone, model.depth_range, title), path)
                yield path


def _split(text: str) -> str:
    """The name of a split, without the ending of a file of its name."""
    return text.removesuffix(".txt")


if __name__ == "__main__":
    sys.exit(main())
