"""``evaluate.py calibrate``: arguments in, calibrations beside their checkpoints, and coverage."""

import argparse
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from dust3r.evaluation import calibrate_report as text_of
from dust3r.evaluation import report
from dust3r.evaluation.benchmarks import EXAMPLE
from dust3r.evaluation.calibrate import (
    Calibrating,
    FitOptions,
    Subject,
    check_disjoint,
    needed_images,
    too_few,
)
from dust3r.evaluation.calibrate_summary import CURVE, ImageCoverage, summarise
from dust3r.evaluation.figures import coverage_figure
from dust3r.evaluation.networks import Sampling, Source, sources_of
from dust3r.evaluation.options import add_families, add_shared, evaluation_of
from dust3r.evaluation.page import Section, document, png_bytes
from dust3r.evaluation.predictions import read_index
from dust3r.evaluation.uq import Evaluation, PairSet
from dust3r.training.distributed import World
from dust3r.uncertainty.alignment import POINT_ALIGNMENTS
from dust3r.uncertainty.calibration import (
    LEVELS,
    UNALIGNED,
    BinnedBy,
    Calibration,
    Kind,
    ScaleBy,
)
from dust3r.uncertainty.calibration_file import path_beside, save, sha256_of
from dust3r.utils.arguments import count
from dust3r.utils.files import atomic_path

log = logging.getLogger(__name__)

HELP = "regions that hold what they say: fitted, stored and measured"
FIT = "calibration"
PER_IMAGE = 1024

_DESCRIPTION = """\
Fits on --dataset what makes stated deviations true (variance scaling, isotonic recalibration and
split-conformal radii), and measures on --benchmarks, which share no image with it, how much lies
within regions that are to hold 50, 80, 90 and 95%, before and after. Intervals of depth for geom,
and feat, balls around points for all others; 1 / confidence states nothing before it is calibrated.
Predictions are held against the truth as they are, in metres, or with --alignment after a
similarity for each image. Writes
<checkpoint>.<method's family>.calibration.json beside each checkpoint or to --calibration_dir,
where viz_uq.py and demo.py find it with --calibration, and calibration.csv, images.csv,
calibration.json, calibration.md, calibration.html, pairs.json and <benchmark>_reliability.png to
--output_dir. Under torchrun every process takes its share of the pairs.
"""


def add_arguments(parser: argparse.ArgumentParser, **_: Any) -> None:
    parser.description = _DESCRIPTION
    add_shared(parser, EXAMPLE)
    add_families(parser)
    add = parser.add_argument
    add(
        "--dataset",
        help="what to fit on, which no model was trained on; --num_pairs is of it as well. With "
        f"--predictions its name ({FIT} by default)",
    )
    add("--output_dir", required=True, type=Path, help="folder that the reports go to")
    add(
        "--calibration_dir",
        type=Path,
        metavar="DIR",
        help="folder that the calibrations go to; by default that of their checkpoint",
    )
    add(
        "--levels",
        nargs="+",
        type=_level,
        default=list(LEVELS),
        help="shares to report, from 0.01 to 0.99 (0.5 0.8 0.9 0.95)",
    )
    add(
        "--kinds",
        nargs="+",
        choices=get_args(Kind),
        default=list(get_args(Kind)),
        help="calibrations to report; all are stored (all)",
    )
    add("--scale_by", choices=get_args(ScaleBy), default="nll", help="how to find the factor")
    add("--bins", type=count, help="groups with radii of their own (5 with --binned_by)")
    add(
        "--binned_by",
        choices=get_args(BinnedBy),
        help="what groups are of: sigma / depth, or sigma, which no scene without metres can use",
    )
    add(
        "--alignment",
        choices=(UNALIGNED, *POINT_ALIGNMENTS),
        default=UNALIGNED,
        help="of each image's points before errors count: none, for points as they are in camera "
        "1's frame, or a similarity, for errors of shape, as --uq_align sim3 teaches them (none)",
    )
    add("--ellipsoids", action="store_true", help="also those of methods that state a covariance")
    add(
        "--pixels_per_image",
        type=count,
        default=PER_IMAGE,
        help="to take at random (%(default)s)",
    )


def run(args: argparse.Namespace, world: World, **_: Any) -> str:
    """Fit, measure and write; what to tell on the command line. Raises as ``uq_cli.run``."""
    options = _fit_options(args)
    evaluation, fitted_on, measured_on = _data(args, world)
    levels = sorted(set(args.levels))
    kinds = [kind for kind in get_args(Kind) if kind in args.kinds]
    subjects = Subject.of(evaluation.methods, args.ellipsoids)
    _check_alignment(args.alignment, subjects)
    told, files = _destinations(args, evaluation, subjects)
    needed = max((*levels, LEVELS[-1]) if "conformal" in kinds else LEVELS)
    if 2 * len(fitted_on.indices) < needed_images(needed):
        raise ValueError(too_few(needed, 2 * len(fitted_on.indices), "--dataset"))
    check_disjoint(fitted_on, measured_on, evaluation.provider)
    calibrating = Calibrating(evaluation, subjects, options, levels, kinds, args.pixels_per_image)
    fitted, skipped = calibrating.fit(fitted_on, world, told)
    if world.is_main:
        for label, path in files.items():
            save(fitted[label], path)
            log.info("%s: %s", label, path)
    found, images = _measured(calibrating, fitted_on, measured_on, fitted, world)
    if not world.is_main:
        return ""
    problems = [text_of.left_out_pairs(len(skipped), len(fitted_on.indices))] if skipped else []
    problems += [
        text_of.left_out_pixels(label, one.left_out, one.left_out + one.pixels)
        for label, one in fitted.items()
        if one.left_out
    ]
    _write(args.output_dir, evaluation, fitted, files, found, images, problems)
    text = text_of.markdown(fitted, found, problems, {k: str(v) for k, v in files.items()})
    report.write_text(args.output_dir / "calibration.md", f"# Calibration\n\n{text}")
    return f"{text}\nin {args.output_dir}\n"


def _data(args: argparse.Namespace, world: World) -> tuple[Evaluation, PairSet, list[PairSet]]:
    """Predictions of everything, what to fit on, and what to measure on."""
    given = argparse.Namespace(**vars(args))
    if args.predictions is None:
        if not args.dataset:
            raise ValueError(f"give --dataset to fit on, such as {EXAMPLE.split(';')[0][7:]}")
        given.benchmarks = f"{FIT}:{args.dataset};{args.benchmarks or ''}"
        name = FIT
    else:
        name = args.dataset or FIT
        if args.benchmarks is not None:
            given.benchmarks = f"{name};{args.benchmarks}"
    evaluation = evaluation_of(given, world)
    chosen = {one.name: one for one in evaluation.pairs}
    if name not in chosen or len(chosen) < len(evaluation.pairs):
        raise ValueError(
            f"--predictions has {', '.join(chosen)}: name one of them in --dataset to fit on, and "
            "others in --benchmarks to measure on"
        )
    fitted_on = chosen.pop(name)
    return evaluation, fitted_on, list(chosen.values())


def _fit_options(args: argparse.Namespace) -> FitOptions:
    bins = args.bins or (5 if args.binned_by else 1)
    if (bins > 1) != (args.binned_by is not None):
        raise ValueError(
            f"--bins {bins} needs --binned_by relative or sigma, which say what the groups are of, "
            "and these need two groups or more"
        )
    return FitOptions(args.scale_by, bins, args.binned_by, args.alignment)


def _check_alignment(alignment: str, subjects: Sequence[Subject]) -> None:
    of_depth = [one.label for one in subjects if one.region == "interval"]
    if alignment != UNALIGNED and of_depth:
        raise ValueError(
            f"--alignment {alignment} is of points, and {', '.join(of_depth)} state(s) intervals "
            "of depth: calibrate them apart, without it"
        )


def _destinations(
    args: argparse.Namespace, evaluation: Evaluation, subjects: Sequence[Subject]
) -> tuple[dict[str, dict[str, str]], dict[str, Path]]:
    """By label of a method what to tell of its weights, and by label of a subject its file."""
    if args.predictions is None:
        sampling = Sampling(args.samples, args.dropout, args.same_scale)
        sources = sources_of(evaluation.methods, args.ckpt, sampling)
        paths = {label: source.paths for label, source in sources.items()}
    else:
        index = read_index(args.predictions)["sources"]
        paths = {
            label: tuple(map(Path, index[name].split(",")))
            for label, name in evaluation.sources.items()
        }
    told, files = {}, {}
    for subject in subjects:
        label = subject.method.label
        path, *_ = of_method = paths[label]
        known = all(one.is_file() for one in of_method)
        if args.calibration_dir is None and not known:
            raise ValueError(
                f"the checkpoint of {label}, {path}, is not there, so nothing can be stored beside "
                "it; give --calibration_dir"
            )
        if args.predictions is not None and known:
            _check_unchanged(evaluation.sources[label], of_method)
        told[label] = {
            "checkpoint": "+".join(one.name for one in of_method),
            "checkpoint_sha256": _sha256_of(of_method) if known else "",
        }
        beside = path_beside(path, subject.method.family, subject.region)
        place = beside if args.calibration_dir is None else args.calibration_dir / beside.name
        if place in files.values():
            raise ValueError(
                f"--methods: {subject.label} and another would both be stored as {place}: "
                "calibrate a family of a checkpoint once, and checkpoints of one name apart"
            )
        files[subject.label] = place
    return told, files


def _check_unchanged(name: str, paths: Sequence[Path]) -> None:
    """Refuse to name weights that are not those of stored predictions."""
    # Names of networks that sample hold how they did.
    if len(paths) == 1 and name.startswith(paths[0].stem[:60]):
        found = Source.of(paths, "", Sampling()).name
        if found != name:
            raise ValueError(
                f"--predictions are of {name}, and {paths[0]} is {found} now: it has changed since "
                "they were stored. Store them again"
            )


def _sha256_of(paths: Sequence[Path]) -> str:
    if len(paths) == 1:
        return sha256_of(paths[0])
    return hashlib.sha256("".join(map(sha256_of, paths)).encode()).hexdigest()


def _measured(
    calibrating: Calibrating,
    fitted_on: PairSet,
    measured_on: Sequence[PairSet],
    fitted: Mapping[str, Calibration],
    world: World,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Numbers of every subject on every benchmark, and rows about each image."""
    found, images = [], []
    known = calibrating.folders(fitted_on) if measured_on else set()
    for one in measured_on:
        rows, skipped = calibrating.measure(one, world, fitted)
        for subject in calibrating.subjects:
            mine: list[ImageCoverage] = rows[subject.label]
            kinds = calibrating.kinds_of(subject)
            numbers = {
                "benchmark": one.name,
                "method": subject.label,
                "family": subject.method.family,
                "region": subject.region,
                "alignment": calibrating.options.alignment,
                "pairs": len(one.indices),
                "pairs_left_out": len(skipped),
                "shared_folders": len(known & {row.folder for row in mine}),
            }
            found.append(numbers | summarise(mine, kinds, calibrating.levels))
            images += text_of.image_rows(one.name, subject.label, kinds, calibrating.levels, mine)
    return found, images


def _write(
    folder: Path,
    evaluation: Evaluation,
    fitted: Mapping[str, Calibration],
    files: Mapping[str, Path],
    found: Sequence[Mapping[str, Any]],
    images: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
) -> None:
    settings = {
        "benchmarks": {one.name: one.spec for one in evaluation.pairs},
        "methods": {method.label: method.family for method in evaluation.methods},
        "sources": dict(evaluation.sources),
    }
    evaluation.write_pairs(folder)
    fits = {
        label: {
            "file": str(files[label]),
            "region": one.region,
            "alignment": one.alignment,
            "factor": one.scale,
            "images": one.images,
            "pairs": one.pairs,
            "pixels": one.pixels,
            "left_out": one.left_out,
            "levels": LEVELS,
            "cross_validated": one.coverage,
        }
        for label, one in fitted.items()
    }
    content = {"settings": settings, "fitted": fits, "curve_levels": CURVE, "results": found}
    report.write_json(folder / "calibration.json", content)
    report.write_csv(folder / "calibration.csv", text_of.flat_rows(found))
    report.write_csv(folder / "images.csv", images)
    where = {label: str(path) for label, path in files.items()}
    sections = [
        Section(
            "Fitted on",
            text_of.about_fit(fitted),
            problems,
            [
                ("Calibrations", text_of.fit_table(fitted, where)),
                ("Coverage within what was fitted on", text_of.cross_validation_table(fitted)),
            ],
        )
    ]
    for benchmark in dict.fromkeys(one["benchmark"] for one in found):
        rows = [one for one in found if one["benchmark"] == benchmark]
        curves = png_bytes(coverage_figure(rows, CURVE, benchmark))
        with atomic_path(folder / f"{benchmark}_reliability.png") as temporary:
            temporary.write_bytes(curves)
        warned, told = text_of.problems(rows), text_of.tables(rows)
        sections.append(Section(benchmark, text_of.about(rows[0]), warned, told, curves))
    shown = {
        "methods": ", ".join(f"{label} ({name})" for label, name in evaluation.sources.items()),
        **{one.name: one.spec for one in evaluation.pairs},
    }
    page = document("Calibration of uncertainty", shown, sections)
    report.write_text(folder / "calibration.html", page)


def _level(text: str) -> float:
    level = float(text)
    if not 0.01 <= level <= 0.99:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0.01 to 0.99, such as 0.9")
    return level
