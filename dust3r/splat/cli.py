"""Splats of a reconstruction's export: training, held-out views, one table."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from dust3r.splat import clouds, report
from dust3r.splat.evaluate import load_lpips
from dust3r.splat.rasterise import RasteriserName, StrategyName, make_densifier, make_rasteriser
from dust3r.splat.runs import (
    SPLATS,
    Choice,
    Plan,
    Tools,
    make_plans,
    open_all,
    train_and_judge,
    views_to_test,
    write_pictures,
)
from dust3r.splat.train import Settings
from dust3r.splat.views import hold_out
from dust3r.training.checkpoint import CheckpointError
from dust3r.utils.arguments import count
from dust3r.utils.command import exit_status
from dust3r.utils.device import chosen_device

log = logging.getLogger(__name__)

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, CheckpointError)


def main(given: list[str] | None = None) -> int:
    """Train, render, report; the exit status."""
    args = make_parser().parse_args(given)

    def told(args: argparse.Namespace) -> list[object]:
        written = run(args)
        return [written[0].read_text(encoding="utf-8"), *written]

    return exit_status(told, args, USER_ERRORS)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dust3r.splat", description=__doc__)
    default = Settings()
    add = parser.add_argument
    add("export", type=Path, help="folder of an export, or a transforms.json")
    add("--output_dir", type=Path, required=True, help="a run that is in it goes on")
    add(
        "--compare",
        type=Path,
        nargs="+",
        default=[],
        metavar="EXPORT",
        help="others of the same photographs, such as COLMAP's own model of them",
    )
    add(
        "--images",
        type=Path,
        help="photographs of COLMAP models that have none beside them; by "
        "default those of the first export",
    )
    add(
        "--points",
        choices=get_args(clouds.Source),
        default="auto",
        help="which of an export's points to start from (%(default)s: the first there is)",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--keep",
        type=_share,
        metavar="SHARE",
        help="also train from this share of points, the most certain",
    )
    chosen.add_argument(
        "--max_radius",
        type=_positive,
        metavar="R",
        help="also train from points with a radius90 of at most R scene units",
    )
    add("--max_points", type=count, default=100_000, help="most points (%(default)s)")
    add("--test_every", type=count, default=8, help="hold out each n-th view (%(default)s)")
    add("--image_size", type=count, default=1600, help="longest side at most (%(default)s)")
    add("--steps", type=count, default=default.steps, help="a view each (%(default)s)")
    add(
        "--sh_degree",
        type=int,
        choices=range(4),
        default=default.sh_degree,
        help="harmonics of colours (%(default)s)",
    )
    add(
        "--strategy",
        choices=get_args(StrategyName),
        default=default.strategy,
        help="how splats are added and removed (%(default)s: Kerbl et al.)",
    )
    add(
        "--max_splats",
        type=count,
        default=default.max_splats,
        help="most of them with --strategy mcmc (%(default)s)",
    )
    add(
        "--rasteriser",
        choices=get_args(RasteriserName),
        default="gsplat",
        help="'reference' is slow, for tiny scenes on any device (%(default)s)",
    )
    add("--no_lpips", action="store_true", help="leave out LPIPS and its download")
    add("--save_every", type=count, default=1000, help="steps between checkpoints (%(default)s)")
    add("--seed", type=int, default=default.seed, help="of views and points (%(default)s)")
    add("--device", help="cuda, cpu, ...; by default the GPU where there is one")
    add("--silent", action="store_true", help="only warnings and errors")
    return parser


def run(args: argparse.Namespace) -> list[Path]:
    """All runs of a command line; the files written, the table first.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: an argument is wrong, an export cannot be
            used, gsplat cannot run here, or ``output_dir`` holds a run of other data.
        dust3r.training.checkpoint.CheckpointError: the run to go on from is damaged.
    """
    device = chosen_device(args.device)
    settings = Settings(
        steps=args.steps,
        sh_degree=args.sh_degree,
        strategy=args.strategy,
        max_splats=args.max_splats,
        seed=args.seed,
    )
    rasteriser = make_rasteriser(args.rasteriser, device)
    # Fails before anything is read.
    make_densifier(settings.strategy, settings.steps, settings.max_splats, settings.seed, device)
    exports = open_all(args.export, args.compare, args.images, args.image_size)
    held_out = hold_out([export.views for export in exports], args.test_every)
    tested = views_to_test(exports[0], held_out)
    choice = Choice(args.points, args.max_points, args.seed, args.keep, args.max_radius)
    plans = make_plans(exports, held_out, choice)
    notes = _notes(plans)
    perceptual, why_not = None, "LPIPS is left out, as asked for."
    if not args.no_lpips:
        perceptual, why_not = load_lpips(device, min(min(view.size) for view in tested))
    notes += [why_not] if why_not else []
    for note in notes:
        log.warning("%s", note)
    tools = Tools(settings, rasteriser, perceptual, device, args.save_every, not args.silent)
    results, renderings = [], []
    for plan in plans:
        result, pictures = train_and_judge(plan, held_out, args.output_dir / plan.name, tools)
        results.append(result)
        renderings.append(pictures)
    told = ", ".join(f"{name} {value}" for name, value in asdict(settings).items())
    told = f"Settings: rasteriser {args.rasteriser}, {told}, image_size {args.image_size}."
    written = report.write_report(args.output_dir, results, told, notes)
    written += [args.output_dir / plan.name / SPLATS for plan in plans]
    return written + write_pictures(args.output_dir, tested, results, renderings)


def _notes(plans: Sequence[Plan]) -> list[str]:
    unsure = [plan.name for plan in plans if plan.cloud.source.endswith(".ply")]
    if not unsure:
        return []
    return [
        f"Points of {', '.join(unsure)} are from a PLY, which does not say what photograph they "
        "come from: some may be of held-out ones. An export's maps and COLMAP's model say it."
    ]


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share of more than 0 and at most 1")
    return share


def _positive(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number
